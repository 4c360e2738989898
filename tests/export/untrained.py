"""Runs of random weights on a small data set of every kind of feature, as train would leave them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from embedding.features.opening import open_features
from recsys.checkpoint.state import TrainState
from recsys.checkpoint.write import save_checkpoint
from recsys.config import from_config
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import Recipe
from recsys.evaluation.predict import predict
from recsys.model.build import batch_features
from recsys.run.assembly import build_loader, plan_and_shard
from recsys.run.config import read_run_config
from recsys.run.folder import open_run_folder
from recsys.schema import read_manifest
from tests.feature_tables import write_table

NUM_USERS, NUM_ITEMS, NUM_ROWS = 12, 30, 400
SMALL = {
    "embedding_dim": 8,
    "embedding_init": 0.5,
    "tower_dims": [16, 8],
    "deep_dims": [16],
    "cross_rank": 4,
    "cross_width": 4,
    "interest_modalities": ["text", "style"],
}
USER_FEATURES = {"country": {}, "topics": {"kind": "id_list", "weight_separator": "*"}}
USER_FEATURES |= {"spent": {"kind": "dense", "scale": "none"}}
DIMS = {"semantic": 12, "style": 8, "text": 10}


def recipe(
    source: Path,
    *,
    has_users: bool = True,
    has_contents: bool = True,
    price_side: str = "context",
    history_scope: str = "past",
    hash_rows: int = 7,
    own_vectors: str | None = None,
    negative_length: int = 0,
) -> Recipe:
    """Lists, hashed ids, numbers in buckets and dense, context, users, a history; `price_side`: tower."""
    text = {"kind": "id_list", "separator": "|"}
    node = {
        "name": "varied",
        "source": str(source),
        "interactions": {
            "file": "log.csv",
            "item_id": "item",
            "timestamp": "time",
            "label": "label",
            "features": {
                "device": {},
                "asked": text,
                "wanted": {"kind": "id_list", "weight_separator": ":"},
                "price": {"kind": "numeric", "quantiles": 4, "side": price_side},
                "paid": {"column": "price", "kind": "dense", "side": price_side},
            },
        },
        "items": {
            "file": "items.csv",
            "item_id": "item",
            "features": {
                "genres": text,
                "moods": {
                    "kind": "id_list",
                    "separator": " ",
                    "weight_separator": "=",
                    "hash_rows": 5,
                },
                "studio": {"hash_rows": hash_rows},
                "year": {"kind": "numeric", "cuts": [1980, 2000]},
                "age": {"column": "year", "kind": "dense"},
                "votes": {"kind": "dense", "scale": "log"},
            },
        },
        "split": {"strategy": "time", "fractions": [0.5, 0.2, 0.3]},
    }
    if has_contents:
        node["items"] |= {"image": "image", "text": ["title"]}
    if own_vectors is not None:
        node["items"]["vectors"] = {own_vectors: {"file": f"{own_vectors}.npy"}}
    if has_users:
        node["interactions"]["user_id"] = "user"
        node["users"] = {"file": "users.csv", "user_id": "user", "features": USER_FEATURES}
        node["history"] = {"max_length": 6, "recent_length": 2, "scope": history_scope}
        node["history"]["negative_length"] = negative_length
    return from_config(Recipe, node, "data")


def write_source(folder: Path) -> None:
    """Write the raw files."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)

    def weighted(most: int, between: str, before_weight: str) -> str:
        ids = rng.integers(0, 5, rng.integers(0, most))
        return between.join(f"t{n}{before_weight}{rng.exponential():.2f}" for n in ids)

    log = ["user,item,time,label,device,asked,price,wanted"]
    for time in range(NUM_ROWS):
        asked = "|".join(f"w{word}" for word in rng.integers(0, 6, rng.integers(0, 3)))
        user, item = rng.integers(0, NUM_USERS), rng.integers(0, NUM_ITEMS)
        price = "" if time % 9 == 0 else f"{rng.normal():.3f}"
        row = f"u{user},i{item},{time},{rng.integers(0, 2)},d{time % 3},{asked},{price}"
        log.append(f"{row},{weighted(4, '|', ':')}")
    items = ["item,title,image,genres,studio,year,votes,moods"]
    for item in range(NUM_ITEMS):
        genres = "|".join(f"g{genre}" for genre in rng.integers(0, 5, rng.integers(0, 4)))
        votes = "nan" if item % 7 == 0 else f"{item**3 - 500}"
        row = f"i{item},Title {item},{item}.png,{genres},s{item % 11},{1970 + item},{votes}"
        items.append(f"{row},{weighted(3, ' ', '=')}")
    users = ["user,country,spent,topics"]
    for user in range(NUM_USERS):
        users.append(f"u{user},c{user % 4},{user % 3 or ''},{weighted(3, '|', '*')}")
    for name, lines in {"log": log, "items": items, "users": users}.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")


