"""FinalMLP (Mao et al., arXiv 2304.00902): two MLPs that see x0 through gates, joined bilinearly.

The first gate reads user and context, the second the item; without item features (or without any
of the other side) that gate is a learned vector. The equations stand in recsys/model/two_stream.py.
Shapes: B rows.
"""

import torch
from torch import nn

from recsys.model.baselines.inputs import Concatenation, unmeasured
from recsys.model.ranker import DenseInputs
from recsys.model.two_stream import TwoStreams


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
