"""Batch norm over the rows of all ranks: every rank normalises by the same statistics.

Applied to a module that was written for one process, by recsys/sharding/apply.py and, to the image
encoder's network, by embedding/image/pretext.py. Weights, running statistics and their names in a
state dict stay the same.
Shapes: N values of a channel on this rank, C channels, S channels of several layers, R ranks.
"""

from collections.abc import Sequence
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

    @property
    def exchanges(self) -> bool:
        """Whether a call waits for the other ranks."""
        return self.training and dist.get_world_size() > 1

    def _check_input_dim(self, input: torch.Tensor) -> None:
        assert input.dim() >= 2, "batch norm reads [B, C, ...]"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, C, ...] to the same shape."""
        if self.training and (self.exchanges or input.numel() <= input.shape[1]):
            return self.forward_together([self], [input])[0]
        return super().forward(input)

    @staticmethod
    def forward_together(
        norms: Sequence["GlobalBatchNorm"], inputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the outputs of several layers in training, [B, C, ...] as their inputs are.

        Their statistics take one exchange, and so do those of their gradients. All layers have as many
        values of a channel.
        """
        weights, biases = [norm.weight for norm in norms], [norm.bias for norm in norms]
        outputs: Sequence[torch.Tensor] = _Normalise.apply(norms, *inputs, *weights, *biases)
        return outputs

    def note(self, mean_C: torch.Tensor, unbiased_C: torch.Tensor, share: torch.Tensor) -> None:
        """Move the running statistics by a share [] of the way to a batch's mean and variance [C]."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        # Not lerp_, which rounds otherwise: runs of earlier versions are repeated bit for bit.
        self.running_mean.add_(share * (mean_C - self.running_mean))
        self.running_var.add_(share * (unbiased_C - self.running_var))
        self.num_batches_tracked.add_(1)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        """Return the outputs of K layers, of their inputs, their weights [C] and their biases [C]."""
        norms, *tensors = given
        num = len(norms)
        inputs, weights, biases = tensors[:num], tensors[num : 2 * num], tensors[2 * num :]
        form = _form(inputs[0])
        count = inputs[0].numel() // inputs[0].shape[1]
        own = [form.statistics(input) for input in inputs]
        mean_S, variance_S, total = _of_global_batch(
            torch.cat([mean_C for mean_C, _ in own]),
            torch.cat([variance_C for _, variance_C in own]),
            count,
        )
        sizes = [len(weight_C) for weight_C in weights]
        means, variances = mean_S.split(sizes), variance_S.split(sizes)
        unbiased = (variance_S * total / (total - 1).clamp_min(1)).split(sizes)
        outputs = []
        for number, norm in enumerate(norms):
            norm.note(means[number], unbiased[number], norm.momentum * (total > 1))
            input, of_batch = inputs[number], (means[number], variances[number])
            output = form.affine(input, *of_batch, weights[number], biases[number], norm.eps)
            outputs.append(output.to(input.dtype))
        ctx.save_for_backward(mean_S, variance_S, total, *inputs, *weights)
        ctx.epsilons, ctx.count, ctx.form, ctx.sizes = [n.eps for n in norms], count, form, sizes
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        mean_S, variance_S, total, *rest = ctx.saved_tensors
        form, num = ctx.form, len(gradients)
        inputs, weights = rest[:num], rest[num:]
        layers = list(
            zip(
                inputs,
                mean_S.split(ctx.sizes),
                variance_S.split(ctx.sizes),
                weights,
                ctx.epsilons,
                strict=True,
            )
        )
        own = [form.gradients(grad, *one) for grad, one in zip(gradients, layers, strict=True)]
        grads, grad_weights, grad_biases = zip(*own, strict=True)
        own_2S = torch.stack([torch.cat(grad_biases), torch.cat(grad_weights)])
        # Means that a form has taken are this rank's; those of the global batch are put right.
        taken_2S = own_2S / ctx.count if form.takes_means else torch.zeros_like(own_2S)
        missing_2S = taken_2S - _over_all_ranks(own_2S) / total
        grad_inputs = []
        for grad, missing_2C, (input, mean_C, variance_C, weight_C, eps) in zip(
            grads, missing_2S.split(ctx.sizes, dim=1), layers, strict=True
        ):
            bias_C, scale_C = missing_2C * weight_C * (variance_C + eps).rsqrt()
            of_means = form.affine(input, mean_C, variance_C, scale_C, bias_C, eps)
            grad_inputs.append(grad.add_(of_means).to(input.dtype))
        return None, *grad_inputs, *grad_weights, *grad_biases


class _Equation:
    """Batch norm as its equation says, for a GPU and for ranks with a single row or none."""

    takes_means = False
    """Whether `gradients` takes off the means over this rank's rows."""

    @staticmethod
    def statistics(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and biased variance [C]; zeros without rows."""
        x = input.float()
        if not x.numel():
            return x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
        variance_C, mean_C = torch.var_mean(x, dim=_all_but_channels(x), correction=0)
        return mean_C, variance_C

    @staticmethod
    def affine(
        input: torch.Tensor,
        mean_C: torch.Tensor,
        variance_C: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        """Return (input - mean) / deviation * weight + bias of every channel of [B, C, ...]."""
        shape = [1, -1] + [1] * (input.dim() - 2)
        scale = (weight_C / (variance_C + eps).sqrt()).view(shape)
        return torch.addcmul(bias_C.view(shape), input.float() - mean_C.view(shape), scale)

    @staticmethod
    def gradients(
        grad: torch.Tensor,
        input: torch.Tensor,
        mean_C: torch.Tensor,
        variance_C: torch.Tensor,
        weight_C: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of the input with given statistics [B, C, ...], of weight and bias [C]."""
        dims, shape = _all_but_channels(input), [1, -1] + [1] * (input.dim() - 2)
        inverse_C = (variance_C + eps).rsqrt()
        grad = grad.float()
        unit = (input.float() - mean_C.view(shape)) * inverse_C.view(shape)
        of_input = grad * (weight_C * inverse_C).view(shape)
        return of_input, (grad * unit).sum(dim=dims), grad.sum(dim=dims)


class _Kernels:
    """The same on the kernels of torch's batch norm, of rows on a CPU.

    They read bf16 as it is and channels where they lie, in a third of the passes.
    """

    takes_means = True
    """Whether `gradients` takes off the means over this rank's rows."""

    @staticmethod
    def statistics(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and biased variance [C]."""
        # Its running statistics, which nobody reads, let the kernel return those of bf16 in fp32.
        unused_C = input.new_empty(input.shape[1], dtype=torch.float32)
        mean_C, variance_C = torch.ops.aten.batch_norm_update_stats(input, unused_C, unused_C, 0.0)
        return mean_C, variance_C

    @staticmethod
    def affine(
        input: torch.Tensor,
        mean_C: torch.Tensor,
        variance_C: torch.Tensor,
        weight_C: torch.Tensor,
        bias_C: torch.Tensor,
        eps: float,
    ) -> torch.Tensor:
        """Return (input - mean) / deviation * weight + bias of every channel of [B, C, ...]."""
        return torch.native_batch_norm(
            input, weight_C, bias_C, mean_C, variance_C, False, 0.0, eps
        )[0]

    @staticmethod
    def gradients(
        grad: torch.Tensor,
        input: torch.Tensor,
        mean_C: torch.Tensor,
        variance_C: torch.Tensor,
        weight_C: torch.Tensor,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of the input less its means [B, C, ...], of weight and bias [C]."""
        inverse_C = (variance_C + eps).rsqrt()
        return torch.ops.aten.native_batch_norm_backward(
            grad, input, weight_C, None, None, mean_C, inverse_C, True, eps, [True] * 3
        )


def _form(input: torch.Tensor) -> type[_Equation] | type[_Kernels]:
    has_rows = input.numel() > input.shape[1]  # more than one value of a channel
    return _Kernels if has_rows and not input.is_cuda else _Equation


def _all_but_channels(input: torch.Tensor) -> list[int]:
    return [dim for dim in range(input.dim()) if dim != 1]


def _of_global_batch(
    mean_S: torch.Tensor, variance_S: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mean [S], biased variance [S] and the values of a channel [] over all ranks.

    Args:
        count: values of a channel on this rank, of which mean and variance are.
    """
    own = torch.cat([mean_S, variance_S, mean_S.new_full((1,), count)]).double()
    num_channels = len(mean_S)
    mean_RS, variance_RS, count_R1 = _of_all_ranks(own).split(
        [num_channels, num_channels, 1], dim=1
    )
    total = count_R1.sum()
    mean_S = (count_R1 * mean_RS).sum(dim=0) / total
    # Chan et al. 1979: the variances within the ranks, and that of their means.
    spread_RS = variance_RS + (mean_RS - mean_S).square()
    variance_S = (count_R1 * spread_RS).sum(dim=0) / total
    return mean_S.float(), variance_S.float(), total.float()


def _of_all_ranks(own: torch.Tensor) -> torch.Tensor:
    """Return every rank's tensor, [R, ...]."""
    num_ranks = dist.get_world_size()
    if num_ranks == 1:
        return own[None]
    every_R = own.new_empty(num_ranks, *own.shape)
    dist.all_gather(list(every_R.unbind()), own)
    return every_R


def _over_all_ranks(sums_2S: torch.Tensor) -> torch.Tensor:
    """Add the sums of all ranks up in place, [2, S]."""
    if dist.get_world_size() > 1:
        dist.all_reduce(sums_2S)
    return sums_2S
