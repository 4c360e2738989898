"""Trains a drifting tiny world through id maps, in stages, on any number of ranks and plans.

Every stage is a training by the real loop: its sharding, its steps, and where it begins and is saved.
Prints one JSON line on rank 0: of every stage the losses, the maps in the end, and what was wrong with
the rows that began anew.
"""

import argparse
import dataclasses
import json
import os
from pathlib import Path

import torch
import torch.distributed as dist

from recsys.batch import Features
from recsys.checkpoint.read import load_checkpoint
from recsys.checkpoint.state import TrainState
from recsys.checkpoint.write import save_checkpoint
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.runtime.collectives import gather
from recsys.runtime.env import start, stop
from recsys.sharding.pipeline import build_pipeline
from recsys.train.loop import Loop
from tests import tiny_world
from tests.sharding.worker import settings

GLOBAL_BATCH, STEPS_A_PASS, WINDOW, INIT = 32, 40, 3, 0.01
IDS = {
    "item_id": {"capacity": 24, "admit": {"count": 2}, "forget": {"after_days": 4}},
    "user_id": {"capacity": 16, "forget": {"least_recent": True}},
}
DRIFTING = {"item_id": (14, tiny_world.NUM_ITEMS), "user_id": (9, tiny_world.NUM_USERS)}
"""Ids of a step, and of all steps, by table."""


def drifting_batch(rows, features, step, num_ranks, size):
    """The tiny world's rows of a day: of its items and users, those that are alive then."""
    made = tiny_world.batch(rows, features, step, num_ranks, size)
    sparse = made.features.sparse
    values = sparse.values().clone()
    tables = {"history": "item_id", "history_recent": "item_id"}
    lengths = sparse.lengths().reshape(len(sparse.keys()), -1).sum(dim=1).tolist()
    for key, part in zip(sparse.keys(), values.split(lengths), strict=True):
        alive, number = DRIFTING.get(tables.get(key, key), (0, 0))
        if alive:
            part.copy_((part % alive + step) % (number - 1) + 1)
    moved = type(sparse)(keys=sparse.keys(), values=values, lengths=sparse.lengths())
    times = torch.full((len(made.labels_B),), step * 86_400, dtype=torch.int64)
    return dataclasses.replace(made, features=Features(moved), time_B=times)


class Days:
    """A loader whose every step is a day."""

    steps_per_epoch = STEPS_A_PASS

    def __init__(self, env, features):
        size = GLOBAL_BATCH // env.world_size
        self.rows = range(env.rank * size, (env.rank + 1) * size)
        self.features, self.num_ranks = features, env.world_size

    def batches(self, epoch, start_step=0):
        for step in range(start_step, STEPS_A_PASS):
            yield drifting_batch(self.rows, self.features, step, self.num_ranks, GLOBAL_BATCH)


class Log:
    """Keeps the losses of all ranks, and what the maps say."""

    def __init__(self):
        self.losses, self.noted = [], []

    def step(self, state, scores, factor):
        loss = scores.loss.clone()
        dist.all_reduce(loss)
        self.losses.append(loss.item())

    def note(self, metrics):
        self.noted.append(metrics)

    def flush(self, state, factor):
        """Nothing is held back."""

    def restart_clock(self):
        """No time is taken."""


def checked_resets(sharded, problems):
    """Let every exchange of a model be compared with its shards before it."""
    exchange, reset, noted = sharded.exchange_ids, sharded.id_maps.reset, {}

    def noting(shards, freed):
        noted.update(freed)
        reset(shards, freed)

    def checked():
        noted.clear()
        before = tensors_of(sharded)
        metrics = exchange()
        problems.extend(wrongs(before, tensors_of(sharded), noted))
        return metrics

    sharded.id_maps.reset, sharded.exchange_ids = noting, checked


def tensors_of(sharded):
    """Copies of values and optimizer state of every shard, by (table, first row, first column)."""
    return {
        (s.table, s.row, s.column): [t.cpu().clone() for t in (s.weight, *s.slots.values())]
        for s in sharded.table_shards()
    }


def wrongs(before, after, freed):
    """Sentences on rows that began anew and did not, and on others that changed."""
    found = []
    for (table, row, column), (values, *state) in after.items():
        is_freed = torch.zeros(len(values), dtype=torch.bool)
        own = [r - row for r in freed.get(table, []) if 0 <= r - row < len(values)]
        is_freed[own] = True
        where = f"{table} from row {row}, column {column}"
        old, *old_state = before[table, row, column]
        if bool((values[is_freed] == old[is_freed]).any()):
            found.append(f"{where}: values of freed rows stayed")
        if bool((values[is_freed].abs() > INIT).any()):
            found.append(f"{where}: freed rows begin with values beyond the bound")
        for now, then in zip([values, *state], [old, *old_state], strict=True):
            if not torch.equal(now[~is_freed], then[~is_freed]):
                found.append(f"{where}: other rows changed")
        if any(bool(part[is_freed].any()) for part in state):
            found.append(f"{where}: optimizer state of freed rows stayed")
    return found


def run_stage(env, stage):
    """Train one stage; return what the tests ask about."""
    torch.manual_seed(env.rank)
    config = settings(
        stage.get("optimizer", "rowwise_adagrad"),
        tables={
            name: {
                "sharding": stage.get("sharding", "table_wise"),
                "kernel": stage.get("kernel", "fused"),
                "ids": ids,
            }
            for name, ids in IDS.items()
        },
        model={"embedding_dim": 16, "embedding_init": INIT},
    )
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, exchange_ids_every_steps=WINDOW)
    )
    ranker, plan, sharded = plan_and_shard(
        config=config, manifest=tiny_world.manifest(), vectors=tiny_world.vectors(), env=env
    )
    state = TrainState()
    if stage.get("load"):
        state = load_checkpoint(Path(stage["load"]), sharded=sharded, env=env)
    problems, log = [], Log()
    if stage.get("check"):
        checked_resets(sharded, problems)
    last = stage["until"]

    def save(state, best):
        if stage.get("save"):
            folder = Path(stage["save"])
            save_checkpoint(folder, sharded=sharded, state=state, env=env, keep_last=9, best=False)

    Loop(
        sharded=sharded,
        pipeline=build_pipeline(stage.get("pipeline", "plain"), sharded, env),
        loader=Days(env, batch_features(ranker)),
        learning_rate_factor=lambda step: 1.0,
        validate=lambda state: 0.5,
        save=save,
        stop_due=lambda: state.step == last,
        state=state,
        log=log,
        epochs=1,
        evaluate_every_steps=0,
        save_every_steps=0,
        patience=0,
        higher_is_better=True,
        plateau_factor=1.0,
    ).run()
    maps = {name: rows.tolist() for name, rows in sharded.id_maps.rows_by_table().items()}
    of_ranks = gather(lambda: maps)
    return {
        "losses": log.losses,
        "maps": of_ranks[0],
        "agree": all(rank == of_ranks[0] for rank in of_ranks),
        "shardings": {t.table: t.sharding for t in plan.tables},
        "noted": log.noted,
        "summary": sharded.id_maps.summary(),
        "problems": [text for found in gather(lambda: problems) for text in found],
    }


def main():
    """Run the stages of --stages, a JSON list."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stages", type=json.loads)
    parser.add_argument("--hosts", type=int, default=1)
    args = parser.parse_args()
    os.environ["LOCAL_WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) // args.hosts)
    env = start("cpu", threads=1)
    results = [run_stage(env, stage) for stage in args.stages]
    if env.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    stop()


if __name__ == "__main__":
    main()
