"""AutoInt+ (Song et al., arXiv 1810.11921): multi-head self-attention over fields, beside an MLP.

a_mk = softmax_k(<Q v_m, K v_k>); v'_m = ReLU([sum_k a_mk V v_k for every head] + R v_m);
logit = b + sum_i w_i x_i + w . [v'_1; ...; v'_F] + w' . MLP([v_1; ...; v_F]).
Shapes: B rows, F fields, D width of a field, A heads, H width of a head.
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


class FieldAttention(nn.Module):
    """One interacting layer: every field attends to all fields of its own row."""

    def __init__(self, *, in_dim: int, num_heads: int, head_dim: int):
        """Q, K, V and R are linear maps without bias."""
        super().__init__()
        self.num_heads = num_heads
        self.out_dim = num_heads * head_dim
        self.query, self.key, self.value, self.residual = (
            nn.Linear(in_dim, self.out_dim, bias=False) for _ in range(4)
        )

    def forward(self, fields_BFD: torch.Tensor) -> torch.Tensor:
        """Map [B, F, D] to [B, F, A * H]."""
        query, key, value = (
            layer(fields_BFD).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, A, F, H]
            for layer in (self.query, self.key, self.value)
        )
        # Scale 1: the paper's scores are plain products.
        mixed_BAFH = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        mixed_BFC = mixed_BAFH.transpose(1, 2).flatten(start_dim=2)
        return torch.relu(mixed_BFC + self.residual(fields_BFD))


@dataclass(frozen=True, kw_only=True)
class AutoIntConfig(DeepConfig):
    """Settings of AutoInt+."""

    name: str = "autoint"
    """`autoint`."""
    cross_layers: int = 2
    """Attention layers."""
    cross_heads: int = 2
    """Heads of a layer."""
    cross_width: int = 16
    """Width of a head."""


class AutoInt(Baseline):
    """First-order terms, attention layers and a deep network."""

    def __init__(self, config: AutoIntConfig, sizes: InputSizes):
        """The deep network reads all fields side by side."""
        super().__init__(config, sizes)
        self.fields = Fields(self.sizes)
        self.first_order = FirstOrder(self.sizes)
        # Drawn before the attention: with another order a seed would give other weights.
        deep = deep_network(config, self.fields.out_dim)
        layers: list[FieldAttention] = []
        for _ in range(config.cross_layers):
            in_dim = layers[-1].out_dim if layers else self.fields.field_dim
            layers.append(
                FieldAttention(
                    in_dim=in_dim, num_heads=config.cross_heads, head_dim=config.cross_width
                )
            )
        self.attention = nn.Sequential(*layers)
        self.deep = deep
        attended_dim = self.fields.num_fields * layers[-1].out_dim
        self.logit = nn.Linear(attended_dim + deep.out_dim, 1, bias=False)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        fields_BFD = self.fields(inputs)
        attended_BC = self.attention(fields_BFD).flatten(start_dim=1)
        both_BC = torch.cat([attended_BC, self.deep(fields_BFD.flatten(start_dim=1))], dim=1)
        return self.first_order(inputs) + self.logit(both_BC)[:, 0]


RANKERS = ((AutoIntConfig, AutoInt),)
