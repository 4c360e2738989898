"""Candidates: who they are for whom, by hand, and as rows of a loader."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.config import from_config
from recsys.data.dataset import Dataset, read_row_groups
from recsys.data.loader import Loader
from recsys.evaluation.candidates import (
    CandidateDataset,
    RankingConfig,
    draw_candidates,
)
from recsys.evaluation.config import EvaluateConfig
from recsys.metrics.ranking import ranking_by_user
from tests.data.small_log import prepared, recipe, write_source
from tests.evaluation.candidates_worker import described
from tests.processes import worker_result

WORKER = Path(__file__).with_name("candidates_worker.py")
FEATURES = ["user_id", "item_id", "genres", "history", "history_recent"]
# dan has no positive in the test split; eve's is of an item that she knew: nothing is relevant.
LOG = """user_id,item_id,time,rating
ann,10,100,5
ann,20,200,5
ann,30,300,1
ann,40,400,5
bob,20,50,4
bob,30,60,2
bob,20,70,5
bob,40,80,4
dan,10,10,4
dan,20,20,4
dan,30,30,4
dan,40,40,1
eve,10,10,5
eve,20,20,4
eve,30,30,1
eve,10,40,5
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("candidates")
    manifest, workspace = prepared(folder, recipe(write_source(folder / "raw", interactions=LOG)))
    return manifest, workspace / "prepared"


def the_split(world, split="test"):
    manifest, folder = world
    return Dataset(folder, manifest, split=split, features=FEATURES)


def names(world):
    """Raw ids by row: users, items."""
    return [
        pq.read_table(world[1] / f"{side}s.parquet").column(f"{side}_id").to_pylist()
        for side in ("user", "item")
    ]


def as_sets(world, candidates):
    users, items = names(world)
    sets = {}
    for user, item, relevant in zip(
        candidates.user_row_N, candidates.item_row_N, candidates.relevant_N, strict=True
    ):
        sets.setdefault(users[user], set()).add((items[item], bool(relevant)))
    return sets


def draw(world, seed=0, **settings):
    config = RankingConfig(**settings)
    return draw_candidates(the_split(world), config=config, seed=seed)


def test_candidates_are_what_the_user_has_not_seen_and_the_positives_of_the_split(world):
    candidates = draw(world)
    assert candidates.is_full
    # ann saw 10, 20, 30; her test row is 40, liked. bob saw 20 twice, and 30.
    assert as_sets(world, candidates) == {
        "ann": {("40", True), ("50", False)},
        "bob": {("10", False), ("40", True), ("50", False)},
    }


def test_pairs_stand_in_the_circumstances_of_the_users_first_relevant_row(world):
    dataset = the_split(world)
    candidates = draw(world)
    pairs = CandidateDataset(dataset, candidates)
    assert pairs.num_rows == 5
    rows, own = pairs.read(0, 5), dataset.read(0, dataset.num_rows)
    assert rows.schema == own.schema
    assert rows.column("row_id").to_pylist() == [0, 1, 2, 3, 4]
    users = own.column("user_row").to_pylist()
    for index in range(5):
        user = int(candidates.user_row_N[index])
        expected = own.column("history_end")[users.index(user)].as_py()
        assert rows.column("user_row")[index].as_py() == user
        assert rows.column("history_end")[index].as_py() == expected
    assert pairs.read(3, 9).num_rows == 2


def test_only_the_columns_that_choose_are_read_of_the_whole_split(world, monkeypatch):
    """Of the others, only the blocks that hold a ranked user's first relevant row are read, once."""
    monkeypatch.setattr("recsys.evaluation.candidates._BLOCK_ROWS", 1)
    dataset = the_split(world)
    read, whole = [], []

    def counted(start, stop, read_rows=dataset.read):
        read.append((start, stop))
        return read_rows(start, stop)

    def columns_of(prepared, manifest, split, columns, **part):
        whole.append((split, columns))
        return read_row_groups(prepared, manifest, split, columns, **part)

    monkeypatch.setattr(dataset, "read", counted)
    monkeypatch.setattr("recsys.evaluation.split_pairs.read_row_groups", columns_of)
    candidates = draw_candidates(dataset, config=RankingConfig(), seed=0)
    assert len(read) == len(set(read)) == candidates.templates.num_rows == 2 < dataset.num_rows
    keys = ["label", "user_row", "item_row"]
    first = ["timestamp", "history_end", "row_id", *keys]
    assert [columns for split, columns in whole if split == "test"] == [keys, first]
    CandidateDataset(dataset, candidates).read(0, 5)
    assert len(read) == 2, "the pairs have their rows with them"


def drawn_world(folder):
    """Users with 10 of 60 items each at random, other items drawn as negatives of every split."""
    rng = np.random.default_rng(3)
    lines = ["user_id,item_id,time"]
    for user in range(40):
        liked = rng.choice(60, size=10, replace=False).tolist()
        lines += [f"u{user},i{item},{second}" for second, item in enumerate(liked)]
    items = "item_id\n" + "".join(f"i{item}\n" for item in range(60))
    source = write_source(folder / "raw", interactions="\n".join(lines) + "\n", items=items)
    return prepared(
        folder,
        recipe(
            source,
            interactions__label=None,
            interactions__negatives={"per_positive": 4},
            items={"file": "items.csv"},
            split={"strategy": "per_user_time", "fractions": [0.6, 0.2, 0.2]},
        ),
    )


