"""FinalMLP (Mao et al., arXiv 2304.00902): two MLPs over gated inputs, joined bilinearly.

h_i = MLP_i(g_i(context_i) * x0); logit = b + w1 . h1 + w2 . h2 + sum_a h1_a W_a h2_a.
The first gate reads user and context, the second the item; without item features (or without any
of the other side) that gate is a learned vector.
Shapes: B rows, N width of x0, G width of a gate's context, H width of a stream, A heads.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from recsys.errors import UserError
from recsys.model.baselines.inputs import Concatenation, unmeasured
from recsys.model.inputs import DenseInputs
from recsys.model.mlp import Tower


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

    def __init__(
        self,
        *,
        in_dim: int,
        first_context_dim: int,
        second_context_dim: int,
        first_dims: Sequence[int],
        second_dims: Sequence[int],
        gate_dim: int,
        num_heads: int,
        dropout: float,
        batch_norm: bool,
    ):
        """Args: gate_dim: hidden width of the gates; num_heads: parts the product is cut into.

        Raises:
            UserError: num_heads does not divide both streams' widths.
        """
        super().__init__()
        if first_dims[-1] % num_heads or second_dims[-1] % num_heads:
            raise UserError(
                f"model.cross_heads={num_heads}: expected a number that divides the last widths of "
                f"the two streams, {first_dims[-1]} and {second_dims[-1]} (model.deep_dims, "
                f"model.second_deep_dims)"
            )
        self.num_heads = num_heads
        self.first_gate, self.second_gate = (
            StreamGate(context_dim=context_dim, hidden_dim=gate_dim, out_dim=in_dim)
            for context_dim in (first_context_dim, second_context_dim)
        )
        self.first, self.second = (
            Tower(in_dim=in_dim, hidden_dims=dims, dropout=dropout, batch_norm=batch_norm)
            for dims in (first_dims, second_dims)
        )
        self.linear = nn.Linear(first_dims[-1] + second_dims[-1], 1)
        heads = (num_heads, first_dims[-1] // num_heads, second_dims[-1] // num_heads)
        self.bilinear = nn.Parameter(torch.empty(heads))
        # The authors' Xavier initialisation of one matrix [A H K, 1]; by heads it would be twice as
        # wide, and the product, not the streams, would make the first logits.
        nn.init.normal_(self.bilinear, std=math.sqrt(2 / (1 + self.bilinear.numel())))

    def forward(
        self, x_BN: torch.Tensor, first_BG: torch.Tensor, second_BG: torch.Tensor
    ) -> torch.Tensor:
        """Return logits [B]; `first_BG` and `second_BG` are what the two gates read."""
        first_BH = self.first(self.first_gate(first_BG) * x_BN)
        second_BH = self.second(self.second_gate(second_BG) * x_BN)
        linear_B = self.linear(torch.cat([first_BH, second_BH], dim=1))[:, 0]
        first_BAH = first_BH.unflatten(1, (self.num_heads, -1))
        second_BAH = second_BH.unflatten(1, (self.num_heads, -1))
        product_B = torch.einsum("bah,ahk,bak->b", first_BAH, self.bilinear, second_BAH)
        return linear_B + product_B


class FinalMlp(nn.Module):
    """Two streams over all inputs."""

    def __init__(self, *, x0: Concatenation, streams: TwoStreams):
        """Args: streams: reads x0; its gates read the user's and the item's part of it."""
        super().__init__()
        self.modality_names: list[str] = []
        self.x0 = x0
        self.streams = streams

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        user_BX, item_BY = self.x0.sides(inputs)
        return unmeasured(self.streams(torch.cat([user_BX, item_BY], dim=1), user_BX, item_BY))
