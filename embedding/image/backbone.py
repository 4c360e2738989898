"""Backbone: the network of the image encoder, of torchvision or of timm, and how it is read.

Called by embedding/image/encoder.py. Shapes: B pictures, S side, C, D channels, H, W positions.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from embedding.image.config import TIMM, ImageConfig
from embedding.image.torchvision_backbone import TorchvisionBackbone

Maps = list[torch.Tensor]
"""Outputs of blocks, each [B, C, H, W]."""


class Backbone(Protocol):
    """A network, the normalisation of its input, and its features; one for each library."""

    network: nn.Module
    """What is trained and stored."""
    mean: tuple[float, ...]
    """Mean of each input channel, of values between 0 and 1."""
    std: tuple[float, ...]
    """Standard deviation of each input channel."""

    def features(self, x_B3SS: torch.Tensor) -> tuple[torch.Tensor, Maps, Maps]:
        """Return (pooled last features [B, D], maps of the semantic blocks, of the style blocks)."""
        ...

    def save(self, folder: Path) -> None:
        """Write what builds the network anew, beside its weights, so that no other file is needed."""
        ...


def build_backbone(config: ImageConfig, folder: Path | None = None) -> Backbone:
    """Return the backbone that a configuration names, with its starting weights.

    Args:
        folder: of a finished encoder, whose network is built without starting weights: the caller
            loads its own. None: an encoder is made.

    Raises:
        UserError: unknown network or style block, a missing package, or weights that do not fit.
    """
    weights = config.weights if folder is None else "none"
    if not config.backbone.startswith(TIMM):
        return TorchvisionBackbone(
            config.backbone, weights, config.style_blocks, config.semantic_blocks
        )
    # timm is an optional package.
    from embedding.image.timm_backbone import TimmBackbone

    return TimmBackbone(
        config.backbone.removeprefix(TIMM),
        weights,
        config.style_blocks,
        config.semantic_blocks,
        size=config.size,
        folder=folder,
    )
