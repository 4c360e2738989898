"""Trains tables with an L2 penalty some steps, on any number of ranks.

Prints one JSON line on rank 0: {optimizer: {table: rows}} as they are in the end. In a test's own
process `trained_tables` does the same on one rank, and `by_the_formula` the slow way.
"""

import json

import numpy as np
import torch

from recsys.model.build import batch_features, build_ranker
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from tests import tiny_world

TABLES = ("user_id", "item_id", "tags")
OPTIMIZERS = ("adam", "rowwise_adagrad", "sgd")
GLOBAL_BATCH, STEPS, L2, RATE, SEED = 32, 4, 0.3, 0.05, 3


def settings(optimizer, sharding):
    return read_run_config({
        "run": {"seed": SEED},
        "model": {
            "name": "fm",
            "embedding_dim": 8,
            "modalities": [],
            "embedding_init": 0.5,
        },
        "optim": {
            "table": {"name": optimizer, "learning_rate": RATE, "l2": L2},
            # Only the tables move.
            "dense_learning_rate": 0.0,
        },
        "tables": {table: {"sharding": kind} for table, kind in sharding.items()},
        "train": {"global_batch_size": GLOBAL_BATCH},
    })


def shards(env, config):
    ranker, plan, sharded = plan_and_shard(
        config=config, manifest=tiny_world.manifest(), vectors={}, env=env
    )
    assert all(table.sharding == "data_parallel" for table in plan.tables)
    return ranker, sharded


def trained_tables(env, optimizer, sharding):
    """Rows of every table after some steps."""
    ranker, sharded = shards(env, settings(optimizer, sharding))
    share = GLOBAL_BATCH // env.world_size
    rows = range(env.rank * share, (env.rank + 1) * share)
    sharded.model.train()
    for step in range(STEPS):
        batch = tiny_world.batch(rows, batch_features(ranker), step, env.world_size, GLOBAL_BATCH)
        sharded.optimizer.zero_grad()
        loss, _ = sharded.model(batch.to(env.device))
        loss.backward()
        sharded.optimizer.step()
    return {shard.table: shard.weight.tolist() for shard in sharded.table_shards()}


def by_the_formula(env, optimizer):
    """The slow way: autograd of the loss with the penalty in it, and each optimizer's equations."""
    config = settings(optimizer, {})
    _, sharded = shards(env, config)
    ranker = build_ranker(
        manifest=tiny_world.manifest(), config=config.model, modality_dims={}, seed=SEED
    )
    ranker.inputs.to_empty(device="cpu")
    weights = {}
    for shard in sharded.table_shards():
        weights[shard.table] = ranker.inputs.embeddings.embedding_bags[shard.table].weight
        weights[shard.table].data.copy_(shard.weight)
    first = {name: torch.zeros_like(w) for name, w in weights.items()}
    second = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step in range(STEPS):
        batch = tiny_world.batch(range(GLOBAL_BATCH), batch_features(ranker), step)
        loss, _ = ranker.train()(batch)
        penalty = sum(L2 / 2 * weight.square().sum() for weight in weights.values())
        gradients = torch.autograd.grad(loss + penalty, list(weights.values()))
        for (name, weight), grad in zip(weights.items(), gradients, strict=True):
            if optimizer == "sgd":
                weight.data -= RATE * grad
            elif optimizer == "rowwise_adagrad":
                second[name] += grad.square().mean(dim=1, keepdim=True)
                weight.data -= RATE * grad / (second[name].sqrt() + 1e-8)
            else:
                first[name] = 0.9 * first[name] + 0.1 * grad
                second[name] = 0.999 * second[name] + 0.001 * grad.square()
                mean = first[name] / (1 - 0.9 ** (step + 1))
                square = second[name] / (1 - 0.999 ** (step + 1))
                weight.data -= RATE * mean / (square.sqrt() + 1e-8)
    return {name: weight.detach().numpy() for name, weight in weights.items()}


def assert_tables(tables, expected):
    assert sorted(tables) == sorted(TABLES)
    for name, rows in tables.items():
        np.testing.assert_allclose(rows, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def main():
    env = start("cpu")
    results = {optimizer: trained_tables(env, optimizer, {}) for optimizer in OPTIMIZERS}
    if env.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    stop()


if __name__ == "__main__":
    main()
