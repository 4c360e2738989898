"""Drawn negatives: none of the user's items up to their split, k per positive, seeded."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.data.recipe import SPLITS
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source

MANY_ITEMS = ITEMS + "".join(f"{i},Item {i},x{i}.png,,\n" for i in range(60, 90))


def draw(tmp_path, strategy, seed=0, log=INTERACTIONS):
    made = recipe(
        write_source(tmp_path / "raw", items=MANY_ITEMS, interactions=log),
        interactions__label=None,
        interactions__negatives={"strategy": strategy, "per_positive": 2, "seed": seed},
    )
    manifest, workspace = prepared(tmp_path, made)
    rows = []
    for split, spec in manifest.splits.items():
        tables = [pq.read_table(workspace / "prepared" / f) for f in spec.files]
        rows += [(split, line) for line in pa.concat_tables(tables).to_pylist()]
    return manifest, rows


def test_negatives_avoid_the_items_of_the_user_up_to_their_split(tmp_path):
    manifest, rows = draw(tmp_path, "uniform")
    assert manifest.rows_in == 12 and manifest.rows_drawn == 24
    drawn = [(s, r) for s, r in rows if r["label"] == 0]
    assert len(drawn) == 24 and len({r["row_id"] for _, r in rows}) == 36
    for split, row in drawn:
        if (split, row["timestamp"]) == ("test", 300):
            continue  # ann's repeat, see below
        known = {
            r["item_row"]
            for s, r in rows
            if r["label"] == 1 and r["user_row"] == row["user_row"] and is_upto(s, split)
        }
        assert row["item_row"] not in known
    for split in SPLITS:
        positives = sum(s == split and r["label"] == 1 for s, r in rows)
        assert sum(s == split for s, _ in drawn) == 2 * positives


def is_upto(split, other):
    return SPLITS.index(split) <= SPLITS.index(other)


def test_rows_drawn_for_a_split_do_not_depend_on_later_ones(tmp_path):
    """Other items in the last row of every user change nothing of train and valid."""

    def upto_valid(rows):
        return sorted((s, r["user_row"], r["item_row"], r["label"]) for s, r in rows if s != "test")

    log = INTERACTIONS.splitlines()
    for at, item in ((4, 60), (8, 61), (12, 62)):
        user, _, *rest = log[at].split(",")
        log[at] = ",".join([user, str(item), *rest])
    for strategy in ("uniform", "popularity"):
        before = upto_valid(draw(tmp_path / strategy, strategy)[1])
        other = "\n".join(log) + "\n"
        after = upto_valid(draw(tmp_path / f"{strategy} other", strategy, log=other)[1])
        assert before == after


@pytest.mark.parametrize("strategy", ["uniform", "popularity"])
def test_a_positive_that_repeats_an_earlier_item_has_negatives_that_the_user_had_too(
    tmp_path, strategy
):
    """ann has 10 in train and again in test; nobody else has an item twice."""
    _, rows = draw(tmp_path, strategy)
    had = {}
    for split, row in rows:
        if row["label"] == 1:
            had.setdefault((row["user_row"], row["item_row"]), set()).add(split)
    (user, item) = next(pair for pair, splits in had.items() if len(splits) > 1)
    time = next(
        r["timestamp"]
        for s, r in rows
        if s == "test" and (r["user_row"], r["item_row"]) == (user, item)
    )
    negatives = [
        r["item_row"]
        for s, r in rows
        if s == "test" and not r["label"] and (r["user_row"], r["timestamp"]) == (user, time)
    ]
    earlier = {i for (u, i), splits in had.items() if u == user and "test" not in splits}
    assert len(negatives) == len(set(negatives)) == 2
    assert set(negatives) <= earlier


def test_popularity_draws_only_items_with_positives_in_the_split(tmp_path):
    manifest, rows = draw(tmp_path, "popularity")
    for split in SPLITS:
        own = [r for s, r in rows if s == split]
        liked = {r["item_row"] for r in own if r["label"] == 1}
        new = [r for r in own if (split, r["timestamp"]) != ("test", 300)]  # not ann's repeat
        assert {r["item_row"] for r in new if r["label"] == 0} <= liked
    # Users who know every popular item get fewer: counted, not invented.
    assert manifest.rows_drawn == sum(r["label"] == 0 for _, r in rows) < 24


def test_items_that_share_the_unknown_row_are_drawn_too(tmp_path):
    """Items of valid and test alone are unknown: if none were drawn, row 0 would mean positive."""
    lines = [f"u{user},i{user},{10 * user}\n" for user in range(40)]
    source = write_source(tmp_path / "raw", interactions="user_id,item_id,time\n" + "".join(lines))
    made = recipe(
        source,
        items=None,
        interactions__label=None,
        interactions__negatives={"per_positive": 2},
        split={"strategy": "time", "fractions": [0.5, 0.25, 0.25]},
    )
    manifest, workspace = prepared(tmp_path, made)
    assert manifest.num_item_rows == 1 + 20
    file = workspace / "prepared" / manifest.splits["test"].files[0]
    test = pq.read_table(file).to_pylist()
    unknown = [r["label"] for r in test if r["item_row"] == 0]
    # 10 positives and about half of 20 drawn rows: 19 of the 39 other items are unknown.
    assert unknown.count(1) == 10 and 4 <= unknown.count(0) <= 16


@pytest.mark.parametrize("strategy", ["uniform"])
def test_the_same_seed_draws_the_same_rows(tmp_path, strategy):
    def pairs(rows):
        return sorted((r["user_row"], r["item_row"], r["label"]) for _, r in rows)

    first = pairs(draw(tmp_path / "a", strategy)[1])
    assert first == pairs(draw(tmp_path / "b", strategy)[1])
    assert first != pairs(draw(tmp_path / "c", strategy, seed=1)[1])
