"""Batch norm of the global batch: a single row, hooks and names of its tensors."""

import numpy as np
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


def test_running_statistics_move_by_the_difference_as_runs_of_earlier_versions_moved_them(
    one_process, rng
):
    norm = nn.Sequential(nn.BatchNorm1d(64))
    synchronise(norm)
    before, mean_C, variance_C = torch.from_numpy(rng.random((3, 64)).astype(np.float32))
    norm[0].running_mean.copy_(before)
    norm[0].running_var.copy_(before)
    share = torch.tensor(0.1)
    norm[0].note(mean_C, variance_C, share)
    assert torch.equal(norm[0].running_mean, before + share * (mean_C - before))
    assert torch.equal(norm[0].running_var, before + share * (variance_C - before))
    assert not torch.equal(norm[0].running_mean, before.lerp(mean_C, share))


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


def beside_another_rank(monkeypatch, num_channels=4):
    """Let an exchange meet a second rank, and return how many exchanges there were."""
    statistics = [[0.3, -1.0, 2.0, 0.0], [1.5, 0.2, 1.0, 4.0]]
    sums = torch.tensor([[2.0, 1.0, -3.0, 0.5], [0.1, -2.0, 1.0, 3.0]])
    repeats = num_channels // 4
    other = torch.tensor([*statistics[0] * repeats, *statistics[1] * repeats, 7.0]).double()
    other_2S = sums.repeat(1, repeats)
    calls = []

    def of_all(own):
        calls.append("forward")
        return torch.stack([own, other])

    def over_all(sums_2S):
        calls.append("backward")
        return sums_2S.add_(other_2S)

    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "_of_all_ranks", of_all)
    monkeypatch.setattr(batch_norm, "_over_all_ranks", over_all)
    return calls


def norm_of_four(**kwargs):
    norm = GlobalBatchNorm(4, **kwargs)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1, 2, 0.5, -1]))
        norm.bias.copy_(torch.tensor([0, 1.0, 2, 3]))
    return norm


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_compute_the_equation_beside_another_rank(monkeypatch, shape, dtype):
    beside_another_rank(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    results = []
    for form in (batch_norm._Equation, batch_norm._Kernels):
        monkeypatch.setattr(batch_norm, "_form", lambda input, form=form: form)
        input = torch.randn(shape, generator=generator.manual_seed(1)).to(dtype).requires_grad_()
        norm = norm_of_four()
        output = norm(input)
        assert output.dtype == dtype and norm.num_batches_tracked == 1
        output.backward(torch.randn(shape, generator=generator.manual_seed(2)).to(dtype))
        running = [norm.running_mean, norm.running_var]
        results.append([output, *running, input.grad, norm.weight.grad, norm.bias.grad])
    loose = (
        {"rtol": 0.02, "atol": 0.03} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    )
    for number, (mine, theirs) in enumerate(zip(*results, strict=True)):
        # Statistics are fp32 whatever the input.
        close = {"rtol": 1e-5, "atol": 1e-6} if number in (1, 2) else loose
        torch.testing.assert_close(mine, theirs, **close)


def test_a_rank_is_normalised_as_the_whole_batch_is_in_one_process(monkeypatch):
    """By torch's own batch norm, with gradients by autograd: the second rank holds the other rows."""
    x_BC = torch.randn(11, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    grad_BC = torch.randn(11, 4, generator=torch.Generator().manual_seed(2))
    whole = torch.nn.BatchNorm1d(4)
    whole.load_state_dict(norm_of_four().state_dict())
    expected_BC = whole(x_BC)
    expected_BC.backward(grad_BC)
    rest_BC, rest_grad_BC = x_BC.detach()[6:], grad_BC[6:]
    variance_C, mean_C = torch.var_mean(rest_BC, dim=0, correction=0)
    unit_BC = (x_BC.detach() - x_BC.mean(0).detach()) / (x_BC.var(0, correction=0) + 1e-5).sqrt()
    sums_2C = torch.stack([rest_grad_BC.sum(0), (rest_grad_BC * unit_BC.detach()[6:]).sum(0)])
    other = torch.cat([mean_C, variance_C, torch.tensor([5.0])]).double()
    monkeypatch.setattr(batch_norm.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(batch_norm, "_of_all_ranks", lambda own: torch.stack([own, other]))
    monkeypatch.setattr(batch_norm, "_over_all_ranks", lambda own_2C: own_2C + sums_2C)
    own_BC = x_BC.detach()[:6].clone().requires_grad_()
    norm = norm_of_four()
    output_BC = norm(own_BC)
    output_BC.backward(grad_BC[:6])
    torch.testing.assert_close(output_BC, expected_BC[:6])
    torch.testing.assert_close(own_BC.grad, x_BC.grad[:6])
    torch.testing.assert_close(norm.weight.grad + sums_2C[1], whole.weight.grad)
    torch.testing.assert_close(norm.running_mean, whole.running_mean)
    torch.testing.assert_close(norm.running_var, whole.running_var)


def test_several_layers_share_one_exchange_each_way_and_are_what_each_is_alone(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(6, 4, generator=generator).requires_grad_() for _ in range(2)]
    results = []
    for together in (False, True):
        calls = beside_another_rank(monkeypatch, num_channels=4 + 4 * together)
        norms = [norm_of_four(eps=1e-5), norm_of_four(eps=0.1, momentum=0.3)]
        if together:
            outputs = GlobalBatchNorm.forward_together(norms, given)
        else:
            outputs = [norm(input) for norm, input in zip(norms, given, strict=True)]
        sum((output * output.detach().cos()).sum() for output in outputs).backward()
        assert len(calls) == (2 if together else 4)
        found = [*outputs, *(input.grad for input in given)]
        for norm in norms:
            found += [norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
        results.append(found)
        for input in given:
            input.grad = None
    for alone, shared in zip(*results, strict=True):
        assert torch.equal(alone, shared)
