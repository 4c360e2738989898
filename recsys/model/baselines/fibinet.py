"""FiBiNET (Huang et al., arXiv 1905.09433): fields weighed by a SENET, then bilinear products.

z_f = mean_d v_fd; a = ReLU(W2 ReLU(W1 z)); v'_f = a_f v_f;
p_ij = (W_i v_i) * v_j, q_ij the same of v' (form "field each");
logit = b + sum_i w_i x_i + w . MLP([p; q]).
Shapes: B rows, F fields, D width of a field, P pairs of fields.
"""

import torch
from torch import nn

from recsys.model.baselines.inputs import Fields, FirstOrder, unmeasured
from recsys.model.inputs import DenseInputs
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


class FiBiNet(nn.Module):
    """Bilinear products of the fields as they are and as the SENET weighs them."""

    def __init__(
        self,
        *,
        fields: Fields,
        first_order: FirstOrder,
        deep_dims: list[int],
        dropout: float,
        batch_norm: bool,
        reduction: int = 3,
    ):
        """Args: reduction: the SENET squeezes F weights to F / reduction (3 in the paper)."""
        super().__init__()
        self.modality_names: list[str] = []
        self.fields = fields
        self.first_order = first_order
        squeezed = max(1, fields.num_fields // reduction)
        self.senet = Tower(in_dim=fields.num_fields, hidden_dims=[squeezed, fields.num_fields])
        sizes = {"num_fields": fields.num_fields, "field_dim": fields.field_dim}
        self.plain = Bilinear(**sizes)
        self.weighed = Bilinear(**sizes)
        self.deep = Tower(
            in_dim=2 * self.plain.out_dim,
            hidden_dims=deep_dims,
            dropout=dropout,
            batch_norm=batch_norm,
        )
        self.logit = nn.Linear(self.deep.out_dim, 1, bias=False)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        fields_BFD = self.fields(inputs)
        weights_BF = self.senet(fields_BFD.mean(dim=2))
        weighed_BFD = fields_BFD * weights_BF[:, :, None]
        both_BC = torch.cat([self.plain(fields_BFD), self.weighed(weighed_BFD)], dim=1)
        return unmeasured(self.first_order(inputs) + self.logit(self.deep(both_BC))[:, 0])
