"""run.deterministic=true: two runs are equal, bit for bit, and operators that cannot be are refused."""

import hashlib

import pytest
import torch

from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.runtime.env import start, stop
from recsys.sharding.pipeline import build_pipeline
from tests import tiny_world

SIZE = 64


@pytest.fixture(scope="module")
def env():
    before = torch.get_num_threads()
    env = start("cpu", deterministic=True)
    torch.set_num_threads(1)  # batches of a few rows: threads would wait for each other
    yield env
    stop()
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(before)


def fingerprint(env, seed):
    """Train 6 steps with dropout over sharded and replicated tables; hash losses and weights."""
    config = read_run_config({
        "run": {"seed": seed, "deterministic": True},
        "model": {
            "embedding_dim": 8,
            "tower_dims": [16, 8],
            "deep_dims": [8],
            "dropout": 0.3,
            "interest_modalities": ["semantic", "style", "text"],
        },
        "tables": {
            "user_id": {"sharding": "table_wise"},
            "item_id": {"sharding": "data_parallel"},
        },
        "train": {"global_batch_size": SIZE},
    })
    torch.manual_seed(seed)
    ranker, _, sharded = plan_and_shard(
        config=config, manifest=tiny_world.manifest(), vectors=tiny_world.vectors(), env=env
    )
    features = batch_features(ranker)
    batches = (tiny_world.batch(range(SIZE), features, step) for step in range(6))
    pipeline = build_pipeline("sparse_dist", sharded, env)
    sharded.model.train()
    digest = hashlib.sha256()
    for _ in range(6):
        digest.update(pipeline.progress(batches).loss.numpy().tobytes())
    pipeline.pause()
    for shard in sharded.table_shards():
        digest.update(shard.weight.numpy().tobytes())
    for values in sharded.dense_state().values():
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def test_two_runs_are_equal_bit_for_bit_and_another_seed_is_not(env):
    first = fingerprint(env, seed=3)
    assert fingerprint(env, seed=3) == first
    assert fingerprint(env, seed=4) != first


def test_operators_that_differ_from_time_to_time_are_refused(env):
    assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
