"""Rewritten graphs: the output of the module that was exported, by fewer operators."""

from collections import Counter

import pytest
import torch
from torch import nn

from recsys.bundle.dense import padded_rows
from recsys.bundle.graph import as_function, rewrite
from recsys.model.cross import build_cross
from recsys.model.fusion import UMCM_FORMS

ROWS = 37


def rewritten(module, *inputs, many_rows=True):
    """Export a module, compare its rewritten graph with it, and count the graph's operators."""
    module = module.eval()
    shapes = tuple({0: torch.export.Dim("rows", min=2)} for _ in inputs)
    program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    rewritten_module = rewrite(program, many_rows=many_rows)
    count = Counter(_name(node.target) for node in rewritten_module.graph.nodes)
    graph = as_function(rewritten_module)
    for num_rows in (1, 2 * ROWS):  # other numbers of rows than the example's
        rows = [torch.cat([x, x.flip(0)])[:num_rows] for x in inputs]
        with torch.inference_mode():
            expected, found = module(*rows), graph(*rows)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    return count


def _name(target):
    """Name of an operator, be it called as aten.tanh.default or as torch.tanh."""
    return str(target).split(".")[1] if "." in str(target) else getattr(target, "__name__", target)


class Outputs(nn.Module):
    """A module whose one output is a tuple."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        """Return (output [B, ...],)."""
        return (self.inner(x),)


@pytest.mark.parametrize("many_rows", [False, True])
@pytest.mark.parametrize("form", ["low_rank_mixture", "low_rank", "full", "none"])
def test_a_rewritten_cross_network_computes_the_same(form, many_rows):
    cross = build_cross(form=form, in_dim=48, num_layers=2, rank=24, num_experts=3)
    for parameter in cross.parameters():
        nn.init.normal_(parameter, std=0.2)
    count = rewritten(Outputs(cross), torch.randn(ROWS, 48), many_rows=many_rows)
    if form == "low_rank_mixture":
        assert count["linear"] + count["matmul"] <= 8
        assert count["einsum"] == count["block_diag"] == 0, "experts by one product, made once"
        assert (count["_linear_pointwise"] == 6) == many_rows
        # The first tanh of a layer is of a product that the gates share; the second is part of its own.
        assert count["tanh"] == (2 if many_rows else 4)


class ByExpert(nn.Module):
    """The product by expert of bundles from before the mixture's matrices were block-diagonal."""

    def __init__(self):
        super().__init__()
        self.C_KRR = nn.Parameter(torch.randn(3, 24, 24) / 5)

    def forward(self, x_BKR):
        """Return (tanh of the products [B, K, R],)."""
        return (torch.tanh(torch.einsum("bkr,ksr->bks", x_BKR, self.C_KRR)),)


def test_a_product_by_expert_of_an_earlier_bundle_is_one_product():
    count = rewritten(ByExpert(), torch.randn(ROWS, 3, 24))
    assert count["_linear_pointwise"] == 1 and count["einsum"] == count["tanh"] == 0


@pytest.mark.parametrize("form", UMCM_FORMS)
def test_a_rewritten_fusion_computes_the_same(form):
    fusion = UMCM_FORMS[form](num_modalities=3, dim=8)
    present = (torch.rand(ROWS, 3) > 0.3).float()
    present[0] = 0
    count = rewritten(fusion, torch.randn(ROWS, 8), torch.randn(ROWS, 3, 8), present)
    if form == "attention":
        assert count["einsum"] == 0


def test_a_linear_layer_takes_its_bias_and_its_activation_with_it():
    tower = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 32))
    count = rewritten(Outputs(tower), torch.randn(ROWS, 64))
    assert count["_linear_pointwise"] == 2
    assert count["relu"] == count["dropout"] == 0


class Repeated(nn.Module):
    """The same sum twice, a sum of weights, and a value that is used before and after its activation."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.weight = nn.Parameter(torch.randn(64))

    def forward(self, x):
        """Return ([B, 64], [B, 64])."""
        hidden = self.linear(x)
        return torch.tanh(hidden) + hidden, (x + 1) * (x + 1) + self.weight.exp().sum()


def test_repetitions_and_operators_on_weights_are_run_once():
    count = rewritten(Repeated(), torch.randn(ROWS, 64))
    assert count["exp"] == count["sum"] == 0
    assert count["add"] == 3
    assert count["tanh"] == 1, "the value before the activation is needed too"


class Bilinear(nn.Module):
    """An einsum of three operands, and one that no rewriting knows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        """Return ([B], [B, 8])."""
        product = torch.einsum("bi,ij,bj->b", x, self.weight, x)
        return product, torch.einsum("bi,ij->bj", x, self.weight)


def test_other_sums_of_products_are_left_as_they_are():
    assert rewritten(Bilinear(), torch.randn(ROWS, 8))["einsum"] == 2


class InPlace(nn.Module):
    """Values that are changed after they were read."""

    def forward(self, x):
        """Return ([B, 4],)."""
        before = x + 1
        changed = x + 1
        changed.mul_(2)
        return (before + changed,)


def test_a_graph_that_changes_values_in_place_is_left_as_it_is():
    rewritten(InPlace(), torch.randn(ROWS, 4))


def test_numbers_of_rows_are_padded_to_few_by_an_eighth_at_most():
    padded = {n: padded_rows(n) for n in range(1, 20_000)}
    assert all(n <= found for n, found in padded.items())
    assert all(found <= 1.126 * n for n, found in padded.items() if n >= 256)
    assert len(set(padded.values())) < 70
