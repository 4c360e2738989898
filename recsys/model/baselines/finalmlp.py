"""FinalMLP (Mao et al., arXiv 2304.00902): two MLPs over gated inputs, joined bilinearly.

h_i = MLP_i(g_i(context_i) * x0); logit = b + w1 . h1 + w2 . h2 + sum_a h1_a W_a h2_a.
The first gate reads user and context, the second the item; without item features (or without any
of the other side) that gate is a learned vector.
Shapes: B rows, N width of x0, G width of a gate's context, H width of a stream, A heads.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from recsys.model.baselines.inputs import Baseline, ConcatenationConfig, concatenation
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.mlp import Tower, run_towers


@dataclass(frozen=True, kw_only=True)
class FinalMlpConfig(ConcatenationConfig):
    """Settings of FinalMLP."""

    MAY_BE_EMPTY: ClassVar[tuple[str, ...]] = ("second_deep_dims",)
    """Lists of widths that may have no entry."""
    name: str = "finalmlp"
    """`finalmlp`."""
    cross_heads: int = 2
    """Parts into which the streams are cut for their product."""
    cross_width: int = 64
    """Hidden width of the gates."""
    deep_dims: list[int] = field(default_factory=lambda: [128, 64])
    """Hidden widths of the first stream."""
    second_deep_dims: list[int] = field(default_factory=lambda: [64])
    """Hidden widths of the second stream; empty: those of the first."""

    @property
    def second_dims(self) -> list[int]:
        """Hidden widths of the second stream."""
        return self.second_deep_dims or self.deep_dims

    def problems(self) -> list[str]:
        """Return a text for everything that this model cannot be built with."""
        found = super().problems()
        if found:
            return found
        widths = self.deep_dims[-1], self.second_dims[-1]
        if all(width % self.cross_heads == 0 for width in widths):
            return []
        return [
            f"cross_heads={self.cross_heads}: expected a number that divides the last widths of the two "
            f"streams, {widths[0]} and {widths[1]} (model.deep_dims, model.second_deep_dims)"
        ]


class StreamGate(nn.Module):
    """Feature gate g = 2 sigmoid(MLP(context)); 1 leaves the input as it is."""

    def __init__(self, *, context_dim: int, hidden_dim: int, out_dim: int):
        """Args: context_dim: 0 for a gate that is the same for every row, a learned vector."""
        super().__init__()
        self.network: Tower | None = None
        if context_dim:
            self.network = Tower(
                in_dim=context_dim, hidden_dims=[hidden_dim, out_dim], activation_on_last=False
            )
        else:
            self.constant = nn.Parameter(torch.zeros(1, out_dim))

    def forward(self, context_BG: torch.Tensor) -> torch.Tensor:
        """Return the gate [B, N] (or [1, N] where it reads no context)."""
        raw = self.constant if self.network is None else self.network(context_BG)
        return 2 * torch.sigmoid(raw)


class TwoStreams(nn.Module):
    """h_i = MLP_i(g_i(context_i) * x); logit = b + w1 . h1 + w2 . h2 + sum_a h1_a W_a h2_a."""

    def __init__(self, config: FinalMlpConfig, *, in_dim: int, context_dims: tuple[int, int]):
        """Args: context_dims: widths of the contexts of the first and the second gate; 0 for none."""
        super().__init__()
        self.num_heads = num_heads = config.cross_heads
        self.first_gate, self.second_gate = (
            StreamGate(context_dim=context_dim, hidden_dim=config.cross_width, out_dim=in_dim)
            for context_dim in context_dims
        )
        self.first, self.second = (
            Tower(
                in_dim=in_dim,
                hidden_dims=dims,
                dropout=config.dropout,
                batch_norm=config.batch_norm,
            )
            for dims in (config.deep_dims, config.second_dims)
        )
        first_dim, second_dim = self.first.out_dim, self.second.out_dim
        self.linear = nn.Linear(first_dim + second_dim, 1)
        heads = (num_heads, first_dim // num_heads, second_dim // num_heads)
        self.bilinear = nn.Parameter(torch.empty(heads))
        # The authors' Xavier initialisation of one matrix [A H K, 1]; by heads it would be twice as
        # wide, and the product, not the streams, would make the first logits.
        nn.init.normal_(self.bilinear, std=math.sqrt(2 / (1 + self.bilinear.numel())))

    def forward(
        self, x_BN: torch.Tensor, first_BG: torch.Tensor, second_BG: torch.Tensor
    ) -> torch.Tensor:
        """Return logits [B]; `first_BG` and `second_BG` are the contexts of the two gates."""
        gated = [self.first_gate(first_BG) * x_BN, self.second_gate(second_BG) * x_BN]
        first_BH, second_BH = run_towers([self.first, self.second], gated)
        linear_B = self.linear(torch.cat([first_BH, second_BH], dim=1))[:, 0]
        first_BAH = first_BH.unflatten(1, (self.num_heads, -1))
        second_BAH = second_BH.unflatten(1, (self.num_heads, -1))
        product_B = torch.einsum("bah,ahk,bak->b", first_BAH, self.bilinear, second_BAH)
        return linear_B + product_B


class FinalMlp(Baseline):
    """Two streams over all inputs."""

    def __init__(self, config: FinalMlpConfig, sizes: InputSizes):
        """The gates read the user's and the item's part of x0."""
        super().__init__(config, sizes)
        self.x0 = x0 = concatenation(config, self.sizes)
        contexts = (x0.user_dim, x0.item_dim)
        self.streams = TwoStreams(config, in_dim=x0.out_dim, context_dims=contexts)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        user_BX, item_BY = self.x0.sides(inputs)
        return self.streams(torch.cat([user_BX, item_BY], dim=1), user_BX, item_BY)


RANKERS = ((FinalMlpConfig, FinalMlp),)