@pytest.mark.parametrize("max_rows", [100, 200_000], ids=["drawn", "full"])
def test_candidates_are_the_same_whichever_ranks_read_the_splits(tmp_path, max_rows):
    manifest, workspace = drawn_world(tmp_path)
    for file in (name for split in manifest.splits.values() for name in split.files):
        path = workspace / "prepared" / file
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=13)
    dataset = Dataset(workspace / "prepared", manifest, split="test", features=[])
    config = RankingConfig(num_users=9, num_negatives=5, max_rows=max_rows)
    alone = draw_candidates(dataset, config=config, seed=4)
    found = worker_result(WORKER, workspace, max_rows, ranks=2)
    columns = ("users", "items", "relevant", "templates")
    joined = {name: [*found[0][name], *found[1][name]] for name in columns}
    assert {**joined, "is_full": alone.is_full} == described(alone)
    assert alone.is_full == found[0]["is_full"] == (max_rows > 100)
    assert (
        not set(found[0]["users"]) & set(found[1]["users"])
        and found[0]["users"]
        and found[1]["users"]
    )


def test_items_that_were_only_drawn_as_negatives_are_candidates(tmp_path):
    """A user knows 8 of 60 items before the test split, whatever was drawn: 52 candidates."""
    manifest, workspace = drawn_world(tmp_path)
    dataset = Dataset(workspace / "prepared", manifest, split="test", features=["user_id"])
    config = RankingConfig(ks=[10])
    candidates = draw_candidates(dataset, config=config, seed=0)
    assert np.bincount(candidates.user_row_N)[1:].tolist() == [52] * 40
    scores = np.zeros(candidates.user_row_N.size)
    _, values = ranking_by_user(candidates.relevant_N, scores, candidates.user_row_N, ks=config.ks)
    assert values["recall@10"] == pytest.approx(np.full(40, 10 / 52))


def test_drawn_training_negatives_are_counted_apart(tmp_path):
    manifest, workspace = drawn_world(tmp_path)
    dataset = Dataset(workspace / "prepared", manifest, split="test", features=["user_id"])
    assert dataset.train_count("item").sum() == 40 * 6
    assert dataset.drawn_count().sum() == 4 * 40 * 6
    stored = dataset.drawn_count().tolist()
    (workspace / "prepared" / "items" / "drawn_count.npy").unlink()
    fresh = Dataset(workspace / "prepared", manifest, split="test", features=["user_id"])
    assert fresh.drawn_count().tolist() == stored, "data prepared before the array was written"


def test_a_loader_batches_pairs_like_any_rows(world):
    candidates = draw(world)
    loader = Loader(
        CandidateDataset(the_split(world), candidates),
        global_batch_size=4,
        rank=0,
        world_size=1,
        num_lanes=2,
        shuffle=False,
        seed=0,
    )
    seen = []
    for batch in loader.batches(epoch=0):
        real = batch.weights_B > 0
        seen += zip(
            batch.row_id_B[real].tolist(),
            batch.user_row_B[real].tolist(),
            batch.item_row_B[real].tolist(),
            batch.labels_B[real].tolist(),
            strict=True,
        )
    expected = zip(
        range(5),
        candidates.user_row_N.tolist(),
        candidates.item_row_N.tolist(),
        candidates.relevant_N.astype(float).tolist(),
        strict=True,
    )
    assert sorted(seen) == sorted(expected)


def test_where_users_times_items_are_too_many_candidates_are_drawn(world):
    candidates = draw(world, max_rows=5, num_negatives=1)
    assert not candidates.is_full
    for items in as_sets(world, candidates).values():
        assert sum(relevant for _, relevant in items) == 1
        assert sum(not relevant for _, relevant in items) == 1
    drawn = {
        frozenset(as_sets(world, draw(world, seed, max_rows=5, num_negatives=1))["bob"])
        for seed in range(20)
    }
    assert len(drawn) == 2, "10 or 50 beside 40"


def test_num_users_bounds_the_users_and_zero_asks_for_none(world):
    assert len(as_sets(world, draw(world, num_users=1))) == 1
    assert draw(world, num_users=0) is None


def test_a_split_without_positives_has_no_candidates(tmp_path):
    log = LOG.replace("ann,40,400,5", "ann,40,400,1").replace("bob,40,80,4", "bob,40,80,1")
    manifest, workspace = prepared(
        tmp_path, recipe(write_source(tmp_path / "raw", interactions=log))
    )
    dataset = Dataset(workspace / "prepared", manifest, split="test", features=FEATURES)
    assert draw_candidates(dataset, config=RankingConfig(), seed=0) is None


def test_bad_settings_are_named_all_at_once():
    with pytest.raises(ValueError) as caught:
        from_config(EvaluateConfig, {"ranking": {"num_users": -1, "max_rows": 0}}, "")
    for key in ("num_users=-1", "max_rows=0"):
        assert f"ranking.{key}" in str(caught.value)
    for ks in ([0], []):
        with pytest.raises(ValueError, match=r"ranking.ks=\[.*\]: expected lengths of 1 or more"):
            from_config(EvaluateConfig, {"ranking": {"ks": ks}, "sample_users": -1}, "")
