"""Trains tables with an L2 penalty some steps, on any number of ranks.

Prints one JSON line on rank 0: {optimizer: {table: rows}} as they are in the end. In a test's own
process `trained_tables` does the same on one rank.
"""

import json

from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from tests import tiny_world

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
        loss, _ = sharded.model(batch)
        loss.backward()
        sharded.optimizer.step()
    return {shard.table: shard.weight.tolist() for shard in sharded.table_shards()}


def main():
    env = start("cpu")
    results = {optimizer: trained_tables(env, optimizer, {}) for optimizer in OPTIMIZERS}
    if env.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    stop()


if __name__ == "__main__":
    main()
