"""Passes over several splits: rows by time, rows of all splits together, each row once on any ranks."""

import numpy as np
import pytest

from recsys.data import passes as passes_file
from recsys.data.dataset import Dataset, read_columns
from recsys.data.device_arrays import can_hold
from recsys.data.loader import Loader
from recsys.data.passes import LoaderSequence, PooledSplits, TimeOrdered
from recsys.data.replay import SplitRange
from tests.data.small_log import prepared, recipe, write_source

FEATURES = ["user_id", "item_id", "genres", "history"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Manifest and prepared folder of 300 rows in 40 seconds, two thirds of them for training."""
    folder, rng = tmp_path_factory.mktemp("passes"), np.random.default_rng(3)
    log = ["user_id,item_id,time,rating"]
    log += [
        f"u{rng.integers(9)},{rng.choice([10, 20, 30, 40])},{rng.integers(40)},{rng.integers(1, 6)}"
        for _ in range(300)
    ]
    source = write_source(folder / "raw", interactions="\n".join(log) + "\n")
    split = {"strategy": "time", "fractions": [0.5, 0.25, 0.25]}
    manifest, workspace = prepared(folder, recipe(source, split=split))
    return manifest, workspace / "prepared"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces and blocks that end in odd places."""
    monkeypatch.setattr(passes_file, "_PIECE_ROWS", 40)
    monkeypatch.setattr(passes_file, "BLOCK_ROWS", 7)


def by_time(world, split):
    manifest, folder = world
    return TimeOrdered(folder, manifest, split=split, features=FEATURES)


def loader(dataset, rank=0, world_size=1, shuffle=False, num_lanes=1):
    return Loader(
        dataset,
        global_batch_size=32,
        rank=rank,
        world_size=world_size,
        num_lanes=num_lanes,
        shuffle=shuffle,
        seed=1,
    )


def rows_of(batch):
    return batch.row_id_B[: batch.num_real].tolist()


def expected_order(world, split):
    """Row ids by (time, place in the files)."""
    manifest, folder = world
    rows = list(read_columns(folder, manifest, split, ["row_id", "timestamp"]))
    ids = np.concatenate([r.column("row_id").to_numpy() for r in rows])
    times = np.concatenate([r.column("timestamp").to_numpy() for r in rows])
    placed = sorted(zip(times.tolist(), range(len(ids)), ids.tolist(), strict=True))
    assert len(set(times.tolist())) < len(ids), "rows of one time"
    return [row for _, _, row in placed]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_rows_come_by_time_each_once_on_any_number_of_ranks(world, world_size):
    splits, expected = ["train", "test"], []
    for split in splits:
        rows = expected_order(world, split)
        expected += [rows[start : start + 32] for start in range(0, len(rows), 32)]
    loaders = [
        LoaderSequence([loader(by_time(world, split), rank, world_size) for split in splits])
        for rank in range(world_size)
    ]
    for start_step in (0, 4, loaders[0].starts[1]):
        steps = zip(*(one.batches(0, start_step) for one in loaders), strict=True)
        found = [[row for batch in step for row in rows_of(batch)] for step in steps]
        assert found == expected[start_step:]
    assert loaders[0].steps_per_epoch == len(expected)


def test_a_range_in_time_order_is_a_slice_of_the_whole(world):
    data = by_time(world, "train")
    whole = data.read(0, data.num_rows)
    assert whole.column("row_id").to_pylist() == expected_order(world, "train")
    for start, stop in ((0, 1), (38, 43), (79, 121), (data.num_rows - 1, data.num_rows)):
        assert data.read(start, stop).to_pylist() == whole.slice(start, stop - start).to_pylist()


@pytest.mark.parametrize("world_size", [1, 2])
def test_pooled_splits_give_every_row_once_a_pass_in_another_order_each(world, world_size):
    manifest, folder = world
    splits = ["train", "valid", "test"]
    data = PooledSplits(folder, manifest, splits=splits, features=FEATURES)
    assert data.num_rows == sum(manifest.splits[split].num_rows for split in splits)
    orders = []
    for epoch in range(2):
        loaders = [loader(data, rank, world_size, True, 8) for rank in range(world_size)]
        steps = zip(*(one.batches(epoch) for one in loaders), strict=True)
        orders.append([row for step in steps for batch in step for row in rows_of(batch)])
    every = [row for split in splits for row in expected_order(world, split)]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(every)
    assert orders[0] != orders[1]
    first = set(orders[0][:32])
    assert all(first & set(expected_order(world, split)) for split in splits), (
        "one batch, all splits"
    )


@pytest.mark.parametrize("world_size", [1, 2])
def test_replayed_ranges_are_trained_on_beside_a_whole_split(world, world_size):
    manifest, folder = world
    stored = {
        split: Dataset(folder, manifest, split=split, features=FEATURES).read(0, 999)
        for split in ("train", "valid", "test")
    }
    ids = {split: rows.column("row_id").to_pylist() for split, rows in stored.items()}
    size = len(ids["train"])
    replayed = [("train", size - 20, size), ("train", 0, 11), ("valid", 3, 9)]
    ranges = [SplitRange(split=name, start=a, stop=b) for name, a, b in replayed]
    data = PooledSplits(
        folder, manifest, splits=["test"], replayed=ranges, features=FEATURES, with_times=True
    )
    expected = ids["test"] + ids["train"][-20:] + ids["train"][:11] + ids["valid"][3:9]
    rows = data.read(0, data.num_rows)
    assert data.num_rows == len(expected)
    assert rows.column("row_id").to_pylist() == expected
    assert data.read(70, 90).to_pylist() == rows.slice(70, 20).to_pylist()
    loaders = [loader(data, rank, world_size, True, 8) for rank in range(world_size)]
    steps = zip(*(one.batches(0) for one in loaders), strict=True)
    found = [[row for batch in step for row in rows_of(batch)] for step in steps]
    assert sorted(sum(found, [])) == sorted(rows.column("row_id").to_pylist())
    one = [rows_of(batch) for batch in loader(data, 0, 1, True, 8).batches(0)]
    assert [sorted(step) for step in found] == [sorted(step) for step in one]


def test_a_device_does_not_gather_the_histories_of_several_splits(world):
    manifest, folder = world
    shared = {"prepared": folder, "manifest": manifest}
    for features, expected in ((FEATURES, False), (["user_id", "item_id", "genres"], True)):
        pooled = PooledSplits(splits=["train", "test"], features=features, **shared)
        assert can_hold(pooled) is expected
        assert can_hold(Dataset(split="train", features=features, **shared))


def test_pooled_rows_read_the_histories_of_their_own_splits(tmp_path_factory):
    """Training rows see training positives alone, and those of test all earlier ones."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(4)
    log = ["user_id,item_id,time,rating"]
    log += [
        f"u{rng.integers(4)},{rng.choice([10, 20, 30])},{rng.integers(99)},{rng.choice([2, 5])}"
        for _ in range(80)
    ]
    source = write_source(folder / "raw", interactions="\n".join([*log, "u1,10,9,1"]) + "\n")
    split = {"strategy": "random", "fractions": [0.5, 0.25, 0.25]}
    made = recipe(source, split=split, history__scope="past", history__negative_length=2)
    manifest, workspace = prepared(folder, made)
    assert manifest.history.is_by_split
    splits, names = ["train", "test"], ["history", "user_id", "history_negative", "history_recent"]
    size = manifest.splits["train"].num_rows
    replayed = [SplitRange(split="train", start=a, stop=b) for a, b in ((9, size), (0, 9))]
    pooled = PooledSplits(
        workspace / "prepared", manifest, splits=["test"], replayed=replayed, features=names
    )
    alone = [
        Dataset(workspace / "prepared", manifest, split=split, features=names) for split in splits
    ]
    found, expected = ({}, {})
    for data, into in ((pooled, found), *((one, expected) for one in alone)):
        for batch in loader(data).batches(0):
            lists = batch.features.sparse.to_dict()
            for name in names:
                for place, row in enumerate(rows_of(batch)):
                    low, high = lists[name].offsets()[place : place + 2].tolist()
                    into[name, row] = lists[name].values()[low:high].tolist()
    assert found == expected
    for name, longest in (("history", 3), ("history_negative", 2)):
        assert any(len(items) == longest for (of, _), items in found.items() if of == name)
