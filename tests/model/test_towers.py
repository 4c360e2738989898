"""Towers side by side: batch norms at the same place wait together, and nothing else changes."""

import copy

import pytest
import torch

from recsys.model import dropout as dropout_file
from recsys.model.mlp import Tower, run_towers
from recsys.runtime import batch_norm
from recsys.runtime.batch_norm import GlobalBatchNorm, synchronise


@pytest.fixture
def exchanges(monkeypatch):
    """Let this process be one of two ranks, whose other holds the same rows; return its exchanges."""
    calls = []

    def of_all(own):
        calls.append("forward")
        return torch.stack([own, own])

    def over_all(sums_2S):
        calls.append("backward")
        return sums_2S.mul_(2)

    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "_of_all_ranks", of_all)
    monkeypatch.setattr(batch_norm, "_over_all_ranks", over_all)
    return calls


def two_towers(dropout, activation_on_last):
    torch.manual_seed(0)
    common = {"hidden_dims": [8, 4], "dropout": dropout, "batch_norm": True}
    first = Tower(in_dim=5, activation_on_last=activation_on_last, **common)
    second = Tower(in_dim=3, **common)
    synchronise(first)
    synchronise(second)
    return [first, second]


def results(towers, inputs, run):
    """Outputs, gradients and running statistics of a step."""
    towers = copy.deepcopy(towers)
    inputs = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(3)
    outputs = run(towers, inputs)
    after = torch.rand(3)
    sum(output.square().sum() for output in outputs).backward()
    gradients = [p.grad for tower in towers for p in tower.parameters()]
    buffers = [buffer for tower in towers for buffer in tower.buffers()]
    return [*outputs, *(x.grad for x in inputs), *gradients, *buffers, after]


@pytest.mark.parametrize("draws_in_a_row", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("activation_on_last", [False, True])
def test_side_by_side_is_one_after_the_other_in_fewer_exchanges(
    exchanges, monkeypatch, activation_on_last, dropout, draws_in_a_row
):
    monkeypatch.setattr(dropout_file, "_DRAWS_IN_A_ROW", draws_in_a_row)
    towers = two_towers(dropout, activation_on_last)
    inputs = [torch.randn(6, 5), torch.randn(6, 3)]
    alone = results(
        towers, inputs, lambda towers, xs: [t(x) for t, x in zip(towers, xs, strict=True)]
    )
    num_norms = 3 + activation_on_last
    assert len(exchanges) == 2 * num_norms
    exchanges.clear()
    together = results(towers, inputs, run_towers)
    # The last norm of the second tower has no other at its place where the first ends in a layer.
    assert len(exchanges) == 4
    for mine, theirs in zip(together, alone, strict=True):
        assert torch.equal(mine, theirs)


def test_towers_of_one_process_or_outside_of_training_run_one_after_the_other(
    exchanges, monkeypatch
):
    towers = two_towers(0.5, True)
    monkeypatch.setattr(GlobalBatchNorm, "forward_together", None)
    for tower in towers:
        tower.eval()
    run_towers(towers, [torch.randn(6, 5), torch.randn(6, 3)])
    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 1)
    for tower in towers:
        tower.train()
    run_towers(towers, [torch.randn(6, 5), torch.randn(6, 3)])
    assert exchanges == []
