"""DCN-V2 (Wang et al., arXiv 2008.13535): x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.

Parallel: logit = w . [x_L ; MLP(x_0)] + b. Stacked: logit = w . MLP(x_L) + b.
Shapes: B rows, N width of x0.
"""

import torch
from torch import nn

from recsys.model.baselines.inputs import Concatenation, unmeasured
from recsys.model.inputs import DenseInputs
from recsys.model.linear import linear_of_joined
from recsys.model.mlp import Tower


class DcnV2(nn.Module):
    """A cross network beside a deep network, or below it."""

    def __init__(self, *, x0: Concatenation, cross: nn.Module, deep: Tower, stacked: bool):
        """Args: cross: [B, N] to [B, N]; deep: reads x0, or what the cross network makes of it."""
        super().__init__()
        self.modality_names: list[str] = []
        self.x0 = x0
        self.cross = cross
        self.deep = deep
        self.stacked = stacked
        self.logit = nn.Linear(deep.out_dim + (0 if stacked else x0.out_dim), 1)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        x0_BN = self.x0(inputs)
        crossed_BN = self.cross(x0_BN)
        if self.stacked:
            return unmeasured(self.logit(self.deep(crossed_BN))[:, 0])
        return unmeasured(linear_of_joined([crossed_BN, self.deep(x0_BN)], self.logit)[:, 0])
