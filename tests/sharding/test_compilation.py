"""Compilation of a scorer: what it needs, and that it trains what the plain form trains."""

import copy

import pytest
import torch

from recsys.errors import UserError
from recsys.sharding.compilation import compile_scorer
from tests.model.whole_tables import batch_of, ranker_of


def test_graphs_without_a_cuda_device_are_refused():
    with pytest.raises(UserError, match=r"train.compile=graphs: CUDA graphs need an NVIDIA GPU"):
        compile_scorer(ranker_of("umair_fps").scorer, "graphs")


def test_cpu_without_a_compiler_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "my-compiler")
    with pytest.raises(UserError, match=r"none of my-compiler, clang\+\+ is on the PATH"):
        compile_scorer(ranker_of("umair_fps").scorer, "fused")


@pytest.mark.slow
def test_compiled_dense_part_has_the_losses_gradients_and_scores_of_the_plain_one():
    plain = ranker_of("umair_fps", umcm="mixture").train()
    fused = copy.deepcopy(plain)
    compile_scorer(fused.scorer, "fused")
    for step in range(3):
        batch = batch_of(plain, range(24), step=step)
        losses = [ranker(batch)[0] for ranker in (plain, fused)]
        torch.testing.assert_close(losses[1], losses[0])
        for loss in losses:
            loss.backward()
    for one, other in zip(plain.dense.parameters(), fused.dense.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)
    batch = batch_of(plain, range(7))
    with torch.no_grad():
        scores = [ranker.eval()(batch)[1].logits_B for ranker in (plain, fused)]
    assert torch.equal(scores[1], scores[0])