def make_workspace(folder: Path, edit: Callable[[str], str] = lambda text: text, **options) -> Path:
    """A prepared workspace; `edit` changes the raw files' text, `options` go to the recipe."""
    write_source(folder / "raw")
    for path in (folder / "raw").iterdir():
        path.write_text(edit(path.read_text()))
    prepare(recipe(folder / "raw", **options), folder, memory_limit="500MB", threads=1)
    manifest = read_manifest(folder)
    for seed, (name, dim) in enumerate(DIMS.items()):
        if manifest.has_modality(name):
            rng = np.random.default_rng(seed)
            vectors = rng.normal(size=(manifest.num_item_rows, dim))
            vectors[::5] = 0
            write_table(
                folder / "features" / name,
                vectors,
                items_checksum=manifest.items_checksum,
                num_masked=len(vectors[::5]),
            )
    return folder


def _admit_some(maps, capacities, generator) -> None:
    """Give every row of the tables with a fixed capacity to some id."""
    state = maps.state()
    for name, capacity in capacities.items():
        rows = state[f"{name}/table_row"]
        ids = 1 + torch.randperm(len(rows) - 1, generator=generator)[:capacity]
        rows[ids] = 1 + torch.arange(len(ids), dtype=rows.dtype)
    maps.load_state(state, is_first_rank=True)


def write_run(workspace: Path, name: str, env, model: dict, **sections) -> np.ndarray:
    """Save a run of random weights; return its probabilities of the test split by row id."""
    manifest = read_manifest(workspace)
    small = {**SMALL, **({"embedding_dim": 4} if model["name"] == "lr" else {})}
    config = read_run_config({
        "run": {"name": name},
        "model": {**small, **model},
        "train": {"global_batch_size": 64, "num_lanes": 1},
        **sections,
    })
    folder = open_run_folder(workspace, config, manifest)
    names = [n for n in config.model.modalities if manifest.has_modality(n)]
    ranker, _, sharded = plan_and_shard(
        config=config,
        manifest=manifest,
        vectors=open_features(workspace, names, manifest, print),
        env=env,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ranker.dense.parameters():
            parameter.normal_(std=0.3, generator=generator)
        for module in ranker.dense.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
    capacities = {name: t.ids.capacity for name, t in config.tables.items() if t.ids is not None}
    _admit_some(sharded.id_maps, capacities, generator)
    state = TrainState(epoch=1, step=7, best_metric=0.5, best_step=7)
    save_checkpoint(
        folder / "checkpoints", sharded=sharded, state=state, env=env, keep_last=1, best=True
    )
    loader = build_loader(
        workspace=workspace,
        manifest=manifest,
        config=config,
        env=env,
        split="test",
        features=batch_features(ranker),
        shuffle=False,
    )
    predictions = predict(sharded, loader.batches(epoch=0), env)
    return predictions.score[np.argsort(predictions.row_id)]
