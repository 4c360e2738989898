"""Runs under torchrun: trains the tiny world some steps, optionally saving and loading.

Prints one JSON line on rank 0: losses of every step, scores of a fixed batch at the end.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tiny_world

from recsys.checkpoint.read import load_checkpoint
from recsys.checkpoint.state import TrainState
from recsys.checkpoint.write import save_checkpoint
from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from recsys.sharding.pipeline import build_pipeline

GLOBAL_BATCH = 32


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sharding", default="")
    parser.add_argument("--tables", default="user_id,item_id,tags")
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
    config = read_run_config({
        "model": {
            "embedding_dim": 8,
            "tower_dims": [16, 8],
            "deep_dims": [8],
            "cross_rank": 4,
            "umcm": args.umcm,
            "dropout": args.dropout,
            "interest_modalities": ["text", "style"],
        },
        "optim": {"table": {"name": args.optimizer}, "dense_learning_rate": 0.01},
        "tables": dict.fromkeys(tables, {"sharding": args.sharding}) if args.sharding else {},
        "plan": {"replicate_modality_bytes": args.replicate_bytes},
        "train": {"global_batch_size": args.global_batch},
    })
    torch.manual_seed(env.rank)
    ranker, _, sharded = plan_and_shard(
        config=config, manifest=tiny_world.manifest(), vectors=tiny_world.vectors(), env=env
    )
    state = TrainState()
    if args.load:
        state = load_checkpoint(args.load, sharded=sharded, env=env)
    features = batch_features(ranker)
    size = args.global_batch
    rows = range(
        env.rank * size // env.world_size,
        (env.rank + 1) * size // env.world_size,
    )

    def batch(step):
        real = tiny_world.batch(rows, features, step % 6, env.world_size, size)
        return tiny_world.padded(real, -(-size // env.world_size) - len(rows))

    pipeline = build_pipeline(args.pipeline, sharded, env)
    sharded.model.train()
    batches = (batch(k) for k in range(args.first_step, args.first_step + args.steps))
    losses = []
    for _ in range(args.steps):
        loss = pipeline.progress(batches).loss.clone()
        dist.all_reduce(loss)
        losses.append(loss.item() / env.world_size)
        state.step += 1
    pipeline.pause()
    sharded.model.eval()
    last = batch(99)
    with torch.no_grad():
        _, scores = sharded.model(last)
    gathered = [None] * env.world_size
    dist.all_gather_object(gathered, scores.logits_B[last.weights_B > 0])
    if args.save:
        save_checkpoint(args.save, sharded=sharded, state=state, env=env, keep_last=2, best=True)
    if env.is_first:
        result = {
            "losses": losses,
            "scores": torch.sigmoid(torch.cat(gathered)).tolist(),
            "step": state.step,
        }
        print("RESULT " + json.dumps(result), flush=True)
    stop()


if __name__ == "__main__":
    main()
