"""The loader: every row once, the same global batch for any number of ranks, resume, padding.

One prepared data set serves most tests: 900 rows with users, items, lists, numbers and a history,
written in small row groups and parts, so that blocks, groups and parts all end in odd places.
"""

import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.batch import Batch
from recsys.config import from_config
from recsys.data import lanes as lanes_file
from recsys.data.dataset import Dataset, jagged, read_row_groups
from recsys.data.device_arrays import DeviceArrays, can_hold, num_bytes, planned_bytes
from recsys.data.loader import Loader, ReadAhead, prefetched
from recsys.data.passes import PooledSplits
from recsys.data.prepare import writing as writing_file
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import Recipe
from recsys.data.replay import SplitRange
from recsys.schema import DenseSpec, FeatureSpec, Manifest, SplitSpec
from tests.processes import run_worker
from tests.reference.rows import expected_examples

FEATURES = [
    "user_id",
    "age",
    "interests",
    "item_id",
    "genres",
    "year",
    "device",
    "words",
    "price",
    "history",
    "history_recent",
    "history_negative",
]


def ids(rng, letters, most):
    return "|".join(rng.choice(list(letters), rng.integers(0, most + 1), replace=False))


def write_raw(folder: Path) -> None:
    rng = np.random.default_rng(5)
    log = ["user_id,item_id,time,label,device,words,price"]
    for _ in range(900):
        log.append(
            f"u{rng.integers(30)},i{rng.integers(50)},{rng.integers(4000)},{rng.integers(2)},"
            f"{rng.choice(['phone', 'desk', ''])},{ids(rng, 'abcdef', 4)},"
            f"{rng.choice(['', round(float(rng.normal()), 3)])}"
        )
    items = ["item_id,genres,year"]
    items += [f"i{i},{ids(rng, 'vwxyz', 3)},{rng.integers(1950, 2020)}" for i in range(50)]
    users = ["user_id,age,interests"]
    users += [f"u{u},{rng.integers(20, 60)},{ids(rng, 'pqrs', 4)}" for u in range(30)]
    for name, lines in (("log", log), ("items", items), ("users", users)):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


