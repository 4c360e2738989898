"""Batch norm of the global batch: a single row, hooks and names of its tensors."""

import pytest
import torch
from torch import nn

from recsys.runtime import batch_norm
from recsys.runtime.batch_norm import GlobalBatchNorm, synchronise


def test_a_batch_of_one_row_is_normalised_to_zero_and_leaves_the_statistics(one_process):
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    synchronise(network)
    norm = network[1]
    norm.running_mean.fill_(5)
    norm.bias.data.fill_(0.5)
    out = network(torch.ones(1, 3))
    out.sum().backward()
    assert out.tolist() == [[0.5, 0.5]]
    assert norm.running_mean.tolist() == [5, 5] and norm.running_var.tolist() == [1, 1]
    assert network[0].weight.grad.tolist() == [[0, 0, 0]] * 2
    assert norm.bias.grad.tolist() == [1, 1] and norm.weight.grad.tolist() == [0, 0]


def test_it_takes_the_place_of_every_batch_norm_with_the_same_tensors(one_process):
    network = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)), nn.BatchNorm1d(4)).eval()
    seen = []
    network[0][0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    before = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    synchronise(network)
    assert isinstance(network[0][0], GlobalBatchNorm) and isinstance(network[1], GlobalBatchNorm)
    after = {name: id(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}
    assert after == before
    network[0](torch.ones(2, 4, 3, 3))
    assert seen == [(2, 4, 3, 3)] and not network[1].training


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_the_equation_beside_another_rank(monkeypatch, shape, dtype):
    other_3C = torch.tensor([[0.3, -1.0, 2.0, 0.0], [1.5, 0.2, 1.0, 4.0], [7.0] * 4]).double()
    other_2C = torch.tensor([[2.0, 1.0, -3.0, 0.5], [0.1, -2.0, 1.0, 3.0]])
    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "_of_all_ranks", lambda own_3C: torch.stack([own_3C, other_3C]))
    monkeypatch.setattr(batch_norm, "_over_all_ranks", lambda sums_2C: sums_2C.add_(other_2C))
    generator = torch.Generator().manual_seed(0)
    results = []
    for form in (batch_norm._Normalise, batch_norm._NormaliseByKernels):
        input = torch.randn(shape, generator=generator.manual_seed(1)).to(dtype).requires_grad_()
        weight, bias = (torch.tensor(v).requires_grad_() for v in ([1, 2, 0.5, -1], [0, 1.0, 2, 3]))
        output, mean_C, variance_C, total = form.apply(input, weight, bias, 1e-5)
        assert output.dtype == dtype and total == 7 + input.numel() / 4
        output.backward(torch.randn(shape, generator=generator.manual_seed(2)).to(dtype))
        results.append([output, mean_C, variance_C, input.grad, weight.grad, bias.grad])
    loose = (
        {"rtol": 0.02, "atol": 0.03} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    )
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, **loose)
