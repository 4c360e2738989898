"""Plain concatenation: logit = w . MLP(x0) + b, all inputs side by side. Shapes: B rows."""

import torch
from torch import nn

from recsys.model.baselines.inputs import Concatenation, unmeasured
from recsys.model.inputs import DenseInputs
from recsys.model.mlp import Tower


class Concat(nn.Module):
    """A deep network and nothing else."""

    def __init__(self, *, x0: Concatenation, deep: Tower):
        """Args: deep: reads x0."""
        super().__init__()
        self.modality_names: list[str] = []
        self.x0 = x0
        self.deep = deep
        self.logit = nn.Linear(deep.out_dim, 1)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        return unmeasured(self.logit(self.deep(self.x0(inputs)))[:, 0])
