"""Starts the tiny world, with ten users more, from a checkpoint, and saves it, on any ranks.

In a test's own process `child` does the same on one rank.
"""

import argparse
from pathlib import Path

import numpy as np

from recsys.checkpoint.state import TrainState
from recsys.checkpoint.warm_start import RowMatch, take_weights
from recsys.checkpoint.write import save_checkpoint
from recsys.run.assembly import plan_and_shard
from recsys.runtime.env import start, stop
from tests import tiny_world
from tests.sharding.worker import TABLES, settings

USERS = tiny_world.NUM_USERS + 10
REVERSED = np.concatenate([[0], np.arange(tiny_world.NUM_ITEMS - 1, 0, -1)])
"""Item row k here is row 60 - k of the parent."""
MATCHES = {
    "user_id": RowMatch(num_rows=tiny_world.NUM_USERS),
    "item_id": RowMatch(num_rows=0, source_R=np.where(REVERSED % 5 == 3, -1, REVERSED)),
    "tags": RowMatch(num_rows=tiny_world.NUM_TAGS),
}


def child(env, config, parent, *, users=USERS, matches=MATCHES):
    """Return the ranker before and after, as (sentences, ranker, sharded)."""
    ranker, plan, sharded = plan_and_shard(
        config=config, manifest=tiny_world.manifest(users), vectors=tiny_world.vectors(), env=env
    )
    tables = {table.table: table for table in plan.tables if not table.frozen}
    if parent is None:
        return [], ranker, sharded
    said = take_weights(
        parent, sharded=sharded, tables=tables, matches=matches, is_first_rank=env.is_first
    )
    return said, ranker, sharded


def save(env, sharded, folder):
    """Save a checkpoint of step 1."""
    state = TrainState(step=1)
    save_checkpoint(folder, sharded=sharded, state=state, env=env, keep_last=1, best=True)
    return folder / "step-00000001"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--sharding")
    args = parser.parse_args()
    env = start("cpu")
    tables = dict.fromkeys(TABLES, {"sharding": args.sharding})
    _, _, sharded = child(env, settings("rowwise_adagrad", tables=tables), args.parent)
    save(env, sharded, args.save)
    stop()


if __name__ == "__main__":
    main()
