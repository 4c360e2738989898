"""Multi-layer perceptrons of the rankers. Shapes: B rows, I input width, H output width."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

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


def run_towers(towers: Sequence[Tower], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs [B, H] of towers that do not read each other, of inputs [B, I] alike in B.

    On a CPU, batch norms that wait for other ranks (recsys/runtime/batch_norm.py) wait together, where
    they are at the same place in their towers. Dropout draws as it does tower after tower.
    """
    waiting = all(any(map(_exchanges, tower.layers)) for tower in towers)
    if not waiting or inputs[0].is_cuda or torch.compiler.is_compiling():
        return [tower(x_BI) for tower, x_BI in zip(towers, inputs, strict=True)]
    masks = [_masks(tower, x_BI) for tower, x_BI in zip(towers, inputs, strict=True)]
    outputs = list(inputs)
    for layers in zip_longest(*(tower.layers for tower in towers)):
        if all(map(_exchanges, layers)):
            norm: Any = layers[0]
            outputs = list(norm.forward_together(layers, outputs))
            continue
        for number, layer in enumerate(layers):
            x_BI = outputs[number]
            if isinstance(layer, nn.Linear):
                outputs[number] = linear(x_BI, layer.weight, layer.bias)
            elif isinstance(layer, Dropout):
                outputs[number] = x_BI * masks[number].pop(0).to(x_BI.dtype)
            elif layer is not None:
                outputs[number] = layer(x_BI)
    return outputs


def _exchanges(layer: nn.Module | None) -> bool:
    return getattr(layer, "exchanges", False)


def _masks(tower: Tower, x_BI: torch.Tensor) -> list[torch.Tensor]:
    """Return what the tower's dropouts multiply by in training, [B, width of the layer] each."""
    masks = []
    for layer in tower.layers:
        if isinstance(layer, nn.Linear):
            width = layer.out_features
        elif isinstance(layer, Dropout):
            masks.append(layer.factors(x_BI.new_empty(len(x_BI), width)))
    return masks
