"""Products with hand-written backward passes against autograd's."""

import pytest
import torch
import torch.nn.functional as F

from recsys.model import linear as linear_file
from recsys.model.linear import (
    full_cross,
    joined,
    linear,
    linear_of_joined,
    linear_relu,
    product,
    tanh_product,
    weight_gradient,
)
from recsys.model.mixture import low_rank_mixture

B, IN, OUT, LAYERS = 9, 5, 7, 3


def plain_relu(x, weight, bias):
    return torch.relu(F.linear(x, weight, bias))


def plain_cross(x, kernels, biases):
    last = x
    for kernel, bias in zip(kernels, biases, strict=True):
        last = x * (last @ kernel.T + bias[:, 0]) + last
    return last


def tensors(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def gradients(out, inputs):
    weights = torch.arange(out.numel(), dtype=out.dtype).reshape(out.shape).cos()
    return torch.autograd.grad((out * weights).sum(), inputs)


def assert_same(first, second, inputs, **tolerance):
    torch.testing.assert_close(first, second, **tolerance)
    for mine, theirs in zip(gradients(first, inputs), gradients(second, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_relu_equals_autograds_in_value_and_gradient(dtype):
    x, weight, bias = inputs = tensors((B, IN), (OUT, IN), (OUT,), dtype=dtype)
    assert_same(linear_relu(x, weight, bias), plain_relu(x, weight, bias), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_cross_equals_autograds_in_value_and_gradient(dtype):
    x, *rest = inputs = tensors((B, IN), *[(IN, IN)] * LAYERS, *[(IN, 1)] * LAYERS, dtype=dtype)
    kernels, biases = rest[:LAYERS], rest[LAYERS:]
    loose = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    assert_same(full_cross(x, kernels, biases), plain_cross(x, kernels, biases), inputs, **loose)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_equals_autograds_in_value_and_gradient(dtype, has_bias):
    inputs = tensors((B, IN), (OUT, IN), (OUT,), dtype=dtype)[: 2 + has_bias]
    assert_same(linear(*inputs), F.linear(*inputs), inputs)


@pytest.mark.parametrize("has_avx512", [False, True])
@pytest.mark.parametrize("num_rows", [9, 1_024])
def test_products_agree_with_float64_in_the_forms_of_either_processor(
    monkeypatch, has_avx512, num_rows
):
    monkeypatch.setattr(linear_file, "_HAS_AVX512", has_avx512)
    with torch.no_grad():
        x, weight, bias, grad = tensors((num_rows, 80), (64, 80), (64,), (num_rows, 64))
        x64, weight64, bias64, grad64 = (t.double() for t in (x, weight, bias, grad))
        for mine, exact in (
            (product(x, weight, bias), x64 @ weight64.T + bias64),
            (product(grad, weight.t()), grad64 @ weight64),
            (tanh_product(x / 80, weight), torch.tanh(x64 / 80 @ weight64.T)),
            (weight_gradient(grad, x), grad64.T @ x64),
        ):
            assert (mine - exact).abs().max() < 2e-6 * exact.abs().max() + 2e-6


def test_tanh_in_bf16_keeps_small_values_without_avx512(monkeypatch):
    monkeypatch.setattr(linear_file, "_HAS_AVX512", False)
    monkeypatch.setattr(linear_file, "_onednn", lambda tensor: True)
    x = torch.tensor([[0.001], [0.01], [0.1]], dtype=torch.bfloat16)
    found = tanh_product(x, torch.ones(1, 1, dtype=torch.bfloat16))
    torch.testing.assert_close(found, torch.tanh(x), rtol=2**-7, atol=0)


@pytest.mark.parametrize("form", [linear, linear_relu])
def test_batch_without_rows_has_gradients_of_zero(form):
    x, weight, bias = inputs = tensors((0, IN), (OUT, IN), (OUT,))
    form(x, weight, bias).sum().backward()
    assert [tuple(tensor.grad.shape) for tensor in inputs] == [(0, IN), (OUT, IN), (OUT,)]
    assert not weight.grad.any() and not bias.grad.any()


def test_linear_of_a_slice_and_a_transposed_weight_is_taken_as_it_is():
    wide, weight, bias = tensors((B, IN + 3), (IN, OUT), (OUT,))
    x = wide[:, 2:-1]
    inputs = [wide, weight, bias]
    assert_same(linear(x, weight.t(), bias), F.linear(x, weight.t(), bias), inputs)


def test_input_without_gradient_gets_none_and_weights_theirs():
    x, weight, bias = tensors((B, IN), (OUT, IN), (OUT,))
    out = linear_relu(x.detach(), weight, bias)
    expected = plain_relu(x.detach(), weight, bias)
    assert_same(out, expected, [weight, bias])


def test_transposed_and_sliced_inputs_are_taken_as_they_are():
    wide, weight, bias = tensors((IN + 2, B), (OUT, IN), (OUT,))
    x = wide.t()[:, 1:-1]
    assert_same(linear_relu(x, weight, bias), plain_relu(x, weight, bias), [wide, weight, bias])


def test_autocast_computes_in_bf16_and_gives_fp32_gradients():
    x, *rest = inputs = tensors((B, IN), (IN, IN), (IN, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = full_cross(x, rest[:1], rest[1:])
        hidden = linear_relu(x, rest[0], rest[1][:, 0])
    assert out.dtype == hidden.dtype == torch.bfloat16
    expected = plain_cross(x, rest[:1], rest[1:])
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    for mine, theirs in zip(
        gradients(out.float(), inputs), gradients(expected, inputs), strict=True
    ):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_nan_stays_nan(dtype):
    """oneDNN's own relu makes 0 of it, and a broken input or gradient would not be seen behind it."""
    x, kernel, bias = tensors((B, IN), (IN, IN), (IN, 1), dtype=dtype)
    broken = x.detach().clone()
    broken[3] = torch.nan
    others = torch.arange(B) != 3
    for run in (
        lambda x: linear_relu(x, kernel, bias[:, 0]),
        lambda x: full_cross(x, [kernel], [bias]),
        lambda x: low_rank_mixture(x, [(kernel[None], kernel[None], kernel[None], bias)], None),
    ):
        out = run(broken)
        assert out[3].isnan().all() and not out[others].isnan().any()
        (grad,) = torch.autograd.grad(out.sum(), kernel)
        assert grad.isnan().all()
        out = run(x)
        reached = (out != 0).any(dim=1)
        (grad,) = torch.autograd.grad(out, x, torch.full_like(out, torch.nan))
        assert reached.any() and grad[reached].isnan().all()


def test_linear_of_joined_parts_equals_that_of_their_concatenation():
    first, second = inputs = tensors((B, 3), (B, 4))
    linear = torch.nn.Linear(7, 2)
    expected = linear(torch.cat([first, second], dim=1))
    assert_same(linear_of_joined([first, second], linear), expected, [*inputs, linear.weight])


def test_joining_skips_what_is_empty_and_copies_nothing_single():
    some, more, nothing = torch.ones(B, 2), torch.zeros(B, 1), torch.ones(B, 0)
    assert joined([nothing, some]) is some
    assert joined([nothing]) is nothing
    assert joined([some, nothing, more]).shape == (B, 3)
