"""DeepFM (Guo et al., arXiv 1703.04247): logit = y_FM + w . MLP([v_1; ...; v_F]).

Both parts read the same field vectors. Shapes: B rows, F fields, D width of a field.
"""

import torch
from torch import nn

from recsys.model.baselines.fm import second_order
from recsys.model.baselines.inputs import Fields, FirstOrder, unmeasured
from recsys.model.inputs import DenseInputs
from recsys.model.mlp import Tower


class DeepFM(nn.Module):
    """A factorization machine beside a deep network."""

    def __init__(self, *, fields: Fields, first_order: FirstOrder, deep: Tower):
        """Args: deep: reads all fields side by side."""
        super().__init__()
        self.modality_names: list[str] = []
        self.fields = fields
        self.first_order = first_order
        self.deep = deep
        self.logit = nn.Linear(deep.out_dim, 1, bias=False)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        fields_BFD = self.fields(inputs)
        deep_B = self.logit(self.deep(fields_BFD.flatten(start_dim=1)))[:, 0]
        return unmeasured(self.first_order(inputs) + second_order(fields_BFD) + deep_B)
