"""FiBiNET (Huang et al., arXiv 1905.09433): fields weighed by a SENET, then bilinear products.

z_f = mean_d v_fd; a = ReLU(W2 ReLU(W1 z)); v'_f = a_f v_f;
p_ij = (W_i v_i) * v_j, q_ij the same of v' (form "field each");
logit = b + sum_i w_i x_i + w . MLP([p; q]).
Shapes: B rows, F fields, D width of a field, P pairs of fields.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from recsys.model.baselines.inputs import (
    Baseline,
    DeepConfig,
    Fields,
    FirstOrder,
    deep_network,
)
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.mlp import Tower


class Bilinear(nn.Module):
    """p_ij = (W_i v_i) * v_j for all i < j."""

    first_P: torch.Tensor
    second_P: torch.Tensor

    def __init__(self, *, num_fields: int, field_dim: int):
        """One matrix a field."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_fields, field_dim, field_dim))
        nn.init.xavier_normal_(self.weight)
        first, second = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("first_P", first, persistent=False)
        self.register_buffer("second_P", second, persistent=False)
        self.out_dim = len(first) * field_dim

    def forward(self, fields_BFD: torch.Tensor) -> torch.Tensor:
        """Return the products side by side [B, P * D]."""
        turned_BFD = torch.einsum("bfd,fde->bfe", fields_BFD, self.weight)
        products_BPD = turned_BFD[:, self.first_P] * fields_BFD[:, self.second_P]
        return products_BPD.flatten(start_dim=1)


@dataclass(frozen=True, kw_only=True)
class FiBiNetConfig(DeepConfig):
    """Settings of FiBiNET."""

    REDUCTION: ClassVar[int] = 3
    """The SENET squeezes F weights to F / 3, as in the paper."""
    name: str = "fibinet"
    """`fibinet`."""


class FiBiNet(Baseline):
    """Bilinear products of the fields as they are and as the SENET weighs them."""

    def __init__(self, config: FiBiNetConfig, sizes: InputSizes):
        """The deep network reads both sets of products."""
        super().__init__(config, sizes)
        self.fields = fields = Fields(self.sizes)
        self.first_order = FirstOrder(self.sizes)
        squeezed = max(1, fields.num_fields // config.REDUCTION)
        self.senet = Tower(in_dim=fields.num_fields, hidden_dims=[squeezed, fields.num_fields])
        self.plain, self.weighed = (
            Bilinear(num_fields=fields.num_fields, field_dim=fields.field_dim) for _ in range(2)
        )
        self.deep = deep_network(config, 2 * self.plain.out_dim)
        self.logit = nn.Linear(self.deep.out_dim, 1, bias=False)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        fields_BFD = self.fields(inputs)
        weights_BF = self.senet(fields_BFD.mean(dim=2))
        weighed_BFD = fields_BFD * weights_BF[:, :, None]
        both_BC = torch.cat([self.plain(fields_BFD), self.weighed(weighed_BFD)], dim=1)
        return self.first_order(inputs) + self.logit(self.deep(both_BC))[:, 0]


RANKERS = ((FiBiNetConfig, FiBiNet),)
