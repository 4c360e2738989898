"""Runs under torchrun: every ranker on every kind of input, trained on one batch, saved and loaded.

Prints one JSON line on rank 0: {case: {losses, scores, loaded, weights, num_dense, keys}}; cases
with batch norm are trained on batches with padding, up to ranks without a single real row.
"""

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
from recsys.model.build import RANKERS, batch_features
from recsys.model.fusion import UMCM_FORMS
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from recsys.sharding.pipeline import build_pipeline

GLOBAL_BATCH = 32
INPUTS = {
    "ids": {"modalities": []},
    "all": {"modalities": ["semantic", "style", "text"]},
}
OPTIONS = {f"umair_fps+{form}": {"umcm": form} for form in UMCM_FORMS}
OPTIONS["umair_fps+similarity_tiers"] = {"similarity_tiers": 5}
OPTIONS["umair_fps+modality_components"] = {"modality_components": 3, "second_order": True}
OPTIONS["dcn_v2+modality_components"] = {"modality_components": 3}
DENSE = ("umair_fps", "dcn_v2", "deepfm")
"""Rankers that are also trained on dense features: by towers, a concatenation, and fields."""

NORMALISED = {
    "umair_fps": {"umcm": "mixture"},
    "finalmlp": {},
    "deepfm": {"dense_precision": "bf16"},
}
REAL_ROWS = (32, 18, 10, 1)
"""Real rows of the global batch, step by step."""


def settings(name, dense_learning_rate=0.03, **more):
    return read_run_config({
        "model": {
            "name": name,
            "embedding_dim": 8,
            "tower_dims": [16, 8],
            "deep_dims": [16],
            "cross_rank": 4,
            "cross_width": 4,
            "dropout": 0.0,
            "interest_modalities": ["text", "style"],
            **more,
        },
        "optim": {
            "table": {"name": "adam", "learning_rate": 0.03},
            "dense_name": "adam",
            "dense_learning_rate": dense_learning_rate,
        },
        "train": {"global_batch_size": GLOBAL_BATCH, "pipeline": "sparse_dist"},
    })


def build(config, env, has_dense=False):
    return plan_and_shard(
        config=config,
        manifest=tiny_world.manifest(has_dense=has_dense),
        vectors=tiny_world.vectors(),
        env=env,
    )


def score(sharded, batch, env):
    sharded.model.eval()
    with torch.no_grad():
        _, scores = sharded.model(batch)
    gathered = [torch.empty_like(scores.logits_B) for _ in range(env.world_size)]
    dist.all_gather(gathered, scores.logits_B)
    return torch.cat(gathered).tolist(), list(scores.weights_BM.shape)


def examine(config, env, folder, steps, has_dense):
    ranker, _, sharded = build(config, env, has_dense)
    features = batch_features(ranker)
    share = GLOBAL_BATCH // env.world_size
    rows = range(env.rank * share, (env.rank + 1) * share)
    batch = tiny_world.batch(rows, features, 0, env.world_size, GLOBAL_BATCH)
    pipeline = build_pipeline(config.train.pipeline, sharded, env)
    sharded.model.train()
    batches = iter([batch] * steps)
    losses = []
    for _ in range(steps):
        loss = pipeline.progress(batches).loss.clone()
        dist.all_reduce(loss)
        losses.append(loss.item() / env.world_size)
    pipeline.pause()
    scores, weights = score(sharded, batch, env)
    path = save_checkpoint(
        folder, sharded=sharded, state=TrainState(), env=env, keep_last=1, best=False
    )
    _, _, fresh = build(config, env, has_dense)
    load_checkpoint(path, sharded=fresh, env=env)
    loaded, _ = score(fresh, batch, env)
    return {"losses": losses, "scores": scores, "loaded": loaded, "weights": weights} | {
        "num_dense": sum(p.numel() for p in ranker.dense.parameters()),
        "modalities": ranker.modality_names,
    }


def padded_batch(features, step, env):
    """This rank's half of a global batch whose last rows are padding."""
    share = GLOBAL_BATCH // env.world_size
    num_real = REAL_ROWS[step % len(REAL_ROWS)]
    rows = range(min(num_real, env.rank * share), min(num_real, (env.rank + 1) * share))
    batch = tiny_world.batch(rows, features, step, env.world_size, num_real)
    return tiny_world.padded(batch, share - len(rows))


def examine_normalised(config, env, folder, steps):
    """Train on padded batches; what a rank validates with, and what its checkpoint holds."""
    ranker, _, sharded = build(config, env)
    features = batch_features(ranker)
    pipeline = build_pipeline(config.train.pipeline, sharded, env)
    sharded.model.train()
    batches = iter([padded_batch(features, step, env) for step in range(steps)])
    losses = []
    for _ in range(steps):
        loss = pipeline.progress(batches).loss.clone()
        dist.all_reduce(loss)
        losses.append(loss.item() / env.world_size)
    pipeline.pause()
    batch = padded_batch(features, 0, env)
    scores, _ = score(sharded, batch, env)
    path = save_checkpoint(
        folder, sharded=sharded, state=TrainState(), env=env, keep_last=1, best=False
    )
    _, _, fresh = build(config, env)
    load_checkpoint(path, sharded=fresh, env=env)
    loaded, _ = score(fresh, batch, env)
    statistics = {n: b.tolist() for n, b in ranker.dense.named_buffers() if "running" in n}
    return {"losses": losses, "scores": scores, "loaded": loaded, "statistics": statistics}


def main():
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    env = start("cpu")
    results = {}
    cases = [
        (f"{name}/{kind}", name, inputs) for name in RANKERS for kind, inputs in INPUTS.items()
    ]
    cases += [(f"{name}/all", name.partition("+")[0], more) for name, more in OPTIONS.items()]
    cases += [
        (f"{name}/dense", name, {"second_order": True} if name == "umair_fps" else {})
        for name in DENSE
    ]
    for case, name, more in cases:
        has_dense = case.endswith("/dense")
        results[case] = examine(settings(name, **more), env, folder / case, steps, has_dense)
    for name, more in NORMALISED.items():
        # Small steps: a bias before batch norm has no gradient but rounding, which Adam scales up.
        config = settings(name, dense_learning_rate=1e-4, batch_norm=True, **more)
        case = f"{name}+batch_norm"
        results[case] = examine_normalised(config, env, folder / case, 2 * len(REAL_ROWS))
    if env.is_first:
        print("RESULT " + json.dumps(results), flush=True)
    stop()


if __name__ == "__main__":
    main()
