"""xDeepFM (Lian et al., arXiv 1803.05170): a compressed interaction network (CIN) beside an MLP.

X^k_h = sum_{i,j} W^{k,h}_ij (X^{k-1}_i * X^0_j); p^k_h = sum_d X^k_hd;
logit = b + sum_i w_i x_i + w . [p^1; ...; p^K] + w' . MLP(X^0).
Shapes: B rows, F fields, D width of a field, H feature maps of a layer.
"""

from dataclasses import dataclass

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


class CompressedInteraction(nn.Module):
    """Explicit crosses of order 2, 3, ..., num_layers + 1, vector by vector."""

    def __init__(self, *, num_fields: int, num_layers: int, num_maps: int):
        """Args: num_maps: feature maps H of every layer."""
        super().__init__()
        before = [num_fields] + [num_maps] * (num_layers - 1)
        self.layers = nn.ModuleList(
            nn.Linear(maps * num_fields, num_maps, bias=False) for maps in before
        )
        self.out_dim = num_layers * num_maps

    def forward(self, fields_BFD: torch.Tensor) -> torch.Tensor:
        """Return the pooled maps of all layers [B, num_layers * H]."""
        maps_BHD, pooled = fields_BFD, []
        for layer in self.layers:
            products_BDHF = torch.einsum("bhd,bfd->bdhf", maps_BHD, fields_BFD)
            maps_BHD = layer(products_BDHF.flatten(start_dim=2)).transpose(1, 2)
            pooled.append(maps_BHD.sum(dim=2))
        return torch.cat(pooled, dim=1)


@dataclass(frozen=True, kw_only=True)
class XDeepFMConfig(DeepConfig):
    """Settings of xDeepFM."""

    name: str = "xdeepfm"
    """`xdeepfm`."""
    cross_layers: int = 2
    """Layers of the CIN."""
    cross_width: int = 16
    """Feature maps of a CIN layer."""


class XDeepFM(Baseline):
    """First-order terms, CIN and a deep network."""

    def __init__(self, config: XDeepFMConfig, sizes: InputSizes):
        """The deep network reads all fields side by side."""
        super().__init__(config, sizes)
        self.fields = Fields(self.sizes)
        self.first_order = FirstOrder(self.sizes)
        # Drawn before the CIN: with another order a seed would give other weights.
        deep = deep_network(config, self.fields.out_dim)
        self.interaction = CompressedInteraction(
            num_fields=self.fields.num_fields,
            num_layers=config.cross_layers,
            num_maps=config.cross_width,
        )
        self.deep = deep
        self.logit = nn.Linear(self.interaction.out_dim + deep.out_dim, 1, bias=False)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        fields_BFD = self.fields(inputs)
        deep_BH = self.deep(fields_BFD.flatten(start_dim=1))
        both_BC = torch.cat([self.interaction(fields_BFD), deep_BH], dim=1)
        return self.first_order(inputs) + self.logit(both_BC)[:, 0]


RANKERS = ((XDeepFMConfig, XDeepFM),)
