"""Dropout keeps its rate with 16 bits a number, and its masks follow torch's seed."""

import pytest
import torch

from recsys.model.dropout import Dropout


def masks_of_steps(num_steps, num_layers=2, rate=0.5):
    """Return the factors of every step and layer, one after the other [S, L, 64, 64]."""
    layers = [Dropout(rate) for _ in range(num_layers)]
    like_BH = torch.empty(64, 64)
    steps = [torch.stack([layer.factors(like_BH) for layer in layers]) for _ in range(num_steps)]
    return torch.stack(steps)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_what_is_kept_and_its_gradient_are_divided_by_their_share(rate, dtype, transposed):
    torch.manual_seed(3)
    x_BH = torch.rand(401, 999).add_(1).to(dtype)
    x_BH = (x_BH.t() if transposed else x_BH).requires_grad_()
    y_BH = Dropout(rate)(x_BH)
    y_BH.sum().backward()
    kept_BH = y_BH.detach() != 0
    deviation = (rate * (1 - rate) / x_BH.numel()) ** 0.5
    assert abs(kept_BH.double().mean().item() - (1 - rate)) < 4 * deviation + 2**-17
    # Shares are multiples of 2^-16, and bf16 has 8 bits.
    exact = {"rtol": 2e-4, "atol": 0} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 0}
    torch.testing.assert_close(y_BH.detach(), x_BH.detach() / (1 - rate) * kept_BH, **exact)
    torch.testing.assert_close(x_BH.grad, kept_BH.to(dtype) / (1 - rate), **exact)


@pytest.mark.parametrize("rate", [0.0, 1.0, 1e-7, 1 - 1e-7])
def test_rates_at_the_ends_give_finite_values(rate):
    torch.manual_seed(3)
    y_BH = Dropout(rate)(torch.ones(50, 50))
    assert torch.allclose(y_BH, torch.full((50, 50), float(rate < 0.5)), atol=1e-4)


def test_masks_of_layers_steps_and_places_are_independent():
    """A correlation of 4,096 fair draws has the deviation 1 / 64."""
    torch.manual_seed(5)
    masks_SLBH = masks_of_steps(8) - 1
    flat_NP = masks_SLBH.flatten(0, 1).flatten(1)
    correlations_NN = torch.corrcoef(flat_NP) - torch.eye(len(flat_NP))
    assert correlations_NN.abs().max() < 5 / 64
    for lag in (1, 2, 3, 4, 64):  # four neighbours are the bits of one draw
        shifted_NP = (flat_NP[:, lag:] * flat_NP[:, :-lag]).mean(dim=1)
        assert shifted_NP.abs().max() < 5 / 64
    assert masks_SLBH.mean(dim=(0, 1, 2)).abs().max() < 5 / (8 * 2 * 64) ** 0.5


def test_masks_follow_the_seed_and_go_on_from_the_generators_state():
    torch.manual_seed(7)
    whole_SLBH = masks_of_steps(3)
    torch.manual_seed(7)
    first_SLBH = masks_of_steps(1)
    state = torch.get_rng_state()
    torch.rand(10)
    torch.set_rng_state(state)
    assert torch.equal(torch.cat([first_SLBH, masks_of_steps(2)]), whole_SLBH)
    torch.manual_seed(8)
    assert not torch.equal(masks_of_steps(1), first_SLBH)


def test_nothing_is_dropped_outside_of_training_or_of_no_rows():
    x_BH = torch.randn(3, 4)
    assert torch.equal(Dropout(0.5).eval()(x_BH), x_BH)
    assert Dropout(0.5)(x_BH[:0]).shape == (0, 4)