RECIPE = {
    "name": "rows",
    "interactions": {
        "file": "log.csv",
        "user_id": "user_id",
        "item_id": "item_id",
        "timestamp": "time",
        "label": "label",
        "features": {
            "device": {},
            "words": {"kind": "id_list"},
            "price": {"kind": "numeric", "quantiles": 4},
        },
    },
    "items": {
        "file": "items.csv",
        "features": {
            "genres": {"kind": "id_list"},
            "year": {"kind": "numeric", "cuts": [1980, 2000]},
        },
    },
    "users": {
        "file": "users.csv",
        "features": {"age": {}, "interests": {"kind": "id_list"}},
    },
    "split": {"strategy": "random", "fractions": [0.7, 0.2, 0.1]},
    "history": {"max_length": 6, "recent_length": 2, "negative_length": 4},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder `prepared` and manifest."""
    folder = tmp_path_factory.mktemp("rows")
    write_raw(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing_file, "ROW_GROUP_ROWS", 70)
        patch.setattr(writing_file, "PART_ROWS", 210)
        made = from_config(Recipe, {**RECIPE, "source": str(folder)}, "data")
        manifest = prepare(made, folder / "w", memory_limit="500MB", threads=2)
    assert manifest.splits["train"].num_rows > 500
    return folder / "w" / "prepared", manifest


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(lanes_file, "BLOCK_ROWS", 32)


def loader(world, *, split="train", features=FEATURES, **changes):
    options = {
        "global_batch_size": 64,
        "rank": 0,
        "world_size": 1,
        "num_lanes": 8,
        "shuffle": True,
        "seed": 3,
        "ahead": ReadAhead(num_prefetch=0),
    }
    data = Dataset(world[0], world[1], split=split, features=features)
    return Loader(data, **{**options, **changes})


def rank_batches(world, world_size, *, epoch=0, start_step=0, **changes):
    """The batches of every rank: a list of ranks, each a list of steps."""
    return [
        list(loader(world, rank=rank, world_size=world_size, **changes).batches(epoch, start_step))
        for rank in range(world_size)
    ]


def real_rows(batches):
    """Row ids of one step's batches over the ranks, padding left out."""
    return torch.cat([b.row_id_B[b.weights_B > 0] for b in batches]).tolist()


def examples_of(batch):
    """row_id -> what the batch holds of it, one row after another."""
    lists = {}
    for key in batch.features.sparse.keys():
        part = batch.features.sparse[key]
        lists[key] = [
            part.values()[start:end].tolist()
            for start, end in itertools.pairwise(part.offsets().tolist())
        ]
    return {
        int(row_id): {
            "label": int(batch.labels_B[place]),
            "user": int(batch.user_row_B[place]),
            "item": int(batch.item_row_B[place]),
            "features": {key: lists[key][place] for key in lists},
        }
        for place, row_id in enumerate(batch.row_id_B)
        if batch.weights_B[place] > 0
    }


def tensors(batch):
    return [
        batch.labels_B,
        batch.weights_B,
        batch.row_id_B,
        batch.user_row_B,
        batch.item_row_B,
        batch.features.sparse.values(),
        batch.features.sparse.lengths(),
        torch.tensor(batch.global_rows),
    ]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.features.sparse.keys() == other.features.sparse.keys()
        assert all(map(torch.equal, tensors(one), tensors(other)))


def test_the_world_has_several_parts_and_row_groups(world):
    assert len(world[1].splits["train"].files) > 2
    assert max(world[1].splits["train"].file_rows) > 70


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_example_equals_the_slow_reference(world, split, shuffle):
    expected = expected_examples(*world, split, FEATURES)
    found = {}
    for batch in loader(world, split=split, shuffle=shuffle).batches(0):
        assert batch.features.sparse.keys() == FEATURES
        examples = examples_of(batch)
        assert not examples.keys() & found.keys()
        found |= examples
    assert found == expected


@pytest.mark.parametrize("world_size", [1, 3, 4, 5, 24])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once_a_pass_over_all_ranks(world, world_size, shuffle):
    ranks = rank_batches(world, world_size, shuffle=shuffle, global_batch_size=100)
    assert len({len(steps) for steps in ranks}) == 1, "ranks differ in their number of steps"
    size = {1: 100, 3: 34, 4: 25, 5: 20, 24: 5}[world_size]
    assert {len(b.labels_B) for steps in ranks for b in steps} == {size}
    rows = [row for step in zip(*ranks, strict=True) for row in real_rows(step)]
    assert sorted(rows) == sorted(expected_examples(*world, "train", []))


@pytest.mark.parametrize("world_size", [2, 3, 4, 7, 8, 12, 70])
def test_a_step_holds_the_same_examples_on_any_number_of_ranks(world, world_size):
    """Several ranks a lane, lanes cut in the middle, and with 70 ranks some without any row."""
    alone, ranks = rank_batches(world, 1), rank_batches(world, world_size)
    for (one,), several in zip(zip(*alone, strict=True), zip(*ranks, strict=True), strict=True):
        assert real_rows(several) == real_rows([one])
        examples = {row: example for b in several for row, example in examples_of(b).items()}
        assert examples == examples_of(one)
        assert {b.global_rows for b in several} == {len(real_rows([one]))}
        assert sum(b.mean_rows for b in several) == pytest.approx(len(real_rows([one])))


def test_ranks_that_share_a_lane_hold_each_row_of_it_once(world, monkeypatch):
    held = []
    block = lanes_file.Block

    def watched(rows, scalar_features, order):
        held.append(rows.num_rows if order is None else len(order))
        return block(rows, scalar_features, order)

    monkeypatch.setattr(lanes_file, "Block", watched)
    rank_batches(world, 24)
    assert sum(held) == world[1].splits["train"].num_rows


def test_a_pass_is_the_same_again_and_another_for_each_epoch_and_seed(world):
    first = list(loader(world).batches(1))
    assert_same(first, list(loader(world).batches(1)))
    order = [real_rows([b]) for b in first]
    for other in (loader(world).batches(2), loader(world, seed=4).batches(1)):
        assert [real_rows([b]) for b in other] != order


def test_without_shuffle_a_lane_keeps_the_order_of_the_files(world):
    in_files = list(expected_examples(*world, "valid", []))
    one_lane = loader(world, split="valid", shuffle=False, num_lanes=1)
    rows = [row for batch in one_lane.batches(0) for row in real_rows([batch])]
    assert rows == in_files


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("start_step", [1, 5, 9])
def test_resuming_gives_the_tail_of_the_pass(world, world_size, start_step):
    whole = rank_batches(world, world_size, epoch=2)
    tail = rank_batches(world, world_size, epoch=2, start_step=start_step)
    assert len(whole[0]) > 9
    for all_steps, steps in zip(whole, tail, strict=True):
        assert_same(all_steps[start_step:], steps)


def test_resuming_reads_only_the_blocks_it_needs(world, monkeypatch):
    reads = []
    read = Dataset.read
    monkeypatch.setattr(
        Dataset,
        "read",
        lambda self, start, stop: reads.append(stop - start) or read(self, start, stop),
    )
    resumed = loader(world, num_lanes=1)
    last = list(resumed.batches(0, resumed.steps_per_epoch - 1))
    assert len(last) == 1
    assert sum(reads) <= 64 + 2 * 32


def test_padding_has_weight_zero_and_no_ids(world):
    steps = list(loader(world).batches(0))
    (padded,) = [b for b in steps if (b.weights_B == 0).any()][-1:]
    pad = padded.weights_B == 0
    assert pad.any() and not pad.all()
    assert not pad[: int((~pad).sum())].any(), "padding comes last"
    assert set(padded.row_id_B[pad].tolist()) == {-1}
    for tensor in (padded.labels_B, padded.user_row_B, padded.item_row_B):
        assert not tensor[pad].any()
    for key in padded.features.sparse.keys():
        assert not padded.features.sparse[key].lengths()[pad].any()


def test_padding_has_no_ids_where_every_feature_stands_in_the_row():
    one = rows_loader(3, global_batch_size=4, num_lanes=1, shuffle=False)
    (batch,) = one.batches(0)
    assert batch.features.sparse["place"].lengths().tolist() == [1, 1, 1, 0]
    assert batch.features.sparse["place"].values().tolist() == [1, 2, 3]


def test_more_lanes_than_rows_still_gives_every_row_once(world):
    prepared, manifest = world
    small = manifest.splits["test"]
    assert small.num_rows < 128
    ranks = rank_batches(world, 2, split="test", num_lanes=128, global_batch_size=256)
    assert [len(steps) for steps in ranks] == [1, 1]
    assert len(set(real_rows([ranks[0][0], ranks[1][0]]))) == small.num_rows
    assert ranks[0][0].global_rows == small.num_rows


def test_only_the_columns_of_the_features_are_read(world):
    plain = Dataset(*world, split="train", features=["user_id", "item_id"])
    assert plain.read(0, 3).column_names == ["row_id", "label", "user_row", "item_row"]
    (batch, *_) = loader(world, features=["item_id", "user_id"]).batches(0)
    assert batch.features.sparse.keys() == ["item_id", "user_id"]
    assert torch.equal(batch.features.sparse["user_id"].values(), batch.user_row_B)


def test_reading_a_range_equals_a_slice_of_the_whole(world):
    data = Dataset(*world, split="train", features=["words", "price"])
    whole = data.read(0, data.num_rows)
    assert whole.num_rows == data.num_rows
    # Across row groups of 70 and parts of 210 rows.
    for start, stop in (
        (0, 1),
        (69, 71),
        (60, 300),
        (209, 211),
        (data.num_rows - 1, data.num_rows),
    ):
        assert data.read(start, stop).equals(whole.slice(start, stop - start))


def test_training_counts_are_those_of_the_train_split(world):
    data = Dataset(*world, split="test", features=["item_id"])
    rows = expected_examples(*world, "train", []).values()
    for side in ("user", "item"):
        count = data.num_side_rows(side)
        expected = np.bincount([row[side] for row in rows], minlength=count)
        assert data.train_count(side).tolist() == expected.tolist()


def test_unknown_feature_is_refused_with_those_there_are(world):
    with pytest.raises(ValueError, match="features colour, mood: not in the manifest, which has"):
        Dataset(*world, split="train", features=["user_id", "colour", "mood"])


def copied(world, tmp_path):
    prepared, manifest = world
    for path in prepared.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(prepared)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path, manifest


def test_missing_array_is_named(world, tmp_path):
    broken = copied(world, tmp_path)
    (tmp_path / "items" / "genres.values.npy").unlink()
    with pytest.raises(
        ValueError, match=r"genres.values.npy: missing; run launch/prepare.py again"
    ):
        next(loader(broken).batches(0))


def test_array_of_another_data_set_is_named(world, tmp_path):
    broken = copied(world, tmp_path)
    np.save(tmp_path / "items" / "year.values.npy", np.zeros(7, dtype=np.int32))
    with pytest.raises(ValueError, match=r"year.values.npy: has 7 entries, expected 51"):
        next(loader(broken).batches(0))


def test_truncated_part_is_named(world, tmp_path):
    broken = copied(world, tmp_path)
    part = tmp_path / world[1].splits["train"].files[0]
    part.write_bytes(part.read_bytes()[:500])
    with pytest.raises(
        ValueError, match=r"part-00000.parquet: cannot be read .*run launch/prepare"
    ):
        next(loader(broken).batches(0))


def test_part_with_other_rows_than_the_manifest_is_named(world, tmp_path):
    broken = copied(world, tmp_path)
    files = world[1].splits["train"].files
    (tmp_path / files[0]).write_bytes((tmp_path / files[-1]).read_bytes())
    with pytest.raises(ValueError, match=r"part-00000.parquet: has .* rows, the manifest says 210"):
        next(loader(broken).batches(0))


def test_every_part_is_looked_at_by_one_rank(world, tmp_path):
    broken = copied(world, tmp_path)
    files = world[1].splits["train"].files
    (tmp_path / files[0]).write_bytes((tmp_path / files[-1]).read_bytes())
    data = Dataset(*broken, split="train", features=["user_id"])
    data.check_files(1, 2)
    with pytest.raises(ValueError, match=r"part-00000.parquet: has .* rows, the manifest says 210"):
        data.check_files(0, 2)


def test_only_the_parts_of_a_replayed_range_are_looked_at(world, tmp_path):
    broken = copied(world, tmp_path)
    spec = world[1].splits["train"]
    (tmp_path / spec.files[0]).write_bytes((tmp_path / spec.files[-1]).read_bytes())
    assert len(spec.files) > 2 and spec.file_rows[0] == 210

    def pooled(start, stop):
        replayed = [SplitRange(split="train", start=start, stop=stop)]
        return PooledSplits(*broken, splits=["valid"], replayed=replayed, features=["user_id"])

    pooled(210, spec.num_rows).check_files()
    for start, stop in ((209, 211), (0, 1), (0, spec.num_rows)):
        with pytest.raises(ValueError, match=r"part-00000.parquet: has .* rows"):
            pooled(start, stop).check_files()


def test_no_part_stays_open_after_a_read(world):
    data = Dataset(world[0], world[1], split="train", features=["user_id"])
    assert data.read(0, data.num_rows).num_rows == data.num_rows
    kept = [os.readlink(file) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
    kept += Path("/proc/self/maps").read_text().splitlines()
    assert not [name for name in kept if name.endswith(".parquet")]


def test_one_part_at_a_time_is_open_where_a_split_is_read_from_end_to_end(world):
    prepared, manifest = world
    assert len(manifest.splits["train"].files) > 2
    for _ in read_row_groups(prepared, manifest, "train", ["row_id"]):
        kept = Path("/proc/self/maps").read_text().splitlines()
        assert len({line.split()[-1] for line in kept if line.endswith(".parquet")}) <= 1


def test_prefetched_batches_are_the_same(world):
    plain = list(loader(world).batches(0, 2))
    assert_same(plain, list(loader(world, ahead=ReadAhead(num_prefetch=3)).batches(0, 2)))


@pytest.mark.parametrize("start_step", [0, 5])
def test_batches_are_the_same_when_blocks_are_read_ahead_by_threads(world, start_step):
    plain = list(loader(world).batches(1, start_step))
    assert_same(
        plain,
        list(loader(world, ahead=ReadAhead(num_readers=3, num_prefetch=0)).batches(1, start_step)),
    )


@pytest.mark.parametrize("start_step", [0, 5])
def test_batches_are_the_same_whatever_the_number_of_threads_that_make_them(world, start_step):
    plain = list(loader(world).batches(1, start_step))
    for ahead in (
        ReadAhead(num_makers=3, num_prefetch=0),
        ReadAhead(num_makers=2, num_readers=2, num_prefetch=1),
    ):
        assert_same(plain, list(loader(world, ahead=ahead).batches(1, start_step)))


def test_error_in_a_making_thread_reaches_the_consumer(world, monkeypatch):
    made = loader(world, ahead=ReadAhead(num_makers=3, num_prefetch=0))

    def broken(*_):
        raise RuntimeError("no such array")

    monkeypatch.setattr(made.dataset, "side_ids", broken)
    with pytest.raises(RuntimeError, match="no such array"):
        next(made.batches(0))


def test_ids_in_locked_memory_are_narrow_and_wide_on_the_device(world, monkeypatch):
    monkeypatch.setattr(Batch, "pin_memory", lambda batch: batch)
    plain = list(loader(world).batches(0))
    locked = list(loader(world, ahead=ReadAhead(num_prefetch=0, pin_memory=True)).batches(0))
    assert {b.features.sparse.values().dtype for b in locked} == {torch.int32}
    moved = [batch.to(torch.device("cpu")) for batch in locked]
    assert {b.features.sparse.values().dtype for b in moved} == {torch.int64}
    assert_same(plain, moved)


def test_batches_know_how_many_ids_every_feature_has(world):
    for batch in loader(world).batches(0):
        sparse = batch.features.sparse
        counts = sparse.lengths().reshape(len(sparse.keys()), -1).sum(dim=1).tolist()
        assert sparse.length_per_key() == counts
        assert sparse.offset_per_key() == [0, *itertools.accumulate(counts)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_gathered_by_a_device_are_those_of_the_host(world, world_size):
    features = [f for f in FEATURES if not is_list_of_log(world[1], f)]
    data = Dataset(world[0], world[1], split="train", features=features)
    assert can_hold(data) and num_bytes(data) > 0
    arrays = DeviceArrays(data, torch.device("cpu"))
    of_host = rank_batches(world, world_size, features=features)
    ahead = ReadAhead(num_prefetch=0, arrays=arrays)
    gathered = rank_batches(world, world_size, features=features, ahead=ahead)
    for expected, found in zip(of_host, gathered, strict=True):
        moved = [batch.to(torch.device("cpu")) for batch in found]
        assert_same(expected, moved)
        for one, other in zip(expected, moved, strict=True):
            assert other.features.sparse.values().dtype == torch.int64
            assert other.features.sparse.lengths().dtype == torch.int32
            assert other.features.sparse.length_per_key() == one.features.sparse.length_per_key()


def is_list_of_log(manifest, name):
    feature = next(f for f in manifest.features if f.name == name)
    return feature.source == "interaction" and feature.is_list


def test_bytes_of_arrays_are_known_before_there_are_any(world):
    """But for the histories: every training positive may be an entry of one."""
    prepared, manifest = world
    features = [f.name for f in manifest.features if not is_list_of_log(manifest, f.name)]
    data = Dataset(prepared, manifest, split="train", features=features)
    lengths = dict.fromkeys(features, 1.0)
    for feature in data.features:
        if feature.is_list and feature.source != "history":
            values = data.array(f"{feature.source}s/{feature.name}.values")
            num_rows = (
                manifest.num_user_rows if feature.source == "user" else manifest.num_item_rows
            )
            lengths[feature.name] = len(values) / num_rows
    planned = planned_bytes(manifest, features, lengths)
    assert num_bytes(data) <= planned + 100 and planned < 1.5 * num_bytes(data)
    assert planned_bytes(manifest, FEATURES, lengths) == 0  # lists of the log


def test_lists_of_the_log_are_left_to_the_host(world):
    lists = [f for f in FEATURES if is_list_of_log(world[1], f)]
    assert lists
    assert not can_hold(Dataset(world[0], world[1], split="train", features=lists))


def test_abandoned_pass_ends_its_reading_and_making_threads(world):
    batches = loader(world, ahead=ReadAhead(num_readers=3, num_makers=3)).batches(0)
    next(batches)
    batches.close()
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith(("reader", "maker"))]


def test_an_error_in_the_prefetch_thread_reaches_the_consumer():
    def failing():
        yield "first"
        raise RuntimeError("the disk is gone")

    batches = prefetched(failing(), 2)
    assert next(batches) == "first"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(batches)


def test_an_abandoned_pass_ends_its_thread(world):
    before = threading.active_count()
    batches = loader(world, ahead=ReadAhead()).batches(0)
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda t: (t[0], sum(t))), max_size=9
    )
)
def test_jagged_equals_slicing_one_by_one(ranges):
    values = np.arange(100, 140)
    starts = np.array([a for a, _ in ranges], dtype=np.int64)
    ends = np.array([b for _, b in ranges], dtype=np.int64)
    found, lengths = jagged(values, starts, ends)
    assert found.tolist() == [v for a, b in ranges for v in values[a:b]]
    assert lengths.tolist() == [b - a for a, b in ranges]


