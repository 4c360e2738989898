"""Plain concatenation: logit = w . MLP(x0) + b, all inputs side by side. Shapes: B rows."""

from dataclasses import dataclass

import torch
from torch import nn

from recsys.model.baselines.inputs import (
    Baseline,
    ConcatenationConfig,
    concatenation,
    deep_network,
)
from recsys.model.inputs import DenseInputs, InputSizes


@dataclass(frozen=True, kw_only=True)
class ConcatConfig(ConcatenationConfig):
    """Settings of plain concatenation."""

    name: str = "concat"
    """`concat`."""


class Concat(Baseline):
    """A deep network and nothing else."""

    def __init__(self, config: ConcatConfig, sizes: InputSizes):
        """The deep network reads x0."""
        super().__init__(config, sizes)
        self.x0 = concatenation(config, self.sizes)
        self.deep = deep_network(config, self.x0.out_dim)
        self.logit = nn.Linear(self.deep.out_dim, 1)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        return self.logit(self.deep(self.x0(inputs)))[:, 0]


RANKERS = ((ConcatConfig, Concat),)
