"""Gradients of the dense part: one norm whatever the pipeline, clipping by hand, names of what broke."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from recsys.model.build import batch_features
from recsys.run.assembly import plan_and_shard
from recsys.run.config import read_run_config
from recsys.sharding.pipeline import PlainPipeline, SparseDistPipeline, build_pipeline
from recsys.train.gradients import Gradients, check_finite, total_norm
from tests import tiny_world

SIZE = 32


def trained(env, pipeline="plain", max_norm=None, steps=4, sharding="table_wise"):
    """Train some steps; return (gradients, sharded, weights before)."""
    config = read_run_config({
        "model": {"embedding_dim": 8, "tower_dims": [16, 8], "deep_dims": [8]},
        "optim": {"dense_learning_rate": 0.01},
        "tables": {"user_id": {"sharding": sharding}, "item_id": {"sharding": "data_parallel"}},
        "train": {"global_batch_size": SIZE},
    })
    ranker, _, sharded = plan_and_shard(
        config=config, manifest=tiny_world.manifest(), vectors=tiny_world.vectors(), env=env
    )
    gradients = Gradients(sharded, max_norm=max_norm)
    features = batch_features(ranker)
    batches = (tiny_world.batch(range(SIZE), features, step) for step in range(steps))
    steps_of = build_pipeline(pipeline, sharded, env)
    sharded.model.train()
    for _ in range(steps):
        steps_of.progress(batches)
    steps_of.pause()
    return gradients, sharded


def test_both_pipelines_measure_every_step_and_the_same_norms(one_process):
    norms = [
        np.array(trained(one_process, pipeline)[0].take()) for pipeline in ("plain", "sparse_dist")
    ]
    assert norms[0].shape[0] == 4 and (norms[0] > 0).any(axis=1).all()
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


def test_pipeline_overlaps_by_itself_where_ranks_share_out_tables(one_process):
    of_two = dataclasses.replace(one_process, world_size=2)
    for sharding, kind in (("table_wise", SparseDistPipeline), ("data_parallel", PlainPipeline)):
        _, sharded = trained(one_process, steps=1, sharding=sharding)
        assert isinstance(build_pipeline("auto", sharded, one_process), PlainPipeline)
        assert isinstance(build_pipeline("auto", sharded, of_two), kind)


def test_norm_is_that_of_the_gradients_left_by_backward(one_process):
    gradients, sharded = trained(one_process, steps=1)
    left = [p.grad for group in sharded.dense_optimizer.param_groups for p in group["params"]]
    expected = math.sqrt(sum(float((g.double() ** 2).sum()) for g in left if g is not None))
    (norms_P,) = gradients.take()
    assert total_norm(norms_P) == pytest.approx(expected, rel=1e-5)
    assert gradients.take() == []
    assert len(gradients.names) == len(norms_P) == len(left)
    assert all(name.startswith("dense.") for name in gradients.names)


def test_longer_gradients_are_scaled_down_to_the_norm_asked_for(one_process):
    free, _ = trained(one_process, steps=1)
    norm = total_norm(free.take()[0])
    for max_norm, left in ((norm / 10, norm / 10), (norm * 10, norm)):
        gradients, sharded = trained(one_process, steps=1, max_norm=max_norm)
        assert total_norm(gradients.take()[0]) == pytest.approx(norm)  # as it was before clipping
        clipped = [
            p.grad for group in sharded.dense_optimizer.param_groups for p in group["params"]
        ]
        length = total_norm([float(g.norm()) for g in clipped if g is not None])
        assert length == pytest.approx(left, rel=1e-4)


def test_first_bad_step_is_named_with_its_parameters():
    names = ["dense.a", "dense.b", "dense.c", "dense.d"]
    check_finite([0.1, 0.2], [[1, 2, 3, 4]] * 2, names, 7)
    norms = [[1, 2, 3, 4], [1, math.inf, 3, math.nan], [math.nan] * 4]
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is 0.2 at step 8; the gradient of dense.b, dense.d is not finite; training",
    ):
        check_finite([0.1, 0.2, math.nan], norms, names, 7)
    with pytest.raises(FloatingPointError, match=r"nan at step 3; .*dense.c and 1 more is not"):
        check_finite([math.nan], [[math.nan] * 4], names, 3)
    with pytest.raises(FloatingPointError, match=r"the loss is inf at step 3; training stops"):
        check_finite([math.inf], [[1.0] * 4], names, 3)


def test_poisoned_weight_is_found_by_its_gradient(one_process):
    gradients, sharded = trained(one_process, steps=1)
    gradients.take()
    parameter = sharded.dense_optimizer.param_groups[0]["params"][0]
    parameter.grad = torch.full_like(parameter, math.nan)
    sharded.dense_optimizer.step()
    with pytest.raises(FloatingPointError, match=rf"step 5; the gradient of {gradients.names[0]} "):
        check_finite([0.5], gradients.take(), gradients.names, 5)


@pytest.mark.parametrize("given", [0.0, -1.0, math.nan])
def test_norm_that_is_none_is_refused(given):
    with pytest.raises(ValueError, match=r"optim.max_grad_norm=.*: expected above 0, or null"):
        read_run_config({"optim": {"max_grad_norm": given}})
