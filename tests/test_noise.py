"""Pure noise: where users like items at random, nothing may be learned, and every metric says so.

Whatever can be known of the training rows, and every model trained on them, has the AUC, GAUC, NDCG and
recall of chance on the test split, under every split strategy, draw of negatives and history scope.
Distances are counted in standard errors over users; BOUND of them is exceeded by luck once in 16,000
times, and seeds are fixed.
"""

import typing
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recsys.config import from_config
from recsys.data.dataset import Dataset
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import SPLITS, Recipe, SplitRecipe
from recsys.evaluation.candidates import CandidateDataset, RankingConfig, draw_candidates
from recsys.evaluation.predict import predict
from recsys.metrics.ranking import ranking_by_user
from recsys.model.build import RANKERS, batch_features
from recsys.run.assembly import build_loader, loader_of, plan_and_shard
from recsys.run.config import read_run_config
from recsys.sharding.pipeline import build_pipeline
from tests.reference.chance import errors_of_auc, errors_of_gauc, errors_of_mean

BOUND = 4.0
NUM_USERS, NUM_ITEMS, NUM_LIKED = 300, 100, 30
SOURCES = ("uniform", "popularity", "uniform again", "popularity again", "shown")
"""Negatives: drawn in one of two ways (again: users like an item more than once), or items that were
shown and not liked."""
WORLDS = [
    ("per_user_time", "uniform", "train"),
    ("time", "popularity", "past"),
    ("random", "shown", "past"),
    ("given", "uniform", "past"),
    ("per_user_time", "uniform again", "train"),
    ("random", "popularity again", "train"),
]
ALL_WORLDS = [
    (strategy, source, scope)
    for strategy in typing.get_args(SplitRecipe.__annotations__["strategy"])
    for source in SOURCES
    for scope in ("train", "past")
    if not (source.endswith("again") and scope == "past")
]
"""Under `past` an item that is liked twice within a split stands in the history of the second row, and
in none of its negatives: that log's history does tell something, see negatives.py."""
MODELS = [
    ("fm", ("per_user_time", "uniform", "train"), 8),
    ("fm", ("per_user_time", "uniform again", "train"), 8),
    ("umair_fps", ("time", "popularity", "past"), 3),
]
"""Model, world and passes over the training rows of the default run."""


def write_noise(folder, source, rng):
    """Users like 30 items each (again: with repeats), or see 60 with repeats and like a third.

    They do so at any second; seconds are few enough that several rows of a user share one.
    """
    users = np.repeat(np.arange(NUM_USERS), 2 * NUM_LIKED if source == "shown" else NUM_LIKED)
    if source == "shown" or source.endswith("again"):
        items = rng.integers(NUM_ITEMS, size=users.size)
    else:
        liked = [rng.choice(NUM_ITEMS, size=NUM_LIKED, replace=False) for _ in range(NUM_USERS)]
        items = np.concatenate(liked)
    columns = {
        "user_id": [f"u{user}" for user in users],
        "item_id": [f"i{item:03}" for item in items],
        "time": rng.integers(1000, 1030, size=users.size),
        "rating": rng.choice([1, 1, 5], size=users.size),
    }
    log = pa.table(columns)
    file_N = rng.choice(3, size=users.size, p=[0.7, 0.1, 0.2])
    for index, name in enumerate(SPLITS):
        pq.write_table(log.filter(file_N == index), folder / f"{name}.parquet")
    pq.write_table(log, folder / "log.parquet")
    items = [f"i{item:03}" for item in range(NUM_ITEMS)]
    kinds = rng.integers(8, size=NUM_ITEMS).astype(str)
    pq.write_table(pa.table({"item_id": items, "kind": kinds}), folder / "items.parquet")


