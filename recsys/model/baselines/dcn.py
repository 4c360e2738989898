"""DCN (Wang et al., arXiv 1708.05123): x_{l+1} = x_0 (x_l . w_l) + b_l + x_l;
logit = w . [x_L ; MLP(x_0)] + b.

The cross layers are TorchRec's VectorCrossNet. Shapes: B rows, N width of x0.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torchrec.modules.crossnet import VectorCrossNet

from recsys.model.baselines.inputs import (
    Baseline,
    ConcatenationConfig,
    concatenation,
    deep_network,
)
from recsys.model.inputs import DenseInputs, InputSizes


@dataclass(frozen=True, kw_only=True)
class DcnConfig(ConcatenationConfig):
    """Settings of DCN."""

    name: str = "dcn"
    """`dcn`."""
    cross_layers: int = 3
    """Cross layers."""


class Dcn(Baseline):
    """Cross layers with one weight vector each, beside a deep network."""

    def __init__(self, config: DcnConfig, sizes: InputSizes):
        """Both parts read x0."""
        super().__init__(config, sizes)
        self.x0 = concatenation(config, self.sizes)
        # Drawn before the cross layers: with another order a seed would give other weights.
        deep = deep_network(config, self.x0.out_dim)
        self.cross = VectorCrossNet(self.x0.out_dim, config.cross_layers)
        self.deep = deep
        self.logit = nn.Linear(self.x0.out_dim + deep.out_dim, 1)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        x0_BN = self.x0(inputs)
        both_BC = torch.cat([self.cross(x0_BN), self.deep(x0_BN)], dim=1)
        return self.logit(both_BC)[:, 0]


RANKERS = ((DcnConfig, Dcn),)
