"""Products within rows, of a vector or weights with the modalities of the same row.

Called by the fusion (recsys/model/fusion.py) and by UMAIR-FPS. torch.einsum makes batched products of a
single vector a row of them, which are slow on a CPU, above all their gradients, and on a GPU no kernel of
its own: an outer product of a row takes 485 us for 1,024 rows as a batched product and 30 us as a
multiplication (LOG.md, 2026-11-27).
Shapes: B rows, M modalities, H width.
"""

from typing import Any

import torch
from torch.compiler import is_compiling, is_dynamo_compiling, is_exporting


def row_dots(vector_BH: torch.Tensor, modalities_BMH: torch.Tensor) -> torch.Tensor:
    """Return the inner products of a row's vector with its modalities [B, M].

    It is einsum("bh,bmh->bm"), in the common precision of both.
    """
    if _is_exporting():
        return torch.einsum("bh,bmh->bm", vector_BH, modalities_BMH)
    if is_compiling():
        return _dots(vector_BH, modalities_BMH)
    return _RowDots.apply(*_alike(vector_BH, modalities_BMH))


def row_sums(weights_BM: torch.Tensor, modalities_BMH: torch.Tensor) -> torch.Tensor:
    """Return the weighted sums of a row's modalities [B, H].

    It is einsum("bm,bmh->bh"), in the common precision of both.
    """
    if _is_exporting():
        return torch.einsum("bm,bmh->bh", weights_BM, modalities_BMH)
    if is_compiling():
        return _sums(weights_BM, modalities_BMH)
    return _RowSums.apply(*_alike(weights_BM, modalities_BMH))


def _is_exporting() -> bool:
    # A bundle's graphs keep the batched product, which recsys/bundle/graph.py knows. torch.compile may
    # answer that it exports too (torch 2.11 does), and a training step would multiply row by row.
    return is_exporting() and not is_dynamo_compiling()


def _alike(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Return both in the autocast precision where one is on, else in their common one."""
    device_type = tensors[0].device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    else:
        dtype = torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    return [tensor.to(dtype) for tensor in tensors]


def _dots(vector_BH: torch.Tensor, modalities_BMH: torch.Tensor) -> torch.Tensor:
    return (modalities_BMH * vector_BH[:, None, :]).sum(dim=2)


def _sums(weights_BM: torch.Tensor, modalities_BMH: torch.Tensor) -> torch.Tensor:
    return (modalities_BMH * weights_BM[:, :, None]).sum(dim=1)


class _RowDots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return the inner products [B, M]."""
        ctx.save_for_backward(*inputs)
        return _dots(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        vector_BH, modalities_BMH = ctx.saved_tensors
        grad_BM = gradients[0]
        return _sums(grad_BM, modalities_BMH), grad_BM[:, :, None] * vector_BH[:, None, :]


class _RowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return the weighted sums [B, H]."""
        ctx.save_for_backward(*inputs)
        return _sums(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weights_BM, modalities_BMH = ctx.saved_tensors
        grad_BH = gradients[0]
        return _dots(grad_BH, modalities_BMH), weights_BM[:, :, None] * grad_BH[:, None, :]
