"""Trains the tiny world some steps, optionally saving and loading, on any number of ranks.

Run under torchrun it prints one JSON line on rank 0: losses of every step, scores of a fixed batch at
the end. In a test's own process `train` does the same on one rank, on any device.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist

from recsys.checkpoint.read import load_checkpoint
from recsys.checkpoint.state import TrainState
from recsys.checkpoint.write import save_checkpoint
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from recsys.sharding.pipeline import build_pipeline
from tests import tiny_world

GLOBAL_BATCH = 32
TABLES = ("user_id", "item_id", "tags")


def settings(optimizer="auto", model=None, tables=None, plan=None, global_batch=GLOBAL_BATCH):
    """The tiny ranker with more keys of the sections model, tables and plan."""
    return read_run_config({
        "model": {
            "embedding_dim": 8,
            "tower_dims": [16, 8],
            "deep_dims": [8],
            "cross_rank": 4,
            "umcm": "mixture",
            "dropout": 0.0,
            "interest_modalities": ["text", "style"],
            **(model or {}),
        },
        "optim": {"table": {"name": optimizer}, "dense_learning_rate": 0.01},
        "tables": tables or {},
        "plan": plan or {},
        "train": {"global_batch_size": global_batch},
    })


def train(env, config, *, steps=20, first_step=0, pipeline="plain", save=None, load=None):
    """Return {"losses", "scores", "step"}, and the sharded ranker as it is in the end."""
    torch.manual_seed(env.rank)
    ranker, _, sharded = plan_and_shard(
        config=config, manifest=tiny_world.manifest(), vectors=tiny_world.vectors(), env=env
    )
    state = TrainState()
    if load:
        state = load_checkpoint(load, sharded=sharded, env=env)
    features = batch_features(ranker)
    size = config.train.global_batch_size
    rows = range(
        env.rank * size // env.world_size,
        (env.rank + 1) * size // env.world_size,
    )

    def batch(step):
        real = tiny_world.batch(rows, features, step % 6, env.world_size, size)
        return tiny_world.padded(real, -(-size // env.world_size) - len(rows))

    steps_taken = build_pipeline(pipeline, sharded, env)
    sharded.model.train()
    batches = (batch(k) for k in range(first_step, first_step + steps))
    losses = []
    for _ in range(steps):
        loss = steps_taken.progress(batches).loss.clone()
        dist.all_reduce(loss)
        losses.append(loss.item() / env.world_size)
        state.step += 1
    steps_taken.pause()
    sharded.model.eval()
    last = batch(99).to(env.device)
    with torch.no_grad():
        _, scores = sharded.model(last)
    gathered = [None] * env.world_size
    dist.all_gather_object(gathered, scores.logits_B[last.weights_B > 0].cpu())
    if save:
        save_checkpoint(save, sharded=sharded, state=state, env=env, keep_last=2, best=True)
    result = {
        "losses": losses,
        "scores": torch.sigmoid(torch.cat(gathered)).tolist(),
        "step": state.step,
    }
    return result, sharded


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sharding", default="")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--umcm", default="mixture")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--first-step", type=int, default=0)
    parser.add_argument("--pipeline", default="plain")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--replicate-bytes", type=int, default=0)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--load", type=Path)
    parser.add_argument("--global-batch", type=int, default=GLOBAL_BATCH)
    args = parser.parse_args()
    env = start("cpu")
    tables = args.tables.split(",")
    config = settings(
        args.optimizer,
        model={"umcm": args.umcm, "dropout": args.dropout},
        tables=dict.fromkeys(tables, {"sharding": args.sharding}) if args.sharding else {},
        plan={"replicate_modality_bytes": args.replicate_bytes},
        global_batch=args.global_batch,
    )
    result, _ = train(
        env,
        config,
        steps=args.steps,
        first_step=args.first_step,
        pipeline=args.pipeline,
        save=args.save,
        load=args.load,
    )
    if env.is_first:
        print("RESULT " + json.dumps(result), flush=True)
    stop()


if __name__ == "__main__":
    main()
