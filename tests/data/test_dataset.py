"""The loader: every row once, the same global batch for any number of ranks, exact resumption."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.data import dataset as dataset_module
from recsys.data.dataset import Dataset, Loader, jagged, prefetched
from tests.data.small_log import ITEMS, prepared, recipe, write_source


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """300 rows of six users with lists, buckets and histories."""
    rng = np.random.default_rng(5)
    lines = ["user_id,item_id,time,rating,place"]
    for _ in range(300):
        lines.append(
            f"u{rng.integers(6)},{10 * rng.integers(1, 5)},{rng.integers(90)},"
            f"{rng.integers(1, 6)},p{rng.integers(3)}"
        )
    folder = tmp_path_factory.mktemp("world")
    source = write_source(folder / "raw", interactions="\n".join(lines) + "\n", items=ITEMS)
    made = recipe(
        source,
        interactions__features={"place": {}},
        split={"strategy": "time", "fractions": [0.8, 0.1, 0.1]},
        history={"max_length": 4, "recent_length": 2},
    )
    return prepared(folder, made)


def loader(world, *, split="train", rank=0, world_size=1, shuffle=True, size=32, lanes=4, **other):
    manifest, workspace = world
    names = [f.name for f in manifest.features]
    return Loader(
        Dataset(workspace / "prepared", manifest, split=split, features=names),
        global_batch_size=size,
        rank=rank,
        world_size=world_size,
        num_lanes=lanes,
        shuffle=shuffle,
        seed=3,
        **other,
    )


def rows(batch):
    return batch.row_id_B.tolist()


def test_every_row_comes_once_and_padding_has_weight_zero(world):
    manifest, _ = world
    made = loader(world)
    batches = list(made.batches(epoch=0))
    assert len(batches) == made.steps_per_epoch
    ids = torch.cat([b.row_id_B for b in batches])
    weights = torch.cat([b.weights_B for b in batches])
    assert len(ids) == 32 * len(batches)
    real = ids[weights > 0].tolist()
    assert len(real) == len(set(real)) == manifest.splits["train"].num_rows
    assert set(ids[weights == 0].tolist()) <= {-1}
    assert sum(b.global_rows for b in batches) == len(real)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_global_batch_does_not_depend_on_the_ranks(world, world_size):
    whole = list(loader(world).batches(epoch=1))
    parts = [
        list(loader(world, rank=r, world_size=world_size).batches(epoch=1))
        for r in range(world_size)
    ]
    for step, batch in enumerate(whole):
        together = [i for rank in range(world_size) for i in rows(parts[rank][step])]
        # Padding may lie elsewhere in the batch; the rows are the same.
        assert sorted(together) == sorted(rows(batch))
        assert all(p[step].global_rows == batch.global_rows for p in parts)
        assert all(p[step].num_ranks == world_size for p in parts)


def test_start_step_gives_the_tail_of_the_pass(world):
    whole = [rows(b) for b in loader(world).batches(epoch=2)]
    assert [rows(b) for b in loader(world).batches(epoch=2, start_step=3)] == whole[3:]


def test_epochs_are_ordered_anew_and_unshuffled_ones_are_not(world):
    made = loader(world)
    first, second = ([rows(b) for b in made.batches(epoch=e)] for e in (0, 1))
    assert first != second
    plain = loader(world, shuffle=False)
    assert [rows(b) for b in plain.batches(0)] == [rows(b) for b in plain.batches(1)]


def test_blocks_are_shuffled_within_and_skipped_without_reading(world, monkeypatch):
    monkeypatch.setattr(dataset_module, "BLOCK_ROWS", 16)
    made = loader(world, num_prefetch=0)
    whole = [rows(b) for b in made.batches(epoch=0)]
    ids = [i for batch in whole for i in batch if i >= 0]
    assert len(ids) == len(set(ids)) == world[0].splits["train"].num_rows
    read = []
    original = Dataset.read

    def spy(self, start, stop):
        read.append((start, stop))
        return original(self, start, stop)

    monkeypatch.setattr(Dataset, "read", spy)
    last = made.steps_per_epoch - 1
    assert [rows(b) for b in made.batches(epoch=0, start_step=last)] == whole[last:]
    assert len(read) <= 2 * 4 + 1


def test_features_of_every_kind_match_the_files(world):
    manifest, workspace = world
    folder = workspace / "prepared"
    spec = manifest.splits["test"]
    lines = {
        line["row_id"]: line
        for line in pa.concat_tables([pq.read_table(folder / f) for f in spec.files]).to_pylist()
    }
    genres = np.load(folder / "items" / "genres.values.npy")
    genre_at = np.load(folder / "items" / "genres.offsets.npy")
    year = np.load(folder / "items" / "year.values.npy")
    history = np.load(folder / "history" / "values.npy")
    history_at = np.load(folder / "history" / "offsets.npy")
    for batch in loader(world, split="test", shuffle=False).batches(0):
        jagged_of = batch.sparse.to_dict()
        for row, row_id in enumerate(rows(batch)):
            if row_id < 0:
                continue
            line = lines[row_id]
            user, item = line["user_row"], line["item_row"]
            start = history_at[user]
            past = history[start : start + line["history_end"]].tolist()
            expected = {
                "user_id": [user],
                "item_id": [item],
                "genres": genres[genre_at[item] : genre_at[item + 1]].tolist(),
                "year": [year[item]],
                "place": [line["place"]],
                "history": past[-4:],
                "history_recent": past[-2:],
            }
            for name, values in expected.items():
                offsets = jagged_of[name].offsets()
                got = jagged_of[name].values()[offsets[row] : offsets[row + 1]].tolist()
                assert got == values, (name, row_id)
            assert batch.labels_B[row] == line["label"]


def test_fewer_rows_than_a_batch_are_one_padded_step(world):
    made = loader(world, split="valid", size=512, shuffle=False)
    (batch,) = made.batches(0)
    assert made.steps_per_epoch == 1 and len(batch.labels_B) == 512
    assert int(batch.weights_B.sum()) == world[0].splits["valid"].num_rows == batch.global_rows


def test_indivisible_batch_size_is_refused_with_the_multiple(world):
    with pytest.raises(ValueError, match="global_batch_size=30: expected a multiple of 12"):
        loader(world, size=30, world_size=3)


def test_unknown_feature_is_refused(world):
    manifest, workspace = world
    with pytest.raises(ValueError, match="features colour: not in the manifest"):
        Dataset(workspace / "prepared", manifest, split="train", features=["colour"])


def test_truncated_part_is_named(world, tmp_path):
    manifest, workspace = world
    folder = tmp_path / "prepared" / "interactions" / "train"
    folder.mkdir(parents=True)
    content = (workspace / "prepared" / manifest.splits["train"].files[0]).read_bytes()
    (folder / "part-00000.parquet").write_bytes(content[:-100])
    broken = Dataset(tmp_path / "prepared", manifest, split="train", features=["user_id"])
    with pytest.raises(ValueError, match="part-00000.parquet: cannot be read"):
        broken.read(0, 1)


def test_jagged_gathers_slices_end_to_end():
    values, lengths = jagged(np.arange(10, 20), np.array([0, 2, 5]), np.array([1, 4, 5]))
    assert values.tolist() == [10, 12, 13] and lengths.tolist() == [1, 2, 0]


def test_error_in_the_background_thread_reaches_the_consumer():
    def failing():
        yield "first"
        raise RuntimeError("the disk is gone")

    batches = prefetched(failing(), 2)
    assert next(batches) == "first"
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(batches)