@pytest.fixture(scope="module")
def make_world(tmp_path_factory):
    @cache
    def make(strategy, source, scope):
        folder = tmp_path_factory.mktemp("noise")
        write_noise(folder, source, np.random.default_rng(7))
        given = strategy == "given"
        rule = (
            {"label": "rating >= 4"}
            if source == "shown"
            else {"negatives": {"strategy": source.removesuffix(" again")}}
        )
        node = {
            "name": "noise",
            "source": str(folder),
            "interactions": {
                "file": None if given else "log.parquet",
                "files": {name: f"{name}.parquet" for name in SPLITS} if given else {},
                "user_id": "user_id",
                "item_id": "item_id",
                "timestamp": "time",
                **rule,
            },
            "items": {"file": "items.parquet", "features": {"kind": {}}},
            "split": {"strategy": strategy, "fractions": [0.7, 0.1, 0.2]},
            "history": {"scope": scope},
        }
        recipe = from_config(Recipe, node, "data")
        return folder, prepare(recipe, folder, memory_limit="500MB", threads=1)

    return make


class World:
    """Rows of a prepared folder as arrays, and what can be known of the training rows."""

    def __init__(self, folder, manifest):
        self.prepared, self.manifest = folder / "prepared", manifest
        self.train, self.test = (self._rows(name) for name in ("train", "test"))
        self.dataset = self._dataset("test")
        train = self.train
        self.pairs = {
            label: set(self._pairs(train["user_row"], train["item_row"])[train["label"] == label])
            for label in (0, 1)
        }

    def _dataset(self, split):
        features = ["user_id", "item_id", "history"]
        return Dataset(self.prepared, self.manifest, split=split, features=features)

    def _rows(self, split):
        dataset = self._dataset(split)
        table = dataset.read(0, dataset.num_rows)
        return {name: table.column(name).to_numpy() for name in table.column_names}

    def _pairs(self, users, items):
        return users.astype(np.int64) * self.manifest.num_item_rows + items

    def statistics(self, users, items, history_ends):
        """Scores of rows by everything that the training rows say of their user and item."""
        found = {"row of the item": items.astype(float)}
        for side, rows in (("user", users), ("item", items)):
            counts = [
                np.bincount(
                    self.train[f"{side}_row"][self.train["label"] == label],
                    minlength=int(self.train[f"{side}_row"].max()) + 1,
                )[rows]
                for label in (0, 1)
            ]
            found[f"negatives of the {side}"], found[f"positives of the {side}"] = counts
            found[f"share of the {side}"] = counts[1] / np.maximum(counts[0] + counts[1], 1)
        pairs = self._pairs(users, items).tolist()
        for label, name in ((0, "negative"), (1, "positive")):
            found[f"pair was {name}"] = np.array([pair in self.pairs[label] for pair in pairs])
        values, offsets = self.dataset.histories()
        seen = [
            set(values[offsets[user] : offsets[user] + end])
            for user, end in zip(users, history_ends, strict=True)
        ]
        found["in the history"] = np.array([i in h for i, h in zip(items, seen, strict=True)])
        return {name: values.astype(float) for name, values in found.items()}

    def candidates(self):
        drawn = draw_candidates(self.dataset, config=RankingConfig(num_users=NUM_USERS), seed=0)
        assert drawn is not None and drawn.is_full
        return drawn


def rows_far_from_chance(rows, scores_by_name):
    """Metrics of scored rows that lie beyond the bound."""
    labels, users = rows["label"], rows["user_row"]
    found = {}
    for name, scores in scores_by_name.items():
        found[f"AUC of {name}"] = errors_of_auc(labels, scores, users)
        found[f"GAUC of {name}"] = errors_of_gauc(labels, scores, users)
    return {name: value for name, value in found.items() if abs(value) > BOUND}


def lists_far_from_chance(drawn, scores_by_name):
    """Metrics of scored candidates that lie beyond the bound; chance: all candidates tie."""
    users, relevant = drawn.user_row_N, drawn.relevant_N
    _, chance = ranking_by_user(relevant, np.zeros(users.size), users, ks=[10, 50])
    found = {}
    for name, scores in scores_by_name.items():
        _, values = ranking_by_user(relevant, scores, users, ks=[10, 50])
        for metric in ("recall@10", "ndcg@10", "recall@50", "ndcg@50"):
            found[f"{metric} of {name}"] = errors_of_mean(values[metric], chance[metric])
    return {name: value for name, value in found.items() if abs(value) > BOUND}


