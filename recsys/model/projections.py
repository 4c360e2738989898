"""Projections: linear maps of modality vectors into a common width, shared by items and interests.

Called by UMAIR-FPS and, through Concatenation, by baselines.
Shapes: B rows, E modality width, H common width, X width of the user input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from recsys.model.linear import (
    in_autocast_precision,
    joined,
    linear,
    linear_relu,
    product,
    weight_gradient,
)

Vector = tuple[torch.Tensor, torch.Tensor]
"""A vector [B, E] and whether it is there [B]."""


class Projections(nn.Module):
    """One linear map W_m per modality into a common width, for items and, shared, for interests."""

    def __init__(
        self,
        *,
        modality_dims: Mapping[str, int],
        interests: Sequence[str],
        dim: int,
        shared_projection: bool,
    ):
        """Args: interests: modality of every interest vector, in order; dim: the common width H."""
        super().__init__()
        self.linear = nn.ModuleDict({
            name: nn.Linear(width, dim) for name, width in modality_dims.items()
        })
        self.shared_projection = shared_projection
        self.interests = list(interests)
        self.interest_dim = sum(dim if shared_projection else modality_dims[m] for m in interests)

    def both(
        self,
        user_BX: torch.Tensor,
        interests: Sequence[Vector],
        modalities: Mapping[str, Vector],
    ) -> tuple[torch.Tensor, list[Vector]]:
        """Return what `user` and `items` return, [B, X] and [B, H], [B].

        On a CPU the items and the interests of a modality are rows of one product.
        """
        if not self.shared_projection or torch.compiler.is_compiling() or user_BX.is_cuda:
            return self.user(user_BX, interests), self.items(modalities)
        projected: list[Vector] = []
        tastes: dict[str, list[torch.Tensor]] = {}
        for name in self.linear:
            layer: Any = self.linear[name]
            item_BE, present_B = modalities[name]
            mine = [
                vector
                for modality, vector in zip(self.interests, interests, strict=True)
                if modality == name
            ]
            item_BH, *tastes[name] = project(layer.weight, layer.bias, item_BE, mine)
            projected.append((item_BH, present_B))
        return joined([user_BX, *(tastes[name].pop(0) for name in self.interests)]), projected

    def items(self, modalities: Mapping[str, Vector]) -> list[Vector]:
        """Return (ReLU(W_m e_m + b_m) [B, H], present [B]) of every modality, in order."""
        projected = []
        for name in self.linear:
            layer: Any = self.linear[name]
            vector_BE, present_B = modalities[name]
            projected.append((linear_relu(vector_BE, layer.weight, layer.bias), present_B))
        return projected

    def user(self, user_BX: torch.Tensor, interests: Sequence[Vector]) -> torch.Tensor:
        """Return the user input x [B, X]: user features beside the interest vectors.

        An empty history is a zero vector.
        """
        parts = [user_BX]
        for name, (vector_BE, present_B) in zip(self.interests, interests, strict=True):
            if self.shared_projection:
                layer: Any = self.linear[name]
                vector_BE = linear(vector_BE, layer.weight, layer.bias) * present_B[:, None]
            parts.append(vector_BE)
        return joined(parts)


def project(
    weight_HE: torch.Tensor,
    bias_H: torch.Tensor,
    item_BE: torch.Tensor,
    interests: Sequence[Vector],
) -> tuple[torch.Tensor, ...]:
    """Return ReLU(W e + b) of the item, then (W e + b) * present of every interest, each [B, H].

    One product of all of them, in the autocast precision where one is on.
    """
    vectors = [item_BE, *(vector_BE for vector_BE, _ in interests)]
    given = in_autocast_precision(weight_HE, bias_H, *vectors)
    with torch.autocast(item_BE.device.type, enabled=False):
        return _Project.apply(*given, *(present_B for _, present_B in interests))


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        """Return `project`'s [B, H] of W, b, vectors [B, E], and the presence [B] of interests."""
        weight_HE, bias_H, *rest = inputs
        num_vectors = (len(rest) + 1) // 2
        x_RE = torch.cat(rest[:num_vectors])
        y_RH = product(x_RE, weight_HE, bias_H)
        # By sizes: a batch without rows splits into as many parts.
        item_BH, *others = parts = y_RH.split([len(part) for part in rest[:num_vectors]])
        item_BH.relu_()
        for other_BH, present_B in zip(others, rest[num_vectors:], strict=True):
            other_BH.mul_(present_B[:, None])
        ctx.save_for_backward(weight_HE, x_RE, item_BH, *rest[num_vectors:])
        return parts

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weight_HE, x_RE, item_BH, *presents = ctx.saved_tensors
        grad_RH = torch.cat([
            torch.ops.aten.threshold_backward(gradients[0], item_BH, 0),
            *(
                grad_BH * present_B[:, None].to(grad_BH.dtype)
                for grad_BH, present_B in zip(gradients[1:], presents, strict=True)
            ),
        ])
        grads_x: Sequence[torch.Tensor | None] = [None] * len(gradients)
        if any(ctx.needs_input_grad[2:]):
            grads_x = product(grad_RH, weight_HE.t()).split([len(g) for g in gradients])
        of_parameters = weight_gradient(grad_RH, x_RE), grad_RH.sum(dim=0)
        return *of_parameters, *grads_x, *[None] * len(presents)
