"""Cross networks: the batched mixture equals TorchRec's, unknown forms are refused."""

import pytest
import torch
from torchrec.modules.crossnet import CrossNet, LowRankMixtureCrossNet

from recsys.model.cross import BatchedMixtureCrossNet, FullCrossNet, build_cross


@pytest.mark.parametrize("num_experts", [1, 3])
def test_batched_mixture_equals_torchrecs_loop_in_value_and_gradient(num_experts):
    torch.manual_seed(0)
    sizes = {"num_layers": 2, "num_experts": num_experts, "low_rank": 3}
    loop = LowRankMixtureCrossNet(10, activation=torch.tanh, **sizes)
    batched = BatchedMixtureCrossNet(10, **sizes)
    batched.load_state_dict(loop.state_dict())
    x_BN = torch.randn(7, 10, requires_grad=True)
    y_BN = x_BN.detach().clone().requires_grad_()
    torch.testing.assert_close(batched(y_BN), loop(x_BN))
    loop(x_BN).square().sum().backward()
    batched(y_BN).square().sum().backward()
    torch.testing.assert_close(y_BN.grad, x_BN.grad)
    for mine, theirs in zip(batched.parameters(), loop.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_full_cross_equals_torchrecs_in_value_and_gradient():
    torch.manual_seed(0)
    theirs, mine = CrossNet(10, num_layers=3).double(), FullCrossNet(10, num_layers=3).double()
    for bias in theirs.bias:
        torch.nn.init.normal_(bias)
    mine.load_state_dict(theirs.state_dict())
    x_BN = torch.randn(7, 10, dtype=torch.float64, requires_grad=True)
    y_BN = x_BN.detach().clone().requires_grad_()
    torch.testing.assert_close(mine(y_BN), theirs(x_BN))
    theirs(x_BN).square().sum().backward()
    mine(y_BN).square().sum().backward()
    torch.testing.assert_close(y_BN.grad, x_BN.grad)
    for first, second in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


@pytest.mark.parametrize("form", ["low_rank_mixture", "low_rank", "full", "none"])
def test_every_form_keeps_the_width(form):
    cross = build_cross(form=form, in_dim=6, num_layers=2, rank=2, num_experts=2)
    assert cross(torch.randn(3, 6)).shape == (3, 6)
