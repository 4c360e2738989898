"""Dropout draws torch's masks, from the same seed (recsys/model/dropout.py)."""

import pytest
import torch

from recsys.model import dropout as dropout_file
from recsys.model.dropout import Dropout


@pytest.mark.skipif(
    not dropout_file._DRAWS_IN_A_ROW, reason="torch draws masks by MKL here, and they stay torch's"
)
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_dropout_and_its_gradient_are_torchs_bit_for_bit(rate, dtype, transposed):
    x_BH = torch.randn(37, 19, dtype=dtype)
    x_BH = x_BH.t() if transposed else x_BH
    outputs, gradients, following = [], [], []
    for form in (Dropout(rate), torch.nn.Dropout(rate)):
        torch.manual_seed(3)
        given_BH = x_BH.clone().requires_grad_()
        y_BH = form(given_BH)
        y_BH.square().sum().backward()
        outputs.append(y_BH.detach())
        gradients.append(given_BH.grad)
        following.append(torch.rand(5))
    assert torch.equal(*outputs) and torch.equal(*gradients)
    assert torch.equal(*following), "as many random numbers are drawn"
    if 0 < rate < 1:
        assert outputs[0].count_nonzero() == pytest.approx((1 - rate) * x_BH.numel(), rel=0.2)


def test_what_is_kept_and_its_gradient_are_divided_by_their_share(monkeypatch):
    """By our masks alone, however torch draws its own."""
    monkeypatch.setattr(dropout_file, "_DRAWS_IN_A_ROW", True)
    monkeypatch.setattr(torch.nn.Dropout, "forward", None)
    torch.manual_seed(3)
    x_BH = torch.rand(200, 50).add_(1).requires_grad_()
    y_BH = Dropout(0.2)(x_BH)
    y_BH.sum().backward()
    kept_BH = y_BH.detach() != 0
    assert kept_BH.float().mean().item() == pytest.approx(0.8, abs=0.02)
    torch.testing.assert_close(y_BH.detach(), x_BH.detach() / 0.8 * kept_BH)
    torch.testing.assert_close(x_BH.grad, kept_BH / 0.8)


def test_nothing_is_dropped_outside_of_training():
    x_BH = torch.randn(3, 4)
    assert torch.equal(Dropout(0.5).eval()(x_BH), x_BH)
