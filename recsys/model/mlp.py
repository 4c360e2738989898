"""Multi-layer perceptrons of the rankers. Shapes: B rows, I input width, H output width."""

from collections.abc import Sequence

import torch
from torch import nn

from recsys.model.dropout import Dropout
from recsys.model.linear import linear, linear_relu


class Tower(nn.Module):
    """Linear layers with ReLU, optional batch norm before and dropout after each activation."""

    def __init__(
        self,
        *,
        in_dim: int,
        hidden_dims: Sequence[int],
        dropout: float = 0.0,
        batch_norm: bool = False,
        activation_on_last: bool = True,
    ):
        """Args: hidden_dims: widths of the layers, the last one is the output width."""
        super().__init__()
        layers: list[nn.Module] = []
        for index, dim in enumerate(hidden_dims):
            layers.append(nn.Linear(in_dim, dim))
            if index + 1 < len(hidden_dims) or activation_on_last:
                if batch_norm:
                    layers.append(nn.BatchNorm1d(dim))
                layers.append(nn.ReLU())
                if dropout:
                    layers.append(Dropout(dropout))
            in_dim = dim
        self.layers = nn.Sequential(*layers)
        self.out_dim = in_dim

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        """Map [B, I] to [B, H]."""
        layers = list(self.layers)
        while layers:
            layer = layers.pop(0)
            if layers and isinstance(layer, nn.Linear) and isinstance(layers[0], nn.ReLU):
                layers.pop(0)
                x_BI = linear_relu(x_BI, layer.weight, layer.bias)
            elif isinstance(layer, nn.Linear):
                x_BI = linear(x_BI, layer.weight, layer.bias)
            else:
                x_BI = layer(x_BI)
        return x_BI
