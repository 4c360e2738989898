"""Trains rank 0 of 64 alike ranks for two steps: `billions_worker.py DIVISOR BATCH_SIZE_PER_RANK`.

Started by test_billions.py. Tables have the widths, sharding types and kernels' forms that
`plan cluster=h100_8x8 catalogue=billions` chooses, and rows divided by DIVISOR, since their values lie in
the memory of this process. Prints the plan's times, and bytes of rank 0's shards and of what it sends.
"""

import dataclasses
import json
import sys

import numpy as np
import torch

from recsys.batch import Batch
from recsys.data.loader import features_of
from recsys.data.planned_manifest import planned_manifest
from recsys.data.recipe import FeatureRecipe, InteractionsRecipe, ItemsRecipe, Recipe
from recsys.model.build import batch_features
from recsys.model.ranker import Ranker
from recsys.run.assembly import build_plannable, feature_lengths, plan_model
from recsys.run.config import read_run_config
from recsys.run.planning import Planned, read_cluster
from recsys.runtime.env import silence_libraries
from recsys.schema import Manifest
from recsys.sharding.apply import shard_ranker
from recsys.sharding.id_maps import IdMaps
from recsys.sharding.pipeline import build_pipeline
from recsys.sharding.plan import Plan
from tests.sharding.alike_ranks import BYTES, begin

ROWS = {"user_id": 2_000_000_000, "item_id": 500_000_000, "tags": 10_000_000}
DIMS = {"semantic": 1024, "style": 256, "text": 512}
MODEL = {"embedding_dim": 128, "interest_modalities": ["semantic", "style", "text"]}


def manifest_of(rows: dict[str, int]) -> Manifest:
    """Return the manifest of a catalogue with tags and a history."""
    recipe = Recipe(
        name="billions",
        interactions=InteractionsRecipe(file="log.csv", user_id="user", item_id="item"),
        items=ItemsRecipe(
            image="picture", text=["title"], features={"tags": FeatureRecipe(kind="id_list")}
        ),
    )
    return planned_manifest(recipe, rows)


def whole_plan() -> Plan:
    """Return the plan of all rows on 8 hosts of 8 H100."""
    return Planned(
        config=read_run_config({"model": MODEL}),
        manifest=manifest_of(ROWS),
        modality_dims=DIMS,
        cluster=read_cluster("h100_8x8"),
    ).plan()


def batch_of(
    ranker: Ranker, manifest: Manifest, lengths: dict[str, float], size: int, step: int, ranks: int
) -> Batch:
    """Return rows of uniform ids, as many a feature as the plan counts with."""
    rng = np.random.default_rng(step)
    by_name = {feature.name: feature for feature in manifest.features}
    rows = {table.name: table.num_rows for table in manifest.tables}
    lists = {}
    for name in batch_features(ranker):
        each = np.full(size, round(lengths[name]), np.int32)
        lists[name] = (rng.integers(1, rows[by_name[name].table], each.sum()), each)
    zeros = np.zeros(size, np.int64)
    users, items = (lists.get(name, (zeros,))[0] for name in ("user_id", "item_id"))
    return Batch(
        features=features_of(lists, size),
        labels_B=torch.from_numpy((rng.random(size) < 0.3).astype(np.float32)),
        weights_B=torch.from_numpy(np.ones(size, np.float32)),
        row_id_B=torch.from_numpy(np.arange(size)),
        user_row_B=torch.from_numpy(users),
        item_row_B=torch.from_numpy(items),
        global_rows=size * ranks,
        num_ranks=ranks,
    )


def main() -> None:
    """Plan both, shard the small one, step twice."""
    divisor, size = int(sys.argv[1]), int(sys.argv[2])
    silence_libraries()
    cluster = read_cluster("h100_8x8")
    whole = whole_plan()
    env = begin(num_ranks=cluster.num_ranks, ranks_a_host=cluster.accelerators_per_host)
    config = read_run_config({
        "model": MODEL,
        "tables": {t.table: {"sharding": t.sharding} for t in whole.tables},
        "plan": {"replicate_modality_bytes": 0},
        "train": {"global_batch_size": size * env.world_size},
    })
    manifest = manifest_of({name: rows // divisor for name, rows in ROWS.items()})
    ranker, tables = build_plannable(
        config=config, manifest=manifest, modality_dims=DIMS, device_type="cpu"
    )
    on_cpu = dataclasses.replace(
        cluster, device="cpu", batch_size_per_rank=size, host_memory_gib=100_000
    )
    plan = plan_model(
        config=config, manifest=manifest, ranker=ranker, tables=tables, cluster=on_cpu
    )
    id_maps = IdMaps(tables, manifest, exchange_every_steps=1, bound=0.01, seed=0)
    sharded = shard_ranker(
        ranker=ranker,
        plan=plan,
        env=env,
        optim=config.optim,
        tables=tables,
        modality_vectors={},
        id_maps=id_maps,
        embedding_init=0.01,
        seed=0,
    )
    lengths = feature_lengths(manifest, config.plan)
    pipeline = build_pipeline("plain", sharded, env)
    BYTES.clear()
    losses = []
    for step in range(2):
        batch = batch_of(ranker, manifest, lengths, size, step, env.world_size)
        losses.append(float(pipeline.progress(iter([batch])).loss))
        if step == 0:
            first = dict(BYTES)
            BYTES.clear()
    found = {
        "ranks": plan.num_ranks,
        "sharding": {t.table: t.sharding for t in plan.tables},
        "planned": {t.table: t.sharding for t in whole.tables},
        "step_ms": round(whole.summary.critical_path_ms, 3),
        "shards": {s.table: list(s.weight.shape) for s in sharded.table_shards()},
        "sent_first": first,
        "sent": dict(BYTES),
        "vectors": {t.table: t.output_bytes_per_step / plan.num_ranks for t in plan.tables},
        "ids": {t.table: t.input_bytes_per_step / plan.num_ranks for t in plan.tables},
        "losses": losses,
    }
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
