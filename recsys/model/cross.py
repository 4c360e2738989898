"""Feature crosses: DCN-V2 by TorchRec's cross networks (arXiv 2008.13535).

Shapes: B rows, N input width, K experts, R rank.
"""

from typing import Any

import torch
from torch import nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet, LowRankMixtureCrossNet

from recsys.model.linear import full_cross
from recsys.model.mixture import low_rank_mixture

CROSS_FORMS = ("low_rank_mixture", "low_rank", "full", "none")


class FullCrossNet(CrossNet):
    """TorchRec's CrossNet with one matrix product and one multiply-add a layer.

    Same parameters, same state-dict names, same output. TorchRec multiplies [N, N] by [B, N, 1],
    for which the batch is transposed and copied before and after each product.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, N] to [B, N]."""
        return full_cross(input, list(self.kernels), list(self.bias))  # type: ignore[arg-type]


class BatchedMixtureCrossNet(LowRankMixtureCrossNet):
    """TorchRec's LowRankMixtureCrossNet with its experts in one matrix product each.

    Same parameters, same state-dict names, same output. TorchRec loops over experts and multiplies
    [R, N] by [B, N, 1]; here all experts share three products of [B, .] matrices. The gates of a
    row sum to 1, so the gated sum of x0 * (u_k + b) is x0 * (gated sum of u_k + b), and the [B, N,
    K] tensor is never made.
    """

    def __init__(self, in_features: int, num_layers: int, *, num_experts: int, low_rank: int):
        """The activation is tanh."""
        super().__init__(
            in_features,
            num_layers,
            num_experts=num_experts,
            low_rank=low_rank,
            activation=torch.tanh,
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, N] to [B, N]."""
        parts: Any = (self.V_kernels, self.C_kernels, self.U_kernels, self.bias)
        gates: Any = [] if self.gates is None else [gate.weight for gate in self.gates]
        return low_rank_mixture(
            input, list(zip(*parts, strict=True)), torch.cat(gates) if gates else None
        )


def build_cross(
    *, form: str, in_dim: int, num_layers: int, rank: int, num_experts: int
) -> nn.Module:
    """Return the cross network called `form`, one of CROSS_FORMS: [B, in_dim] to [B, in_dim]."""
    if form == "low_rank_mixture":
        return BatchedMixtureCrossNet(in_dim, num_layers, num_experts=num_experts, low_rank=rank)
    if form == "low_rank":
        return LowRankCrossNet(in_dim, num_layers, low_rank=rank)
    if form == "full":
        return FullCrossNet(in_dim, num_layers)
    assert form == "none", f"{form} is none of {CROSS_FORMS}"
    return nn.Identity()
