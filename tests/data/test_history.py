"""Histories: nothing of a row's own time or later, nothing of valid or test in scope train."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_log import prepared, recipe, write_source
from tests.reference.history import visible_positives


def all_rows(workspace, manifest):
    rows = []
    for split, spec in manifest.splits.items():
        tables = [pq.read_table(workspace / "prepared" / f) for f in spec.files]
        for line in pa.concat_tables(tables).to_pylist():
            rows.append({
                "row_id": line["row_id"],
                "user": line["user_row"],
                "item": line["item_row"],
                "time": line.get("timestamp"),
                "label": line["label"],
                "split": split,
                "end": line["history_end"],
            })
    return rows


def seen(workspace, row):
    folder = workspace / "prepared" / "history"
    offsets, values = np.load(folder / "offsets.npy"), np.load(folder / "values.npy")
    start = offsets[row["user"]]
    return values[start : start + row["end"]].tolist()


def random_log(rng, num_rows):
    lines = ["user_id,item_id,time,rating"]
    for _ in range(num_rows):
        user, item = rng.integers(6), 10 * rng.integers(1, 5)
        lines.append(f"u{user},{item},{rng.integers(40)},{rng.integers(1, 6)}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("scope", ["train", "past"])
@pytest.mark.parametrize("strategy", ["per_user_time", "time", "random"])
def test_history_equals_the_slow_reference(tmp_path, rng, scope, strategy):
    made = recipe(
        write_source(tmp_path / "raw", interactions=random_log(rng, 300)),
        split={"strategy": strategy, "fractions": [0.6, 0.2, 0.2]},
        history={"max_length": 50, "recent_length": 5, "scope": scope},
    )
    manifest, workspace = prepared(tmp_path, made)
    rows = all_rows(workspace, manifest)
    assert len(rows) == 300
    for row in rows:
        assert seen(workspace, row) == visible_positives(rows, row, scope), row


def test_without_time_a_training_row_never_sees_itself(tmp_path, rng):
    made = recipe(
        write_source(tmp_path / "raw", interactions=random_log(rng, 200)),
        interactions__timestamp=None,
        split={"strategy": "random", "fractions": [0.6, 0.2, 0.2]},
    )
    manifest, workspace = prepared(tmp_path, made)
    rows = all_rows(workspace, manifest)
    for user in {r["user"] for r in rows if r["user"]}:
        positives = [r for r in rows if r["user"] == user and r["label"] and r["split"] == "train"]
        # The k-th positive in the seeded order sees exactly the k - 1 before it.
        assert sorted(r["end"] for r in positives) == list(range(len(positives)))
        held_out = [r for r in rows if r["user"] == user and r["split"] != "train"]
        assert all(r["end"] == len(positives) for r in held_out)
