"""DCN-V2 (Wang et al., arXiv 2008.13535): x_{l+1} = x_0 * (W_l x_l + b_l) + x_l.

Parallel: logit = w . [x_L ; MLP(x_0)] + b. Stacked: logit = w . MLP(x_L) + b.
Shapes: B rows, N width of x0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from recsys.model.baselines.inputs import (
    Baseline,
    ConcatenationConfig,
    concatenation,
    deep_network,
)
from recsys.model.config import RankerConfig
from recsys.model.cross import CROSS_FORMS, build_cross
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.linear import linear_of_joined


@dataclass(frozen=True, kw_only=True)
class DcnV2Config(ConcatenationConfig):
    """Settings of DCN-V2, parallel."""

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **RankerConfig.CHOICES,
        "cross": CROSS_FORMS,
    }
    """Forms of the cross network."""
    STACKED: ClassVar[bool] = False
    """The deep network reads the cross network's output, not x0."""
    name: str = "dcn_v2"
    """`dcn_v2`, or `dcn_v2_stacked`."""
    cross: str = "full"
    """Form of the cross network (recsys/model/cross.py)."""
    cross_layers: int = 3
    """Layers of the cross network."""
    cross_rank: int = 32
    """Rank of the low-rank forms."""
    cross_experts: int = 4
    """Experts of the low-rank mixture."""


@dataclass(frozen=True, kw_only=True)
class StackedDcnV2Config(DcnV2Config):
    """Settings of DCN-V2, stacked."""

    STACKED: ClassVar[bool] = True
    """The deep network reads the cross network's output, not x0."""
    name: str = "dcn_v2_stacked"
    """`dcn_v2_stacked`."""


class DcnV2(Baseline):
    """A cross network beside a deep network, or below it."""

    def __init__(self, config: DcnV2Config, sizes: InputSizes):
        """The deep network reads x0 or, stacked, the cross network's output."""
        super().__init__(config, sizes)
        self.x0 = concatenation(config, self.sizes)
        width = self.x0.out_dim
        self.cross = build_cross(
            form=config.cross,
            in_dim=width,
            num_layers=config.cross_layers,
            rank=config.cross_rank,
            num_experts=config.cross_experts,
        )
        self.deep = deep_network(config, width)
        self.stacked = config.STACKED
        self.logit = nn.Linear(self.deep.out_dim + (0 if self.stacked else width), 1)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        x0_BN = self.x0(inputs)
        crossed_BN = self.cross(x0_BN)
        if self.stacked:
            return self.logit(self.deep(crossed_BN))[:, 0]
        return linear_of_joined([crossed_BN, self.deep(x0_BN)], self.logit)[:, 0]


RANKERS = ((DcnV2Config, DcnV2), (StackedDcnV2Config, DcnV2))
