"""Runs under torchrun: trains the tiny world a few steps under one plan after another.

Prints one JSON line on rank 0: the scores of a fixed batch under every plan, and for two large
models what every rank planned to hold and what it holds. `--hosts` makes the ranks of one machine
look like several hosts.
"""

import argparse
import atexit
import gc
import json
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
import torch.distributed as dist
from torchrec.distributed.types import ShardedTensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny_world

from embedding.features.store import FeatureTable
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from recsys.sharding.pipeline import build_pipeline
from tests.feature_tables import write_table

GLOBAL_BATCH = 32
LARGE_ROWS = 300_000
TABLES = ("user_id", "item_id")
SHARDINGS = ("data_parallel", "table_wise", "row_wise", "column_wise")
HOST_SHARDINGS = ("table_row_wise", "table_column_wise", "grid_shard")
VECTORS = {**tiny_world.vectors(), "semantic": tiny_world.Vectors(10, 1)}
"""One of them is 12 columns wide as stored: three pieces of 4 on two hosts."""


def cases() -> dict[str, dict]:
    """Sections `tables` and `plan` by case."""

    def both(**keys):
        return {"tables": dict.fromkeys(TABLES, keys)}

    found = {kind: both(sharding=kind) for kind in (*SHARDINGS, *HOST_SHARDINGS)}
    found["pinned"] = {"tables": {"user_id": {"ranks": [0]}, "item_id": {"sharding": "row_wise"}}}
    # Rank 0 alone has a piece of a table that is not whole on every rank.
    alone = {"user_id": {"sharding": "data_parallel"}, "tags": {"sharding": "data_parallel"}}
    found["one_holder"] = {
        "tables": {**alone, "item_id": {"sharding": "table_wise", "ranks": [0]}},
        "plan": {"replicate_modality_bytes": 1 << 20},
    }
    communication = {"forward_communication": "bf16", "backward_communication": "fp16"}
    found["half_communication"] = {**both(sharding="row_wise"), "plan": communication}
    found["half_tables"] = both(sharding="row_wise", precision="fp16")
    for kind in (*SHARDINGS[1:], *HOST_SHARDINGS):
        frozen = {f"modality_{name}": {"sharding": kind} for name in VECTORS}
        found[f"frozen_{kind}"] = {
            "tables": {**found["table_wise"]["tables"], **frozen},
            "plan": {"min_partition": 4},
        }
    return found


def halved_cases() -> dict[str, dict]:
    """The cases of frozen tables, with vectors and gradients sent in half precision."""
    exchange = {"forward_communication": "fp16", "backward_communication": "bf16"}
    return {
        f"half_{name}": {**case, "plan": {**case["plan"], **exchange}}
        for name, case in cases().items()
        if name.startswith("frozen_")
    }


def coded_cases() -> dict[str, dict]:
    """The cases of frozen tables, with codes in them; held whole by every rank; and decoded."""
    found = {
        f"codes_{name.removeprefix('frozen_')}": {**case, "vectors": "codes"}
        for name, case in cases().items()
        if name.startswith("frozen_")
    }
    whole = {**cases()["table_wise"], "plan": {"replicate_modality_bytes": 1 << 20}}
    found["codes_replicated"] = {**whole, "vectors": "codes"}
    found["decoded"] = {**whole, "vectors": "decoded"}
    return found


class Decoded:
    """The vectors of a table of codes, as a table of fp16 has them."""

    def __init__(self, table: FeatureTable):
        self.dim, self.num_rows, self.read = table.dim, table.num_rows, table.read