def check_statistics(world):
    test = world.test
    scores = world.statistics(test["user_row"], test["item_row"], test["history_end"])
    found = rows_far_from_chance(test, scores)
    drawn = world.candidates()
    ends = drawn.templates.column("history_end").to_numpy()[drawn.template_N]
    scores = world.statistics(drawn.user_row_N, drawn.item_row_N, ends)
    found |= lists_far_from_chance(drawn, scores)
    assert not found


@pytest.mark.parametrize("rule", WORLDS, ids="-".join)
def test_training_rows_of_noise_tell_nothing_of_the_test_split(make_world, rule):
    check_statistics(World(*make_world(*rule)))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL_WORLDS, ids="-".join)
def test_training_rows_of_any_noise_tell_nothing_of_the_test_split(make_world, rule):
    check_statistics(World(*make_world(*rule)))


class NoiseVectors:
    """Random vectors of the items: a modality without meaning."""

    dim = 6

    def __init__(self, num_rows):
        self.num_rows = num_rows
        self.values = np.random.default_rng(1).normal(size=(num_rows, self.dim)).astype(np.float16)
        self.values[0] = 0

    def read(self, start, stop):
        return self.values[start:stop]


def check_model(folder, manifest, name, env, num_passes=8):
    """Train without looking at the validation split, and score test and its candidates."""
    config = read_run_config({
        "model": {
            "name": name,
            "modalities": ["semantic"],
            "interest_modalities": ["semantic"],
            "embedding_dim": 16,
            "tower_dims": [16, 8],
            "deep_dims": [16],
        },
        "optim": {
            "warmup_steps": 0,
            "dense_learning_rate": 0.01,
            "table": {"name": "adam", "learning_rate": 0.01},
        },
        "train": {"global_batch_size": 1024, "num_prefetch": 0},
    })
    torch.manual_seed(0)
    vectors = {"semantic": NoiseVectors(manifest.num_item_rows)}
    ranker, _, sharded = plan_and_shard(config=config, manifest=manifest, vectors=vectors, env=env)
    shared = {"config": config, "env": env}
    loaders = {
        split: build_loader(
            workspace=folder,
            manifest=manifest,
            split=split,
            features=batch_features(ranker),
            shuffle=split == "train",
            **shared,
        )
        for split in ("train", "test")
    }
    pipeline = build_pipeline("plain", sharded, env)
    first, last = [], []
    for epoch, losses in enumerate((first, *([] for _ in range(num_passes - 2)), last)):
        batches = loaders["train"].batches(epoch)
        for _ in range(loaders["train"].steps_per_epoch):
            scores = pipeline.progress(batches)
            losses.append(float(scores.loss))
    assert np.mean(last) < np.mean(first), "nothing was learned by heart: the test shows nothing"
    world = World(folder, manifest)
    found = predict(sharded, loaders["test"].batches(0), env)
    rows = {"label": found.label, "user_row": found.user_row}
    assert not rows_far_from_chance(rows, {name: found.score})
    drawn = world.candidates()
    pairs = loader_of(CandidateDataset(loaders["test"].dataset, drawn), shuffle=False, **shared)
    found = predict(sharded, pairs.batches(0), env)
    scores = np.empty(drawn.user_row_N.size)
    scores[found.row_id] = found.score
    assert not lists_far_from_chance(drawn, {name: scores})


@pytest.mark.parametrize(("name", "rule", "num_passes"), MODELS, ids=[m[0] for m in MODELS])
def test_model_trained_on_noise_is_at_chance(make_world, one_process, name, rule, num_passes):
    check_model(*make_world(*rule), name, one_process, num_passes)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ALL_WORLDS, ids="-".join)
@pytest.mark.parametrize("name", RANKERS)
def test_any_model_trained_on_any_noise_is_at_chance(make_world, one_process, name, rule):
    check_model(*make_world(*rule), name, one_process)
