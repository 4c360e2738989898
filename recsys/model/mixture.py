"""Low-rank mixture of crosses (DCN-V2, arXiv 2008.13535): its equation, and its fast form.

Called by recsys/model/cross.py. Experts and gates share one product a layer, and so do the matrices C of
all experts, as blocks of one matrix. On a CPU the backward pass is written by hand, without autograd's
copies.
Shapes: B rows, N input width, K experts, R rank, P = K * R, G gates (K, or 0 for one expert).
"""

from collections.abc import Sequence
from typing import Any

import torch

from recsys.model.linear import (
    TENSOR_CORE_COLUMNS,
    in_autocast_precision,
    linear,
    product,
    tanh_product,
    weight_gradient,
)

Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""V [K, R, N], C [K, R, R], U [K, N, R] and b [N, 1]."""
_PER_LAYER = 4
_SAVED_PER_LAYER = 8


def low_rank_mixture(
    x_BN: torch.Tensor, layers: Sequence[Layer], gates_GN: torch.Tensor | None
) -> torch.Tensor:
    """Return x_L [B, N] of x_{l+1} = x_0 * (sum_k g_k U_k tanh(C_k tanh(V_k x_l)) + b) + x_l.

    g = softmax of the gates' products with x_l, or 1 without gates (one expert). They sum to 1, so that b
    needs no gate. Products are in the autocast precision where one is on.
    """
    if torch.compiler.is_compiling() or x_BN.device.type != "cpu":
        return _plain(x_BN, layers, gates_GN)
    given = [tensor for layer in layers for tensor in layer]
    if gates_GN is not None:
        given.append(gates_GN)
    parameters = in_autocast_precision(*given)
    with torch.autocast(x_BN.device.type, enabled=False):
        return _Mixture.apply(x_BN, len(layers), *parameters)


def _plain(
    x0_BN: torch.Tensor, layers: Sequence[Layer], gates_GN: torch.Tensor | None
) -> torch.Tensor:
    """The equation, with the experts of a layer in one product each, as the fast form has it.

    C is block-diagonal: three of four products are with zeros, and the gradient of C is one product, not
    one of 32 x 32 an expert, which leaves most of a GPU idle.
    """
    xl_BN = x0_BN
    for layer in layers:
        V_PN, C_PP, U_NP = _matrices(layer)
        num_experts, num_hidden = len(layer[0]), len(V_PN)
        hidden = linear(xl_BN, V_PN if gates_GN is None else _with_gates(V_PN, gates_GN))
        hidden_BP = torch.tanh(linear(torch.tanh(hidden[:, :num_hidden]), C_PP))
        if gates_GN is not None:
            gates_BK = torch.softmax(hidden[:, num_hidden : num_hidden + num_experts], dim=1)
            hidden_BP = _by_expert(hidden_BP, gates_BK.t())
        expert_BN = linear(hidden_BP, U_NP, layer[3][:, 0])
        xl_BN = torch.addcmul(xl_BN, x0_BN, expert_BN)
    return xl_BN


def _with_gates(V_PN: torch.Tensor, gates_GN: torch.Tensor) -> torch.Tensor:
    """Return V with the gates below it, and rows of zeros up to a width of fast products."""
    filling = gates_GN.new_zeros(-(len(V_PN) + len(gates_GN)) % TENSOR_CORE_COLUMNS, V_PN.shape[1])
    return torch.cat([V_PN, gates_GN, filling])


def _matrices(layer: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the factors of a layer's three products: [P, N], [P, P] and [N, P]."""
    V_KRN, C_KRR, U_KNR, _ = layer
    num_experts, rank, width = V_KRN.shape
    return (
        V_KRN.reshape(num_experts * rank, width),
        torch.block_diag(*C_KRR),
        U_KNR.permute(1, 0, 2).reshape(width, num_experts * rank),
    )


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return x_L [B, N] of x_0 [B, N], L, the tensors of L layers, and gates [G, N] if any."""
        x0_BN, num_layers, *parameters = inputs
        gates = parameters[_PER_LAYER * num_layers :]
        dtype = parameters[0].dtype
        xl_BN, saved = x0_BN, []
        for number in range(num_layers):
            layer = parameters[_PER_LAYER * number : _PER_LAYER * (number + 1)]
            V_PN, C_PP, U_NP = _matrices(layer)
            given_BN = xl_BN.to(dtype)
            first_BP = tanh_product(given_BN, V_PN)
            second_BP = tanh_product(first_BP, C_PP)
            gates_GB, gated_BP = None, second_BP
            if gates:
                # Over rows of gates, not columns: a softmax of four columns takes eight times as long.
                gates_GB = torch.softmax(product(given_BN, gates[0]).t(), dim=0)
                gated_BP = _by_expert(second_BP, gates_GB)
            expert_BN = product(gated_BP, U_NP, layer[3][:, 0])
            values = [given_BN, first_BP, second_BP, gates_GB, gated_BP, expert_BN]
            saved += [C_PP, U_NP, *values]
            xl_BN = torch.addcmul(xl_BN, x0_BN, expert_BN)
        ctx.save_for_backward(x0_BN, *parameters, *saved)
        ctx.num_layers = num_layers
        return xl_BN

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        num_layers = ctx.num_layers
        x0_BN, *rest = ctx.saved_tensors
        first_saved = len(rest) - _SAVED_PER_LAYER * num_layers
        parameters, saved = rest[:first_saved], rest[first_saved:]
        gates = parameters[_PER_LAYER * num_layers :]
        grad_BN, grad_x0_BN = gradients[0], torch.zeros_like(x0_BN)
        found: list[torch.Tensor] = []
        grad_gates: list[torch.Tensor] = []
        for number in reversed(range(num_layers)):
            layer = parameters[_PER_LAYER * number : _PER_LAYER * (number + 1)]
            *kept, expert_BN = saved[_SAVED_PER_LAYER * number : _SAVED_PER_LAYER * (number + 1)]
            grad_x0_BN.addcmul_(grad_BN, expert_BN)
            grad_expert_BN = (grad_BN * x0_BN).to(expert_BN.dtype)
            grad_given_BN, of_layer, of_gates = _layer_gradients(grad_expert_BN, layer, gates, kept)
            grad_gates = (
                [one + before for one, before in zip(of_gates, grad_gates, strict=True)]
                if grad_gates
                else of_gates
            )
            found = [*of_layer, *found]
            grad_BN = grad_BN + grad_given_BN
        return grad_x0_BN.add_(grad_BN), None, *found, *grad_gates


def _by_expert(values_BP: torch.Tensor, gates_KB: torch.Tensor) -> torch.Tensor:
    """Return the experts' values, each times the gate of its expert [B, P]."""
    values_BKR = values_BP.unflatten(1, (gates_KB.shape[0], -1))
    return (values_BKR * gates_KB.t()[:, :, None]).flatten(start_dim=1)


