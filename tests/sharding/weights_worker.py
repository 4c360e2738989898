"""Trains a factorization machine on weighted lists, on any number of ranks, under one plan after another.

Prints one JSON line on rank 0: {sharding: logits of a batch that was not trained}. In the process of a
test `by_the_formula` does the same the slow way, list by list.
"""

import dataclasses
import json

import numpy as np
import torch
import torch.distributed as dist

from recsys.batch import Batch
from recsys.data.loader import features_of
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from tests import tiny_world

TABLES = ("user_id", "item_id", "tags")
SHARDINGS = ("table_wise", "row_wise", "column_wise", "data_parallel")
GLOBAL_BATCH, STEPS, RATE, DIM = 32, 3, 0.5, 8


def manifest():
    """The tiny world, the tags of whose items have weights."""
    made = tiny_world.manifest()
    features = [dataclasses.replace(f, is_weighted=f.name == "tags") for f in made.features]
    return dataclasses.replace(made, features=tuple(features))


def raw_weights(row: int, num_tags: int) -> list[float]:
    """Weights of the tags of a row of the global batch, some of them 0."""
    return [(row + 3 * place) % 5 / 2 for place in range(num_tags)]


def batch(rows, features, step, num_ranks=1) -> Batch:
    """Rows of a global batch of the tiny world, with weights."""
    made = tiny_world.batch(rows, features, step, num_ranks, GLOBAL_BATCH)
    sparse = made.features.sparse
    lists = {
        key: (sparse[key].values().numpy(), sparse[key].lengths().numpy()) for key in sparse.keys()
    }
    weights = [
        weight
        for row, length in zip(rows, lists["tags"][1], strict=True)
        for weight in raw_weights(row, int(length))
    ]
    weighted = features_of(lists, len(rows), weights={"tags": np.array(weights, np.float32)})
    return dataclasses.replace(made, features=weighted)


def sharded_ranker(env, sharding):
    return plan_and_shard(
        config=read_run_config({
            "run": {"seed": 3},
            "model": {
                "name": "fm",
                "features": list(TABLES),
                "modalities": [],
                "embedding_dim": DIM,
                "embedding_init": 0.5,
            },
            # Only the tables move.
            "optim": {"table": {"name": "sgd", "learning_rate": RATE}, "dense_learning_rate": 0.0},
            "tables": dict.fromkeys(TABLES, {"sharding": sharding}),
            "train": {"global_batch_size": GLOBAL_BATCH},
        }),
        manifest=manifest(),
        vectors={},
        env=env,
    )


def trained_logits(env, sharding):
    """Logits of the batch behind the last trained one."""
    ranker, _, sharded = sharded_ranker(env, sharding)
    share = GLOBAL_BATCH // env.world_size
    rows = range(env.rank * share, (env.rank + 1) * share)
    features = batch_features(ranker)
    sharded.model.train()
    for step in range(STEPS):
        sharded.optimizer.zero_grad()
        loss, _ = sharded.model(batch(rows, features, step, env.world_size))
        loss.backward()
        sharded.optimizer.step()
    sharded.model.eval()
    with torch.no_grad():
        _, scores = sharded.model(batch(rows, features, STEPS, env.world_size))
    gathered = [torch.empty_like(scores.logits_B) for _ in range(env.world_size)]
    dist.all_gather(gathered, scores.logits_B)
    return torch.cat(gathered).tolist()


def by_the_formula(env):
    """The slow way: weighted means list by list, FM's equation, and plain gradient descent."""
    _, _, sharded = sharded_ranker(env, "data_parallel")
    tables = {
        shard.table: shard.weight.detach().clone().requires_grad_()
        for shard in sharded.table_shards()
    }

    def logits(step):
        made = tiny_world.batch(range(GLOBAL_BATCH), list(TABLES), step)
        lists = {key: made.features.sparse[key].to_dense() for key in TABLES}
        found = []
        for row in range(GLOBAL_BATCH):
            fields = []
            for key in TABLES:
                ids = lists[key][row]
                weights = raw_weights(row, len(ids)) if key == "tags" else [1.0] * len(ids)
                total = sum(weights) or 1.0
                terms = [w / total * tables[key][i] for i, w in zip(ids, weights, strict=True)]
                fields.append(sum(terms, torch.zeros(DIM)))
            vectors = [field[:-1] for field in fields]
            pairs = sum(vectors[i] @ vectors[j] for i in range(3) for j in range(i))
            found.append(sum(field[-1] for field in fields) + pairs)
        return torch.stack(found), made.labels_B

    for step in range(STEPS):
        logits_B, labels_B = logits(step)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_B, labels_B)
        gradients = torch.autograd.grad(loss, list(tables.values()))
        for table, gradient in zip(tables.values(), gradients, strict=True):
            table.data -= RATE * gradient
    return logits(STEPS)[0].tolist()


def main():
    env = start("cpu")
    results = {sharding: trained_logits(env, sharding) for sharding in SHARDINGS}
    if env.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    stop()


if __name__ == "__main__":
    main()
