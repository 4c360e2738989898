"""Batch norm over the rows of all ranks: every rank normalises by the same statistics.

Applied to a module that was written for one process, by recsys/sharding/apply.py and, to the image
encoder's network, by embedding/image/pretext.py. Weights, running statistics and their names in a
state dict stay the same.
Shapes: N values of a channel on this rank, C channels, R ranks.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

LOCAL = (nn.BatchNorm1d, nn.BatchNorm2d)
"""What is replaced."""


def synchronise(module: nn.Module) -> None:
    """Put a GlobalBatchNorm in the place of every batch norm below `module`."""
    for name, child in module.named_children():
        if isinstance(child, LOCAL):
            setattr(module, name, GlobalBatchNorm.taking_over(child))
        else:
            synchronise(child)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm (Ioffe and Szegedy 2015) with the mean and variance of the global batch.

    Ranks may hold different numbers of rows, or none. A global batch of a single value has no
    variance: it is normalised to 0 and leaves the running statistics as they are. Torch's own
    SyncBatchNorm runs on GPU only.
    """

    @classmethod
    def taking_over(cls, local: nn.BatchNorm1d | nn.BatchNorm2d) -> "GlobalBatchNorm":
        """Return the same layer with the same tensors."""
        new = cls(local.num_features, eps=local.eps, momentum=local.momentum)
        new.weight, new.bias = local.weight, local.bias
        new.running_mean, new.running_var = local.running_mean, local.running_var
        new.num_batches_tracked = local.num_batches_tracked
        new._forward_hooks.update(local._forward_hooks)
        return new.train(local.training)

    def _check_input_dim(self, input: torch.Tensor) -> None:
        assert input.dim() >= 2, "batch norm reads [B, C, ...]"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, C, ...] to the same shape."""
        if not self.training:
            return super().forward(input)
        has_rows = input.numel() > input.shape[1]  # more than one value of a channel
        if has_rows and dist.get_world_size() == 1:
            return super().forward(input)
        # Torch's kernels read bf16 as it is and channels where they lie, in a third of the passes.
        form = _NormaliseByKernels if has_rows and not input.is_cuda else _Normalise
        output, mean_C, variance_C, total = form.apply(input, self.weight, self.bias, self.eps)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            momentum = self.momentum * (total > 1)
            unbiased_C = variance_C * total / (total - 1).clamp_min(1)
            self.running_mean.add_(momentum * (mean_C - self.running_mean))
            self.running_var.add_(momentum * (unbiased_C - self.running_var))
            self.num_batches_tracked.add_(1)
        return output


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return (output, mean [C], biased variance [C], values of a channel over all ranks [])."""
        input, weight_C, bias_C, eps = inputs
        x = input.float()
        dims = [dim for dim in range(x.dim()) if dim != 1]
        count = x.numel() // x.shape[1]
        if count:
            variance_C, mean_C = torch.var_mean(x, dim=dims, correction=0)
        else:
            variance_C, mean_C = torch.zeros_like(weight_C), torch.zeros_like(weight_C)
        mean_C, variance_C, total = _of_global_batch(mean_C, variance_C, count)
        deviation_C = (variance_C + eps).sqrt()
        shape = [1, -1] + [1] * (x.dim() - 2)
        centred, scale = x - mean_C.view(shape), (weight_C / deviation_C).view(shape)
        output = torch.addcmul(bias_C.view(shape), centred, scale)
        ctx.save_for_backward(input, weight_C, mean_C, deviation_C, total)
        ctx.mark_non_differentiable(mean_C, variance_C, total)
        return output.to(input.dtype), mean_C, variance_C, total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        input, weight_C, mean_C, deviation_C, total = ctx.saved_tensors
        dims = [dim for dim in range(input.dim()) if dim != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        grad = gradients[0].float()
        unit = (input.float() - mean_C.view(shape)) / deviation_C.view(shape)
        grad_bias_C, grad_weight_C = grad.sum(dim=dims), (grad * unit).sum(dim=dims)
        sums_2C = _over_all_ranks(torch.stack([grad_bias_C, grad_weight_C]))
        bias_mean, weight_mean = ((sum_C / total).view(shape) for sum_C in sums_2C)
        grad_input = (grad - bias_mean - unit * weight_mean) * (weight_C / deviation_C).view(shape)
        return grad_input.to(input.dtype), grad_weight_C, grad_bias_C, None


class _NormaliseByKernels(torch.autograd.Function):
    """The same as _Normalise on the kernels of torch's batch norm, of rows on a CPU."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return (output, mean [C], biased variance [C], values of a channel over all ranks [])."""
        input, weight_C, bias_C, eps = inputs
        unused_2C = torch.zeros_like(weight_C).repeat(2, 1)
        mean_C, variance_C = torch.ops.aten.batch_norm_update_stats(input, *unused_2C, 0.0)
        count = input.numel() // len(mean_C)
        mean_C, variance_C, total = _of_global_batch(mean_C, variance_C, count)
        output = _affine(input, mean_C, variance_C, weight_C, bias_C, eps)
        ctx.save_for_backward(input, weight_C, mean_C, variance_C, total)
        ctx.eps, ctx.count = eps, count
        ctx.mark_non_differentiable(mean_C, variance_C, total)
        return output, mean_C, variance_C, total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        input, weight_C, mean_C, variance_C, total = ctx.saved_tensors
        inverse_C = (variance_C + ctx.eps).rsqrt()
        # The kernel takes the means of this rank's gradients; those of the global batch are put right.
        grad_input, grad_weight_C, grad_bias_C = torch.ops.aten.native_batch_norm_backward(
            gradients[0], input, weight_C, None, None, mean_C, inverse_C, True, ctx.eps, [True] * 3
        )
        if dist.get_world_size() > 1:
            own_2C = torch.stack([grad_bias_C, grad_weight_C])
            missing_2C = own_2C / ctx.count - _over_all_ranks(own_2C.clone()) / total
            bias_C, scale_C = missing_2C * weight_C * inverse_C
            grad_input += _affine(input, mean_C, variance_C, scale_C, bias_C, ctx.eps)
        return grad_input, grad_weight_C, grad_bias_C, None


def _affine(
    input: torch.Tensor,
    mean_C: torch.Tensor,
    variance_C: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Return (input - mean) / deviation * weight + bias of every channel of [B, C, ...]."""
    return torch.native_batch_norm(input, weight_C, bias_C, mean_C, variance_C, False, 0.0, eps)[0]


def _of_global_batch(
    mean_C: torch.Tensor, variance_C: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean [C], biased variance [C] and the values of a channel [] over all ranks.

    Args:
        count: values of a channel on this rank, of which mean and variance are.
    """
    own_3C = torch.stack([mean_C, variance_C, torch.full_like(mean_C, count)]).double()
    mean_RC, variance_RC, count_RC = _of_all_ranks(own_3C).unbind(dim=1)
    total_C = count_RC.sum(dim=0)
    mean_C = (count_RC * mean_RC).sum(dim=0) / total_C
    # Chan et al. 1979: the variances within the ranks, and that of their means.
    spread_RC = variance_RC + (mean_RC - mean_C).square()
    variance_C = (count_RC * spread_RC).sum(dim=0) / total_C
    mean_C, variance_C, total = mean_C.float(), variance_C.float(), total_C[0].float()
    return mean_C, variance_C, total


def _of_all_ranks(own_3C: torch.Tensor) -> torch.Tensor:
    """Return every rank's tensor, [R, 3, C]."""
    parts = [torch.empty_like(own_3C) for _ in range(dist.get_world_size())]
    if len(parts) == 1:
        return own_3C[None]
    dist.all_gather(parts, own_3C)
    return torch.stack(parts)


def _over_all_ranks(sums_2C: torch.Tensor) -> torch.Tensor:
    """Add the sums of all ranks up in place, [2, C]."""
    if dist.get_world_size() > 1:
        dist.all_reduce(sums_2C)
    return sums_2C
