"""Drawn negatives: never an item the user interacted with, k per positive, seeded."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_log import ITEMS, prepared, recipe, write_source

MANY_ITEMS = ITEMS + "".join(f"{i},Item {i},x{i}.png,,\n" for i in range(60, 90))


def draw(tmp_path, strategy, seed=0):
    made = recipe(
        write_source(tmp_path / "raw", items=MANY_ITEMS),
        interactions__label=None,
        interactions__negatives={"strategy": strategy, "per_positive": 2, "seed": seed},
    )
    manifest, workspace = prepared(tmp_path, made)
    rows = []
    for split, spec in manifest.splits.items():
        tables = [pq.read_table(workspace / "prepared" / f) for f in spec.files]
        rows += [(split, line) for line in pa.concat_tables(tables).to_pylist()]
    return manifest, rows


def test_uniform_negatives_avoid_every_item_of_the_user(tmp_path):
    manifest, rows = draw(tmp_path, "uniform")
    assert manifest.rows_in == 12 and manifest.rows_drawn == 24
    known = {(r["user_row"], r["item_row"]) for _, r in rows if r["label"] == 1}
    drawn = [(s, r) for s, r in rows if r["label"] == 0]
    assert len(drawn) == 24 and not known & {(r["user_row"], r["item_row"]) for _, r in drawn}
    assert len({r["row_id"] for _, r in rows}) == 36
    for split in ("train", "valid", "test"):
        positives = sum(s == split and r["label"] == 1 for s, r in rows)
        assert sum(s == split for s, _ in drawn) == 2 * positives


def test_popularity_draws_only_items_with_training_positives(tmp_path):
    manifest, rows = draw(tmp_path, "popularity")
    trained = {r["item_row"] for s, r in rows if s == "train" and r["label"] == 1}
    assert {r["item_row"] for _, r in rows if r["label"] == 0} <= trained
    # Users who know every popular item get fewer: counted, not invented.
    assert manifest.rows_drawn == sum(r["label"] == 0 for _, r in rows) < 24


@pytest.mark.parametrize("strategy", ["uniform"])
def test_the_same_seed_draws_the_same_rows(tmp_path, strategy):
    def pairs(rows):
        return sorted((r["user_row"], r["item_row"], r["label"]) for _, r in rows)

    first = pairs(draw(tmp_path / "a", strategy)[1])
    assert first == pairs(draw(tmp_path / "b", strategy)[1])
    assert first != pairs(draw(tmp_path / "c", strategy, seed=1)[1])
