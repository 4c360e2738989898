"""DeepFM (Guo et al., arXiv 1703.04247): logit = y_FM + w . MLP([v_1; ...; v_F]).

Both parts read the same field vectors. Shapes: B rows, F fields, D width of a field.
"""

from dataclasses import dataclass

import torch
from torch import nn

from recsys.model.baselines.fm import second_order
from recsys.model.baselines.inputs import (
    Baseline,
    DeepConfig,
    Fields,
    FirstOrder,
    deep_network,
)
from recsys.model.inputs import DenseInputs, InputSizes


@dataclass(frozen=True, kw_only=True)
class DeepFMConfig(DeepConfig):
    """Settings of DeepFM."""

    name: str = "deepfm"
    """`deepfm`."""


class DeepFM(Baseline):
    """A factorization machine beside a deep network."""

    def __init__(self, config: DeepFMConfig, sizes: InputSizes):
        """The deep network reads all fields side by side."""
        super().__init__(config, sizes)
        self.fields = Fields(self.sizes)
        self.first_order = FirstOrder(self.sizes)
        self.deep = deep_network(config, self.fields.out_dim)
        self.logit = nn.Linear(self.deep.out_dim, 1, bias=False)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        fields_BFD = self.fields(inputs)
        deep_B = self.logit(self.deep(fields_BFD.flatten(start_dim=1)))[:, 0]
        return self.first_order(inputs) + second_order(fields_BFD) + deep_B


RANKERS = ((DeepFMConfig, DeepFM),)
