"""Feature crosses: DCN-V2 by TorchRec's cross networks (arXiv 2008.13535).

Shapes: B rows, N input width, K experts, R rank.
"""

import torch
from torch import nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet, LowRankMixtureCrossNet

from recsys.model.linear import full_cross, linear

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

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, N] to [B, N]."""
        num_experts, rank, width = self._num_experts, self._low_rank, self._in_features
        gates_KN = [gate.weight for gate in self.gates] if num_experts > 1 else []
        x0_BN = input
        xl_BN = input
        for layer in range(self._num_layers):
            V_KRN, U_KNR = self.V_kernels[layer], self.U_kernels[layer]
            # Experts and gates read the same rows: [K * R + K, N] is one factor.
            into = torch.cat([V_KRN.reshape(num_experts * rank, width), *gates_KN])
            hidden = linear(xl_BN, into)
            hidden_BKR = self._activation(hidden[:, : num_experts * rank])
            hidden_BKR = hidden_BKR.reshape(-1, num_experts, rank)
            hidden_BKR = self._activation(
                torch.einsum("bkr,ksr->bks", hidden_BKR, self.C_kernels[layer])
            )
            if num_experts > 1:
                gates_BK = torch.softmax(hidden[:, num_experts * rank :], dim=1)
                hidden_BKR = hidden_BKR * gates_BK[:, :, None]
            U_N_KR = U_KNR.permute(1, 0, 2).reshape(width, num_experts * rank)
            expert_BN = linear(hidden_BKR.flatten(start_dim=1), U_N_KR, self.bias[layer][:, 0])
            xl_BN = torch.addcmul(xl_BN, x0_BN, expert_BN)
        return xl_BN


def build_cross(
    *, form: str, in_dim: int, num_layers: int, rank: int, num_experts: int
) -> nn.Module:
    """Return the cross network called `form`, one of CROSS_FORMS: [B, in_dim] to [B, in_dim]."""
    if form == "low_rank_mixture":
        return BatchedMixtureCrossNet(
            in_dim, num_layers, num_experts=num_experts, low_rank=rank, activation=torch.tanh
        )
    if form == "low_rank":
        return LowRankCrossNet(in_dim, num_layers, low_rank=rank)
    if form == "full":
        return FullCrossNet(in_dim, num_layers)
    assert form == "none", f"{form} is none of {CROSS_FORMS}"
    return nn.Identity()
