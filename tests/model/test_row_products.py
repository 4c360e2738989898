"""Products within rows against torch.einsum, in value and gradient."""

import pytest
import torch

from recsys.model import row_products
from recsys.model.row_products import row_dots, row_sums
from tests.model.test_linear import assert_same, tensors

B, M, H = 5, 3, 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dots_of_a_row_equal_einsum(dtype):
    inputs = tensors((B, H), (B, M, H), dtype=dtype)
    assert_same(row_dots(*inputs), torch.einsum("bh,bmh->bm", *inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_of_a_row_equal_einsum(dtype):
    inputs = tensors((B, M), (B, M, H), dtype=dtype)
    assert_same(row_sums(*inputs), torch.einsum("bm,bmh->bh", *inputs), inputs)


def test_autocast_and_mixed_precisions_give_gradients_of_the_inputs_precision():
    weights, modalities = inputs = tensors((B, M), (B, M, H))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = row_sums(weights, modalities)
    assert out.dtype == torch.bfloat16
    expected = torch.einsum("bm,bmh->bh", *inputs)
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert weights.grad.dtype == modalities.grad.dtype == torch.float32
    assert row_dots(weights.new_ones(B, H), modalities.bfloat16()).dtype == torch.float32


def test_compiled_forms_are_the_same_equations():
    weights, modalities = tensors((B, M), (B, M, H))
    vector = modalities[:, 0]
    torch.testing.assert_close(row_products._dots(vector, modalities), row_dots(vector, modalities))
    torch.testing.assert_close(
        row_products._sums(weights, modalities), row_sums(weights, modalities)
    )


@pytest.mark.parametrize("function", [row_dots, row_sums])
def test_compiled_for_training_they_are_no_batched_products(function, monkeypatch):
    """torch 2.11 says to torch.compile that it exports; a GPU then takes 2 ms for 65,536 rows."""
    monkeypatch.setattr(row_products, "is_exporting", lambda: True)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    first = torch.ones(B, H) if function is row_dots else torch.ones(B, M)
    torch.compile(lambda *given: function(*given), backend=keep)(first, torch.ones(B, M, H))
    operators = {node.name.split("_")[0] for graph in graphs for node in graph.graph.nodes}
    assert "sum" in operators and "einsum" not in operators
