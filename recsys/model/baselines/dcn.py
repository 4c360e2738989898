"""DCN (Wang et al., arXiv 1708.05123): x_{l+1} = x_0 (x_l . w_l) + b_l + x_l;
logit = w . [x_L ; MLP(x_0)] + b.

The cross layers are TorchRec's VectorCrossNet. Shapes: B rows, N width of x0.
"""

import torch
from torch import nn
from torchrec.modules.crossnet import VectorCrossNet

from recsys.model.baselines.inputs import Concatenation, unmeasured
from recsys.model.inputs import DenseInputs
from recsys.model.mlp import Tower


class Dcn(nn.Module):
    """Cross layers with one weight vector each, beside a deep network."""

    def __init__(self, *, x0: Concatenation, cross_layers: int, deep: Tower):
        """Args: deep: reads x0."""
        super().__init__()
        self.modality_names: list[str] = []
        self.x0 = x0
        self.cross = VectorCrossNet(x0.out_dim, cross_layers)
        self.deep = deep
        self.logit = nn.Linear(x0.out_dim + deep.out_dim, 1)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        x0_BN = self.x0(inputs)
        both_BC = torch.cat([self.cross(x0_BN), self.deep(x0_BN)], dim=1)
        return unmeasured(self.logit(both_BC)[:, 0])