class RowsInMemory:
    """Row ids and labels alone, to lay out lanes of any size without files."""

    def __init__(self, num_rows: int):
        self.num_rows = num_rows
        self.manifest = Manifest(
            name="ids",
            tables=(),
            features=(),
            splits={"train": SplitSpec(num_rows=num_rows, num_positives=0, files=(), file_rows=())},
            num_user_rows=0,
            num_item_rows=0,
        )
        self.dense: list[DenseSpec] = []
        self.features = [
            FeatureSpec(
                name="place", table="place", source="interaction", side="context", is_list=False
            )
        ]

    def read(self, start: int, stop: int) -> pa.Table:
        rows = np.arange(start, min(stop, self.num_rows))
        return pa.table({"row_id": rows, "label": rows % 2, "place": rows + 1})


def rows_loader(num_rows, **changes):
    options = {
        "global_batch_size": 1024,
        "rank": 0,
        "world_size": 1,
        "num_lanes": 8,
        "shuffle": True,
        "seed": 1,
        "ahead": ReadAhead(num_prefetch=0),
    }
    return Loader(RowsInMemory(num_rows), **{**options, **changes})


def steps_of(num_rows, world_size, start_step=0, **changes):
    """Real rows of every step from `start_step` on, and the rows of a batch, padding included."""
    loaders = [
        rows_loader(num_rows, rank=rank, world_size=world_size, **changes)
        for rank in range(world_size)
    ]
    steps = list(zip(*(one.batches(0, start_step) for one in loaders), strict=True))
    assert len(steps) == loaders[0].steps_per_epoch - start_step
    for step in steps:
        assert {b.global_rows for b in step} == {len(real_rows(step))}
    return [real_rows(step) for step in steps], {len(b.labels_B) for step in steps for b in step}


