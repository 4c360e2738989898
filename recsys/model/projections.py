"""Projections: linear maps of modality vectors into a common width, shared by items and interests.

Called by UMAIR-FPS and, through Concatenation, by baselines.
Shapes: B rows, E modality width, H common width, X width of the user input.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from recsys.model.linear import joined, linear, linear_relu


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

    def items(
        self, modalities: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (ReLU(W_m e_m + b_m) [B, H], present [B]) of every modality, in order."""
        projected = []
        for name in self.linear:
            layer: Any = self.linear[name]
            vector_BE, present_B = modalities[name]
            projected.append((linear_relu(vector_BE, layer.weight, layer.bias), present_B))
        return projected

    def user(
        self, user_BX: torch.Tensor, interests: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
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
