"""Rankings, lists, values of rows and importance over ranks equal those of one process alone."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.runtime.ranks import ALONE
from tests.data.small_log import prepared, recipe, write_source
from tests.evaluation.ranking_worker import (
    NUM_ITEMS,
    NUM_ROWS,
    looked_up,
    ranked,
    segmented,
    texts,
    write_texts,
)
from tests.evaluation.test_candidates import drawn_world
from tests.processes import worker_result

WORKER = Path(__file__).with_name("ranking_worker.py")
MAX_ROWS = (5, 100, 200_000)
"""One user, so that ranks have none; too few for all items of 20 users; and enough."""


def write_features(folder):
    """A prepared log whose items and users have features of one value and of several; row groups of 7."""
    rng = np.random.default_rng(12)
    lines = [
        f"u{rng.integers(0, 19)},i{rng.integers(0, 29)},{n},{rng.integers(1, 6)}"
        for n in range(400)
    ]
    tags = ["|".join(f"g{g}" for g in rng.integers(0, 8, n % 4)) for n in range(40)]
    items = [f"i{n},Title {n},{tags[n]},l{n % 5},a{n % 6}" for n in range(31)]
    users = [f"u{n},c{n % 4},{tags[39 - n]}" for n in range(19)]
    source = write_source(
        folder / "raw",
        interactions="\n".join(["user_id,item_id,time,rating", *lines, ""]),
        items="\n".join(["item_id,title,genres,lang,by", *items, ""]),
    )
    (source / "users.csv").write_text("\n".join(["user_id,club,tastes", *users, ""]))
    made = recipe(
        source,
        items={
            "file": "items.csv",
            "title": "title",
            "text": ["title"],
            "artist": "by",
            "tags": {"genres": {"kind": "id_list"}},
            "features": {"genres": {"kind": "id_list"}, "lang": {}},
        },
        users={
            "file": "users.csv",
            "features": {"club": {}, "tastes": {"kind": "id_list"}},
        },
    )
    manifest, workspace = prepared(folder, made)
    files = [name for split in manifest.splits.values() for name in split.files]
    for file in (*files, "items.parquet"):
        path = workspace / "prepared" / file
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=7)
    return workspace


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A prepared log in row groups of 13 rows; and what one process finds in it, by pairs at most."""
    folder = tmp_path_factory.mktemp("ranking")
    manifest, workspace = drawn_world(folder)
    for file in (name for split in manifest.splits.values() for name in split.files):
        path = workspace / "prepared" / file
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=13)
    write_texts(workspace)
    alone = [ranked(workspace, most, ALONE) for most in MAX_ROWS]
    (workspace / "with_features").symlink_to(write_features(folder / "features"))
    found = {
        "ranked": alone,
        "texts": texts(workspace, ALONE),
        "segmented": segmented(workspace / "with_features", ALONE),
        "looked up": looked_up(ALONE),
    }
    return workspace, json.loads(json.dumps(found))


def about(value):
    """The value, its numbers equal but for the rounding of sums."""
    if isinstance(value, dict):
        return {name: about(part) for name, part in value.items()}
    if isinstance(value, list):
        return [about(part) for part in value]
    return pytest.approx(value, rel=1e-12, abs=1e-12) if isinstance(value, float) else value


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_rank_finds_what_one_process_finds(world, num_ranks):
    workspace, alone = world
    found = worker_result(WORKER, workspace, *MAX_ROWS, ranks=num_ranks)
    assert len(found) == num_ranks
    for of_rank in found:
        own = of_rank.pop("shares")
        most = -(-own.pop("items") // num_ranks)
        assert all(0 < held <= most for held in own.values()), "no rank has numbers of all items"
        assert of_rank == about(alone)
    assert [one["lists"] is None for one in alone["ranked"]] == [True, True, False]
    assert [one["rankings"]["num_users"] for one in alone["ranked"]] == [1, 9, 9]


def test_rows_get_the_numbers_of_their_items_and_items_the_number_of_their_rows(world):
    found = world[1]["looked up"]
    assert found["right"] == {"int64": True, "bool": True, "float32": True}
    assert found["times"] == found["expected"] and not found["of nothing"]


def test_every_family_of_segments_is_compared_over_ranks(world):
    families = Counter(family for family, _, _ in world[1]["segmented"]["segments"])
    assert families.keys() >= {
        "age of the item",
        "modalities of the item",
        "tag of the item",
        "artist of the item",
        "genres of the item",
        "lang of the item",
        "club of the user",
        "tastes of the user",
    }
    assert families["tastes of the user"] == 4 and families["lang of the item"] == 4


def test_texts_of_items_are_counted_as_by_hand(world):
    workspace, alone = world
    items = pq.read_table(workspace / "items.parquet").to_pydict()
    item_N = np.random.default_rng(10).integers(0, NUM_ITEMS, NUM_ROWS)
    counted: dict[str, int] = {}
    for item in range(NUM_ITEMS):
        for tag in set(items["tags"][item] or []):
            counted[tag] = counted.get(tag, 0) + int((item_N == item).sum())
    for family, name, rows in alone["texts"]:
        if family == "tag of the item":
            assert len(rows) == counted[name]
            assert all(name in items["tags"][item_N[row]] for row in rows)
        if family == "artist of the item":
            assert rows == [row for row, item in enumerate(item_N) if items["artist"][item] == name]
    assert Counter(family for family, _, _ in alone["texts"]) == {
        "tag of the item": 4,
        "artist of the item": 4,
        "script of the item's text": 4,
    }
