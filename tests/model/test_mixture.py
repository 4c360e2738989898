"""The fast form of the low-rank mixture against its plain equation, in value and gradient."""

import pytest
import torch

from recsys.model.mixture import _plain, low_rank_mixture
from tests.model.test_linear import assert_same, tensors

B, N, R, LAYERS = 9, 6, 3, 2


def inputs_of(num_experts, dtype):
    shapes = [(num_experts, R, N), (num_experts, R, R), (num_experts, N, R), (N, 1)]
    x, *parameters = inputs = tensors(
        (B, N), *shapes * LAYERS, *[(num_experts, N)] * (num_experts > 1), dtype=dtype
    )
    layers = [tuple(parameters[4 * n : 4 * n + 4]) for n in range(LAYERS)]
    gates = parameters[-1] if num_experts > 1 else None
    return inputs, (x, layers, gates)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_experts", [1, 4])
def test_fast_form_equals_the_equation_in_value_and_gradient(num_experts, dtype):
    inputs, given = inputs_of(num_experts, dtype)
    loose = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    assert_same(low_rank_mixture(*given), _plain(*given), inputs, **loose)


def test_autocast_multiplies_in_bf16_and_adds_in_the_inputs_precision():
    inputs, given = inputs_of(4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = low_rank_mixture(*given)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, _plain(*given), rtol=0.1, atol=0.1)
    out.sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in inputs)


def test_batch_without_rows_has_gradients_of_zero():
    inputs, (x, layers, gates) = inputs_of(4, torch.float32)
    low_rank_mixture(x[:0], layers, gates).sum().backward()
    assert all(not tensor.grad.any() for tensor in inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("broken", ["V", "C"])
def test_nan_of_a_weight_makes_every_output_nan(broken, dtype):
    """A tanh that made 1 of it would let a broken model score."""
    _, (x, layers, gates) = inputs_of(4, dtype)
    with torch.no_grad():
        layers[0]["VC".index(broken)][0, 0, 0] = torch.nan
    assert low_rank_mixture(x, layers, gates).isnan().all()