def _layer_gradients(
    grad_BN: torch.Tensor,
    layer: Sequence[torch.Tensor],
    gates: Sequence[torch.Tensor],
    kept: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Return the gradients of x_l [B, N], of V, C, U and b, and of the gates [G, N] if any.

    Args:
        grad_BN: of what is multiplied by x_0.
        kept: C and U as matrices, x_l, tanh(V x_l), tanh(C ...), gates and the gated values, as forward
            saved them.
    """
    C_PP, U_NP, given_BN, first_BP, second_BP, gates_GB, gated_BP = kept
    num_experts, rank, width = layer[0].shape
    into = layer[0].reshape(num_experts * rank, width)
    grad_U_NP = weight_gradient(grad_BN, gated_BP)
    grad_BP = product(grad_BN, U_NP.t())
    of_hidden = []
    if gates:
        by_expert_BKR = (grad_BP * second_BP).unflatten(1, (num_experts, rank))
        grad_GB = by_expert_BKR.sum(dim=2).t()
        grad_GB = torch.ops.aten._softmax_backward_data(grad_GB, gates_GB, 0, gates_GB.dtype)
        of_hidden.append(grad_GB.t())
        into = torch.cat([into, gates[0]])
        grad_BP = _by_expert(grad_BP, gates_GB)
    grad_BP = torch.ops.aten.tanh_backward(grad_BP, second_BP)
    grad_C_PP = weight_gradient(grad_BP, first_BP)
    grad_BP = torch.ops.aten.tanh_backward(product(grad_BP, C_PP.t()), first_BP)
    grad_hidden = torch.cat([grad_BP, *of_hidden], dim=1)
    grad_V_PN, *of_gates = weight_gradient(grad_hidden, given_BN).split([
        num_experts * rank,
        *[len(one) for one in gates],
    ])
    blocks_KRKR = grad_C_PP.reshape(num_experts, rank, num_experts, rank)
    of_layer = [
        grad_V_PN.reshape(num_experts, rank, width),
        blocks_KRKR.diagonal(dim1=0, dim2=2).permute(2, 0, 1),
        grad_U_NP.reshape(width, num_experts, rank).permute(1, 0, 2),
        grad_BN.sum(dim=0)[:, None],
    ]
    return product(grad_hidden, into.t()), of_layer, of_gates
