"""Splits against slow versions, and the promises each strategy makes."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_log import prepared, recipe, write_source
from tests.reference.split import split_by_each_users_time, split_by_time

FRACTIONS = (0.6, 0.2, 0.2)


def random_log(rng, num_rows=400):
    """Users with one row and with many, times that repeat."""
    users = rng.zipf(1.5, num_rows).clip(max=12)
    return pd.DataFrame({
        "user_id": [f"u{user}" for user in users],
        "item_id": 10 * rng.integers(1, 6, num_rows),
        "time": rng.integers(0, 60, num_rows),
        "rating": rng.integers(1, 6, num_rows),
    })


def split_of_rows(tmp_path, log, **split):
    source = write_source(tmp_path / "raw", interactions=log.to_csv(index=False))
    manifest, workspace = prepared(tmp_path, recipe(source, split=split))
    found = {}
    for name, spec in manifest.splits.items():
        rows = pa.concat_tables([pq.read_table(workspace / "prepared" / f) for f in spec.files])
        assert rows.num_rows == spec.num_rows
        for row_id in rows["row_id"].to_pylist():
            assert row_id not in found, "a row stands in two splits"
            found[row_id] = name
    assert sorted(found) == list(range(len(log)))
    return pd.Series([found[row] for row in range(len(log))], index=log.index), manifest


def test_per_user_time_equals_the_slow_reference(tmp_path, rng):
    log = random_log(rng)
    found, _ = split_of_rows(tmp_path, log, strategy="per_user_time", fractions=list(FRACTIONS))
    # Rows of one user, time and item are interchangeable up to file order, which both keep.
    assert found.equals(split_by_each_users_time(log, FRACTIONS))


def test_ties_that_a_bound_cuts_tell_nothing_of_the_item(tmp_path, rng):
    """Users with all rows in one second: an item is as often in train as any other."""
    users, items = np.meshgrid(np.arange(200), np.arange(10), indexing="ij")
    log = pd.DataFrame({
        "user_id": [f"u{user}" for user in users.ravel()],
        "item_id": 10 * (1 + items.ravel() % 5),
        "time": 7,
        "rating": 1 + 4 * (users.ravel() % 2),
    })
    found, _ = split_of_rows(tmp_path, log, strategy="per_user_time", fractions=list(FRACTIONS))
    assert found.value_counts().to_dict() == {"train": 1200, "valid": 400, "test": 400}
    shares = (found == "train").groupby(log["item_id"]).mean()
    # 400 rows an item: two standard deviations are 0.05.
    assert shares.between(0.6 - 0.1, 0.6 + 0.1).all(), shares


def test_time_equals_the_slow_reference_and_keeps_a_second_together(tmp_path, rng):
    log = random_log(rng)
    found, manifest = split_of_rows(tmp_path, log, strategy="time", fractions=list(FRACTIONS))
    assert found.equals(split_by_time(log, FRACTIONS))
    assert (log.assign(split=found).groupby("time")["split"].nunique() == 1).all()
    for name, spec in manifest.splits.items():
        times = log["time"][found == name]
        assert (spec.timestamp_min, spec.timestamp_max) == (times.min(), times.max())


def test_random_depends_on_the_seed_and_on_nothing_else(tmp_path, rng):
    log = random_log(rng)
    other = log.assign(user_id="u1", rating=6 - log["rating"])

    def split(folder, content, seed):
        return split_of_rows(
            tmp_path / folder, content, strategy="random", fractions=list(FRACTIONS), seed=seed
        )[0]

    first = split("a", log, 1)
    assert first.equals(split("b", other, 1))
    assert not first.equals(split("c", log, 2))
    assert first.value_counts(normalize=True)["train"] == pytest.approx(0.6, abs=0.08)


def test_rows_are_written_in_random_order(tmp_path, rng):
    log = random_log(rng)
    source = write_source(tmp_path / "raw", interactions=log.to_csv(index=False))
    manifest, workspace = prepared(tmp_path, recipe(source))
    path = workspace / "prepared" / manifest.splits["train"].files[0]
    row_ids = pq.read_table(path)["row_id"].to_pandas()
    assert not row_ids.is_monotonic_increasing
    # Times of the first and of the second half are alike: a range of rows is a random sample.
    times, half = log["time"][row_ids].to_numpy(), len(row_ids) // 2
    assert abs(times[:half].mean() - times[half:].mean()) < 6
