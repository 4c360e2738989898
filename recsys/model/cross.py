"""Feature crosses: DCN-V2 by TorchRec's cross networks (arXiv 2008.13535).

Shapes: B rows, N input width, K experts, R rank.
"""

import torch
from torch import nn
from torchrec.modules.crossnet import CrossNet, LowRankCrossNet, LowRankMixtureCrossNet

from recsys.model.linear import full_cross

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
        x0_BN = input
        xl_BN = input
        for layer in range(self._num_layers):
            V_KRN, U_KNR = self.V_kernels[layer], self.U_kernels[layer]
            hidden_BKR = self._activation(xl_BN @ V_KRN.reshape(num_experts * rank, width).T)
            hidden_BKR = hidden_BKR.reshape(-1, num_experts, rank)
            hidden_BKR = self._activation(
                torch.einsum("bkr,ksr->bks", hidden_BKR, self.C_kernels[layer])
            )
            if num_experts > 1:
                gates_BK = torch.cat([gate(xl_BN) for gate in self.gates], dim=1)
                hidden_BKR = hidden_BKR * torch.softmax(gates_BK, dim=1)[:, :, None]
            U_N_KR = U_KNR.permute(1, 0, 2).reshape(width, num_experts * rank)
            expert_BN = hidden_BKR.flatten(start_dim=1) @ U_N_KR.T
            xl_BN = x0_BN * (expert_BN + self.bias[layer][:, 0]) + xl_BN
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