def test_positions_of_a_step_are_dealt_to_the_ranks_in_order():
    """20 rows in lanes of 6, 6 and 8; batches of 10 take 3, 3 and 4 of them."""
    dealt = [
        [
            batch.row_id_B.tolist()
            for batch in rows_loader(
                20, global_batch_size=10, num_lanes=3, shuffle=False, rank=rank, world_size=4
            ).batches(0)
        ]
        for rank in range(4)
    ]
    assert dealt == [
        [[0, 1, -1], [3, 4, -1]],
        [[2, 6, 7], [5, 9, 10]],
        [[8, 12, -1], [11, 16, -1]],
        [[13, 14, 15], [17, 18, 19]],
    ]


def test_any_number_of_ranks_and_any_resume_take_the_same_steps(monkeypatch):
    """The default batch and lanes on 1 to 72 ranks; each goes on where another number stopped."""
    monkeypatch.setattr(lanes_file, "BLOCK_ROWS", 128)
    alone, _ = steps_of(2500, 1)
    assert sorted(row for step in alone for row in step) == list(range(2500))
    assert [len(step) for step in alone] == [1024, 1024, 452]
    for world_size in range(1, 73):
        found, sizes = steps_of(2500, world_size)
        assert found == alone
        assert sizes == {int(np.ceil(1024 / world_size))}
        resumed, _ = steps_of(2500, 73 - world_size, start_step=1)
        assert found[:1] + resumed == alone


