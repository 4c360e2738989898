"""Backbone of torchvision: any ResNet, ConvNeXt or SqueezeNet, or `resnet_tiny`.

Called by embedding/image/backbone.py. Shapes: B pictures, S side, C, D channels, H, W positions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import embedding.torchvision_ops  # noqa: F401  isort: skip (before torchvision)
import torchvision.models
from torchvision.models.resnet import BasicBlock

from embedding.starting_weights import read_tensors, weights_file
from recsys.errors import UserError

_KEY = "encoder.image.weights"


class TorchvisionBackbone:
    """Network up to its last convolutional stage; hooks keep the maps of its blocks."""

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __init__(
        self,
        name: str,
        weights: str,
        style_blocks: Sequence[str],
        semantic_blocks: Sequence[str] = (),
    ):
        """Build the network and find its blocks.

        Args:
            name: `resnet_tiny`, or a network of torchvision.models of a family of
                embedding.image.config.FAMILIES.
            weights, style_blocks, semantic_blocks: as in ImageConfig.

        Raises:
            UserError: unknown network or block, or a weights file that does not fit.
        """
        self.network, default_blocks = _network(name, weights)
        self.style_blocks = list(style_blocks) or default_blocks
        self.semantic_blocks = list(semantic_blocks)
        self._maps: dict[str, torch.Tensor] = {}
        modules = dict(self.network.named_modules())
        for key, blocks in (("style", self.style_blocks), ("semantic", self.semantic_blocks)):
            for block in blocks:
                if block not in modules:
                    raise UserError(
                        f"encoder.image.{key}_blocks: {block!r} is no module of {name}; it has "
                        f"{', '.join(n for n in modules if n and n.count('.') < 2)}"
                    )
        for block in dict.fromkeys(self.style_blocks + self.semantic_blocks):
            modules[block].register_forward_hook(self._keeper(block))

    def _keeper(self, block: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._maps[block] = output

        return keep

    def features(
        self, x_B3SS: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return (mean of the last map [B, D], maps of the semantic blocks, of the style blocks)."""
        last_BDHW = self.network(x_B3SS)
        semantic, style = (
            [self._maps[block] for block in blocks]
            for blocks in (self.semantic_blocks, self.style_blocks)
        )
        self._maps.clear()
        return last_BDHW.float().mean(dim=(2, 3)), semantic, style

    def save(self, folder: Path) -> None:
        """Write what builds the network anew: nothing, its name does."""


def tiny_resnet() -> nn.Module:
    """A narrow ResNet of torchvision's basic blocks: 32, 32, 64, 128, 256 channels."""

    def stage(in_dim: int, out_dim: int, stride: int) -> nn.Module:
        shortcut = None
        if stride != 1 or in_dim != out_dim:
            shortcut = nn.Sequential(
                nn.Conv2d(in_dim, out_dim, 1, stride, bias=False), nn.BatchNorm2d(out_dim)
            )
        return BasicBlock(in_dim, out_dim, stride, shortcut)

    layers = nn.Sequential()
    layers.add_module("conv1", nn.Conv2d(3, 32, 3, 2, 1, bias=False))
    layers.add_module("bn1", nn.BatchNorm2d(32))
    layers.add_module("relu", nn.ReLU())
    for index, (in_dim, out_dim) in enumerate(((32, 32), (32, 64), (64, 128), (128, 256))):
        layers.add_module(f"layer{index + 1}", stage(in_dim, out_dim, 1 if index == 0 else 2))
    return layers


def _network(name: str, weights: str) -> tuple[nn.Module, list[str]]:
    """Return (network up to its last convolutional stage, default style blocks).

    Raises:
        UserError: unknown network, or a weights file that does not fit.
    """
    if name == "resnet_tiny":
        full, body, blocks = tiny_resnet(), None, ["relu", "layer1"]
    else:
        try:
            full = torchvision.models.get_model(
                name, weights="DEFAULT" if weights == "torchvision" else None
            )
        except ValueError as error:
            raise UserError(f"encoder.image.backbone={name!r}: {error}") from error
        if name.startswith("squeezenet"):
            body = full.features
            blocks = ["3", "4"]
        elif name.startswith("convnext"):
            body, blocks = full.features, ["1.0", "1.1", "1.2"]
        else:
            body = nn.Sequential()
            for child, module in full.named_children():
                if child not in ("avgpool", "fc"):
                    body.add_module(child, module)
            blocks = [f"layer1.{index}" for index in range(len(full.layer1))]
    if weights not in ("torchvision", "none"):
        path = weights_file(
            weights, _KEY, "torchvision or none (random, then trained by pretext_epochs)"
        )
        state = read_tensors(path, _KEY)
        try:
            full.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{_KEY}={weights}: {str(error)[:300]}") from error
    return full if body is None else body, blocks
