"""The matrix products of the dense part, with backward passes that do no more than they must.

Called by towers, projections and cross networks. On a CPU the products are oneDNN's. In fp32 torch takes
MKL's, which leave a tenth of an AMD processor's rate unused, and more than half of one with AVX-512; in
bf16 it takes oneDNN's, but copies the bias into every row first (LOG.md, 2026-11-26 and 2026-11-27).
Without AVX-512, MKL's take less time where a product is small, and where oneDNN needs a transposed copy.
Shapes: B rows, I input width, O output width, N width of a cross network, L its layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_ONEDNN_DTYPES: set[torch.dtype] = set()
if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _ONEDNN_DTYPES.add(torch.float32)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _ONEDNN_DTYPES.add(torch.bfloat16)
_HAS_AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
_FEWEST_MULTIPLICATIONS = 2**22
"""Smaller products are MKL's without AVX-512: of 16 rows, 128 by 128, oneDNN takes 38 us and MKL 12, of
1,024 rows, 64 by 32, 71 and 66 (LOG.md, 2026-11-28)."""
TENSOR_CORE_COLUMNS = 8
"""Widths of bf16 matrices that an NVIDIA GPU's fast products take are multiples of this."""


def linear(
    x_BI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x W^T + b [B, O], in the autocast precision where one is on; b may be None: none."""
    x_BI, weight_OI = _aligned(x_BI, weight_OI)
    if torch.compiler.is_compiling():
        return F.linear(x_BI, weight_OI, bias_O)
    x_BI, weight_OI = in_autocast_precision(x_BI, weight_OI)
    if bias_O is not None:
        (bias_O,) = in_autocast_precision(bias_O)
    with torch.autocast(x_BI.device.type, enabled=False):
        return _Linear.apply(x_BI, weight_OI, bias_O)


def linear_relu(x_BI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor) -> torch.Tensor:
    """Return relu(x W^T + b) [B, O], in the autocast precision where one is on."""
    x_BI, weight_OI = _aligned(x_BI, weight_OI)
    if torch.compiler.is_compiling():
        return torch.relu(F.linear(x_BI, weight_OI, bias_O))
    x_BI, weight_OI, bias_O = in_autocast_precision(x_BI, weight_OI, bias_O)
    with torch.autocast(x_BI.device.type, enabled=False):
        return _LinearRelu.apply(x_BI, weight_OI, bias_O)


def full_cross(
    x_BN: torch.Tensor, kernels_LNN: list[torch.Tensor], biases_LN1: list[torch.Tensor]
) -> torch.Tensor:
    """Return x_L [B, N] of x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, in the autocast precision."""
    if torch.compiler.is_compiling():
        xl_BN = x_BN
        for kernel_NN, bias_N1 in zip(kernels_LNN, biases_LN1, strict=True):
            xl_BN = torch.addcmul(xl_BN, x_BN, F.linear(xl_BN, kernel_NN, bias_N1[:, 0]))
        return xl_BN
    x_BN, *parameters = in_autocast_precision(x_BN, *kernels_LNN, *biases_LN1)
    with torch.autocast(x_BN.device.type, enabled=False):
        return _FullCross.apply(x_BN, *parameters)


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return [B, .] tensors side by side; a single one that is not empty is itself, uncopied."""
    filled = [part for part in parts if part.shape[1]] or list(parts[:1])
    return filled[0] if len(filled) == 1 else torch.cat(filled, dim=1)


def linear_of_joined(parts: Sequence[torch.Tensor], layer: nn.Linear) -> torch.Tensor:
    """Return layer(parts side by side) [B, O] without putting them side by side."""
    weights_OI = layer.weight.split([part.shape[1] for part in parts], dim=1)
    out_BO = F.linear(parts[0], weights_OI[0], layer.bias)
    for part_BI, weight_OI in zip(parts[1:], weights_OI[1:], strict=True):
        out_BO = out_BO + F.linear(part_BI, weight_OI)
    return out_BO


def _aligned(x_BI: torch.Tensor, weight_OI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both with columns of zeros behind them, where a GPU multiplies bf16 of an odd width.

    Products of such widths run on slower kernels (LOG.md, 2026-11-27).
    """
    missing = -x_BI.shape[1] % TENSOR_CORE_COLUMNS
    if not missing or x_BI.device.type != "cuda" or not torch.is_autocast_enabled("cuda"):
        return x_BI, weight_OI
    return F.pad(x_BI, (0, missing)), F.pad(weight_OI, (0, missing))


def in_autocast_precision(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors in the precision of autocast, where that is on; shapes [...] stay."""
    device_type = tensors[0].device.type
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _onednn(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in _ONEDNN_DTYPES


def product(
    x_BI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> torch.Tensor:
    """x W^T + b [B, O], without a gradient; W may be a transposed view."""
    many = _HAS_AVX512 or x_BI.numel() * weight_OI.shape[0] >= _FEWEST_MULTIPLICATIONS
    if many and _onednn(x_BI):
        return torch.ops.mkldnn._linear_pointwise(x_BI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_BI, weight_OI, bias_O)


def tanh_product(x_BI: torch.Tensor, weight_OI: torch.Tensor) -> torch.Tensor:
    """tanh(x W^T) [B, O], without a gradient."""
    if not _onednn(x_BI):
        return F.linear(x_BI, weight_OI).tanh_()
    if _HAS_AVX512:
        # torch's own tanh behind the product takes 1.7 times as long in all (LOG.md, 2026-11-27).
        return torch.ops.mkldnn._linear_pointwise(x_BI, weight_OI, None, "tanh", [], "")
    if x_BI.dtype != torch.float32:
        # The sigmoid's bf16 numbers about 0.5 are 0.002 apart: it would make 0 of small values.
        return product(x_BI, weight_OI).tanh_()
    # Elsewhere either tanh takes as long as the product. By the sigmoid, exact to 2e-7, it takes half
    # of that (LOG.md, 2026-11-28).
    return product(x_BI, weight_OI).mul_(2).sigmoid_().mul_(2).sub_(1)


def weight_gradient(grad_BO: torch.Tensor, x_BI: torch.Tensor) -> torch.Tensor:
    """grad^T x [O, I], without a gradient."""
    # A batch of padding alone has nothing to sum, which oneDNN refuses.
    if (_HAS_AVX512 or x_BI.dtype != torch.float32) and _onednn(x_BI) and len(x_BI):
        # oneDNN reads the rows of its second factor transposed, if they are contiguous; of any other
        # transposed matrix it copies one value after the other.
        return product(grad_BO.t().contiguous(), x_BI.contiguous().t())
    return grad_BO.t() @ x_BI


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return x W^T + b [B, O]."""
        x_BI, weight_OI, bias_O = inputs
        ctx.save_for_backward(x_BI, weight_OI)
        return product(x_BI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x_BI, weight_OI = ctx.saved_tensors
        grad_BO = gradients[0]
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad_BO, weight_OI.t()) if needs_x else None,
            weight_gradient(grad_BO, x_BI) if needs_weight else None,
            grad_BO.sum(dim=0) if needs_bias else None,
        )


class _LinearRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return relu(x W^T + b) [B, O]."""
        x_BI, weight_OI, bias_O = inputs
        # Not oneDNN's own relu behind the product: it makes 0 of NaN, and a broken model would score.
        y_BO = product(x_BI, weight_OI, bias_O).relu_()
        ctx.save_for_backward(x_BI, weight_OI, y_BO)
        return y_BO

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x_BI, weight_OI, y_BO = ctx.saved_tensors
        grad_BO = torch.ops.aten.threshold_backward(gradients[0], y_BO, 0)
        grad_x_BI = product(grad_BO, weight_OI.t()) if ctx.needs_input_grad[0] else None
        return grad_x_BI, weight_gradient(grad_BO, x_BI), grad_BO.sum(dim=0)


class _FullCross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return x_L [B, N] of x_0 [B, N], L kernels [N, N] and L biases [N, 1]."""
        x0_BN, *parameters = inputs
        num_layers = len(parameters) // 2
        xl_BN, saved = x0_BN, []
        for kernel_NN, bias_N1 in zip(
            parameters[:num_layers], parameters[num_layers:], strict=True
        ):
            gate_BN = product(xl_BN, kernel_NN, bias_N1[:, 0])
            saved += [xl_BN, gate_BN]
            xl_BN = torch.addcmul(xl_BN, x0_BN, gate_BN)
        ctx.save_for_backward(x0_BN, *parameters[:num_layers], *saved)
        ctx.num_layers = num_layers
        return xl_BN

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        num_layers = ctx.num_layers
        x0_BN, *rest = ctx.saved_tensors
        kernels, saved = rest[:num_layers], rest[num_layers:]
        grad_BN = gradients[0]
        grad_x0_BN = None
        grad_kernels, grad_biases = [], []
        for layer in reversed(range(num_layers)):
            xl_BN, gate_BN = saved[2 * layer], saved[2 * layer + 1]
            grad_gate_BN = grad_BN * x0_BN
            if grad_x0_BN is None:
                grad_x0_BN = grad_BN * gate_BN
            else:
                grad_x0_BN = grad_x0_BN.addcmul_(grad_BN, gate_BN)
            grad_kernels.append(weight_gradient(grad_gate_BN, xl_BN))
            grad_biases.append(grad_gate_BN.sum(dim=0)[:, None])
            grad_BN = product(grad_gate_BN, kernels[layer].t()).add_(grad_BN)
        assert grad_x0_BN is not None, "a cross network has a layer"
        return grad_BN.add_(grad_x0_BN), *reversed(grad_kernels), *reversed(grad_biases)