@given(
    num_rows=st.integers(1, 400),
    num_lanes=st.integers(1, 9),
    world_size=st.integers(1, 20),
    global_batch_size=st.integers(1, 90),
    shuffle=st.booleans(),
)
def test_any_layout_gives_every_row_once_in_the_steps_of_one_rank(
    num_rows, num_lanes, world_size, global_batch_size, shuffle
):
    options = {
        "num_lanes": num_lanes,
        "global_batch_size": global_batch_size,
        "shuffle": shuffle,
    }
    alone, _ = steps_of(num_rows, 1, **options)
    found, sizes = steps_of(num_rows, world_size, **options)
    assert found == alone
    assert sorted(row for step in found for row in step) == list(range(num_rows))
    assert all(len(step) == global_batch_size for step in found[:-2])
    assert sizes == {int(np.ceil(global_batch_size / world_size))}
    last = len(alone) - 1
    assert steps_of(num_rows, world_size, start_step=last, **options)[0] == alone[last:]


FIRST_BATCH = """
import sys
from pathlib import Path
from recsys.batch import Batch
from recsys.data.dataset import Dataset
from recsys.data.device_arrays import DeviceArrays, can_hold, num_bytes
from recsys.data.loader import Loader
from recsys.schema import read_manifest

workspace = Path(sys.argv[1])
features = sys.argv[2].split(",")
data = Dataset(
    workspace / "prepared", read_manifest(workspace), split="train", features=features
)
made = Loader(
    data, global_batch_size=64, rank=0, world_size=1, num_lanes=8, shuffle=True, seed=3
)
print(next(made.batches(0)).global_rows, "pandas" in sys.modules)
"""


def test_first_batch_does_not_wait_for_pandas(world, tmp_path):
    """pyarrow's `to_numpy` would import it: 0.3 s at every start, before the first step."""
    script = tmp_path / "first_batch.py"
    script.write_text(FIRST_BATCH)
    arguments = [str(world[0].parent), ",".join(FEATURES)]
    assert run_worker(script, *arguments, ranks=0).split()[-2:] == ["64", "False"]
