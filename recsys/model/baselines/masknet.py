"""MaskNet, parallel (Wang et al., arXiv 2102.07619): mask blocks side by side, then an MLP.

mask_k = W2 ReLU(W1 V); block_k = ReLU(LN(W (mask_k * LN_emb(V))));
logit = w . MLP([block_1; ...; block_K]) + b.
V are all fields side by side, LN_emb normalises every field by itself.
Shapes: B rows, F fields, D width of a field, N = F D, H width of a block.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from recsys.model.baselines.inputs import Baseline, DeepConfig, Fields, deep_network
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.mlp import Tower


class MaskBlock(nn.Module):
    """A layer whose input is multiplied by a mask that the instance itself decides."""

    def __init__(self, *, in_dim: int, out_dim: int, reduction: int):
        """Args: reduction: the mask's hidden layer is this many times as wide as its input."""
        super().__init__()
        self.mask = Tower(
            in_dim=in_dim, hidden_dims=[reduction * in_dim, in_dim], activation_on_last=False
        )
        self.hidden = nn.Linear(in_dim, out_dim, bias=False)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, plain_BN: torch.Tensor, normalised_BN: torch.Tensor) -> torch.Tensor:
        """Return the block's output [B, H]; the mask is made of `plain_BN`."""
        masked_BN = self.mask(plain_BN) * normalised_BN
        return torch.relu(self.norm(self.hidden(masked_BN)))


@dataclass(frozen=True, kw_only=True)
class MaskNetConfig(DeepConfig):
    """Settings of MaskNet, parallel."""

    REDUCTION: ClassVar[int] = 2
    """A mask's hidden layer is this many times as wide as its input, as in the paper's best model."""
    name: str = "masknet"
    """`masknet`."""
    cross_layers: int = 3
    """Mask blocks."""
    cross_width: int = 64
    """Width of a mask block."""
    deep_dims: list[int] = field(default_factory=lambda: [64, 32])
    """Hidden widths of the deep network."""
    first_order: bool = False
    """Add a first-order weight of every sparse feature to the logit."""


class MaskNet(Baseline):
    """Mask blocks over the field vectors, in parallel."""

    def __init__(self, config: MaskNetConfig, sizes: InputSizes):
        """The deep network reads all blocks side by side."""
        super().__init__(config, sizes)
        self.fields = Fields(self.sizes)
        self.norm = nn.LayerNorm(self.fields.field_dim)
        self.blocks = nn.ModuleList(
            MaskBlock(
                in_dim=self.fields.out_dim, out_dim=config.cross_width, reduction=config.REDUCTION
            )
            for _ in range(config.cross_layers)
        )
        self.deep = deep_network(config, config.cross_layers * config.cross_width)
        self.logit = nn.Linear(self.deep.out_dim, 1)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        fields_BFD = self.fields(inputs)
        plain_BN = fields_BFD.flatten(start_dim=1)
        normalised_BN = self.norm(fields_BFD).flatten(start_dim=1)
        blocks = [block(plain_BN, normalised_BN) for block in self.blocks]
        return self.logit(self.deep(torch.cat(blocks, dim=1)))[:, 0]


RANKERS = ((MaskNetConfig, MaskNet),)
