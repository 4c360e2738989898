"""DCN-V2 (arXiv 2008.13535), parallel: logit = w . [cross(x0) ; MLP(x0)] + b.

x0 is every sparse embedding, interest vector and projected modality vector side by side: the same
inputs that UMAIR-FPS sees, without user-aware fusion. Shapes: B rows, E modality width.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from recsys.model.interaction import build_cross
from recsys.model.ranker import DenseInputs, Projections
from recsys.model.towers import Tower


class DcnV2(nn.Module):
    """Cross network beside a deep network over the concatenated inputs."""

    def __init__(
        self,
        *,
        user_dim: int,
        item_dim: int,
        modality_dims: Mapping[str, int],
        interests: Sequence[str],
        shared_projection: bool,
        tower_dims: Sequence[int],
        cross: str,
        cross_layers: int,
        cross_rank: int,
        cross_experts: int,
        deep_dims: Sequence[int],
        dropout: float,
        batch_norm: bool,
    ):
        """Args: tower_dims: the last width is that of the projected modality vectors."""
        super().__init__()
        dim = tower_dims[-1]
        self.projections = Projections(
            modality_dims=modality_dims,
            interests=interests,
            dim=dim,
            shared_projection=shared_projection,
        )
        self.modality_names: list[str] = []
        in_dim = user_dim + item_dim + self.projections.interest_dim + dim * len(modality_dims)
        self.cross = build_cross(
            form=cross,
            in_dim=in_dim,
            num_layers=cross_layers,
            rank=cross_rank,
            num_experts=cross_experts,
        )
        self.deep = Tower(
            in_dim=in_dim, hidden_dims=deep_dims, dropout=dropout, batch_norm=batch_norm
        )
        self.logit = nn.Linear(in_dim + self.deep.out_dim, 1)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        parts = [self.projections(inputs), inputs.item_BY]
        for vector_BH, present_B in self.projections.items(inputs):
            parts.append(vector_BH * present_B[:, None])
        x0_BN = torch.cat(parts, dim=1)
        logits_B = self.logit(torch.cat([self.cross(x0_BN), self.deep(x0_BN)], dim=1))[:, 0]
        return logits_B, x0_BN.new_zeros(x0_BN.shape[0], 0)