@cache
def coded_vectors() -> dict[str, FeatureTable]:
    """Tables of codes, two of 2 bits a number and one of 4."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    forms = {"semantic": (8, 2), "style": (4, 2), "text": (6, 4)}
    return {
        name: write_table(folder / name, tiny_world.Vectors(dim, dim).values, bits=bits)
        for name, (dim, bits) in forms.items()
    }


def vectors_of(case: dict):
    """The feature tables of a case."""
    if "vectors" not in case:
        return VECTORS
    coded = coded_vectors()
    return coded if case["vectors"] == "codes" else {n: Decoded(t) for n, t in coded.items()}


def config(case: dict, optimizer: str):
    """The tiny ranker with a case's keys."""
    model = {"embedding_dim": 16, "tower_dims": [16, 8], "deep_dims": [8], "cross_rank": 4}
    return read_run_config({
        "model": {
            **model,
            "umcm": "mixture",
        },
        "tables": case.get("tables", {}),
        "optim": {
            "table": {"name": optimizer},
            "small_table_rows": LARGE_ROWS,
            "dense_learning_rate": 0.01,
        },
        "plan": {"replicate_modality_bytes": 0, **case.get("plan", {})},
        "train": {"global_batch_size": GLOBAL_BATCH},
    })


def build(case: dict, optimizer: str, env, user_rows: int = tiny_world.NUM_USERS):
    """Plan, shard and train three steps; return the sharded ranker, the plan and the scores."""
    torch.manual_seed(0)
    manifest = tiny_world.manifest(user_rows)
    ranker, plan, sharded = plan_and_shard(
        config=config(case, optimizer), manifest=manifest, vectors=vectors_of(case), env=env
    )
    features = batch_features(ranker)
    share = GLOBAL_BATCH // env.world_size
    rows = range(env.rank * share, (env.rank + 1) * share)

    def batch(step):
        return tiny_world.batch(rows, features, step, env.world_size, GLOBAL_BATCH)

    pipeline = build_pipeline("plain", sharded, env)
    sharded.model.train()
    batches = (batch(step) for step in range(3))
    for _ in range(3):
        pipeline.progress(batches)
    pipeline.pause()
    sharded.model.eval()
    with torch.no_grad():
        _, scores = sharded.model(batch(99))
    gathered = [torch.empty_like(scores.logits_B) for _ in range(env.world_size)]
    dist.all_gather(gathered, scores.logits_B)
    return sharded, plan, torch.sigmoid(torch.cat(gathered)).tolist()


def live_bytes() -> int:
    """Bytes of all storages that this process holds tensors of."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        # Asked of the type: objects of other libraries may do work when they are asked for theirs.
        kind = type(found)
        if not issubclass(kind, torch.Tensor) or issubclass(kind, ShardedTensor):
            continue
        if found.device.type != "cpu":
            continue
        for tensor in (found, found.grad if found.is_leaf else None):
            if tensor is not None and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def main():
    """Every case, then what two large models hold."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--cases", default=",".join(cases()))
    parser.add_argument("--only-scores", action="store_true")
    args = parser.parse_args()
    world_size = int(os.environ["WORLD_SIZE"])
    os.environ["LOCAL_WORLD_SIZE"] = str(world_size // args.hosts)
    env = start("cpu")
    scores, shardings, sends_rows = {}, {}, {}
    for name in args.cases.split(","):
        case = (cases() | halved_cases() | coded_cases())[name]
        sharded, plan, scores[name] = build(case, "sgd", env)
        shardings[name] = {t.table: t.sharding for t in plan.tables}
        sends_rows[name] = [None] * env.world_size
        dist.all_gather_object(sends_rows[name], sharded.sends_rows)
        del sharded
    held = {}
    for optimizer in () if args.only_scores else ("rowwise_adagrad", "adam"):
        before = live_bytes()
        sharded, plan, _ = build({}, optimizer, env, LARGE_ROWS)
        load = plan.ranks[env.rank]
        keys = ("weight_bytes", "frozen_bytes", "optimizer_bytes", "gradient_bytes", "dense_bytes")
        mine = [sum(getattr(load, key) for key in keys), live_bytes() - before]
        everyone = [None] * env.world_size
        dist.all_gather_object(everyone, mine)
        held[optimizer] = everyone
        del sharded
    if env.is_first:
        result = {"scores": scores, "shardings": shardings, "held": held, "sends_rows": sends_rows}
        print("RESULT " + json.dumps(result), flush=True)
    stop()


if __name__ == "__main__":
    main()
