"""The image encoder: one network, two outputs, in one pass.

Semantics: global average over the last convolutional stage. Style: a head of embedding/style.py over
early blocks of equal width. Any torchvision ResNet, ConvNeXt or SqueezeNet, or `resnet_tiny`.
Shapes: B pictures, S side of the square input, D, E widths.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import embedding.torchvision_ops  # noqa: F401  isort: skip (before torchvision)
import torchvision.models
from torchvision.models.resnet import BasicBlock

from embedding.style import STYLE_HEADS

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Image encoder; presets in configs/encoder/image/."""

    backbone: str = "resnet_tiny"
    """`resnet_tiny`, or a ResNet, ConvNeXt or SqueezeNet of torchvision.models by name."""
    weights: str = "pretext"
    """`pretext` (train here on item tags), `torchvision` (its download), `none`, or a file
    (.safetensors, or a torch file of tensors)."""
    size: int = 96
    """Side of the square input, in pixels."""
    style_head: str = "gram_pca"
    """`gram_max` (the paper), `moments` or `gram_pca`."""
    style_blocks: list[str] = field(default_factory=list)
    """Names of the early blocks the style head reads; empty: the default of the family."""
    style_dim: int = 128
    """Width of gram_pca."""
    fit_pictures: int = 1024
    """Pictures on which scaling and principal components are fitted."""
    batch_size: int = 64
    """Pictures a forward pass."""
    pretext_epochs: int = 6
    """Passes of the tag pretext."""
    pretext_learning_rate: float = 3e-3
    """Peak step size of the tag pretext."""
    pretext_batch_size: int = 64
    """Pictures a step over all ranks."""
    pretext_min_count: int = 20
    """Tags on fewer items are left out of the pretext."""
    pretext_max_pictures: int = 20_000
    """Most pictures the pretext keeps in memory; a larger catalogue is sampled."""


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


def build_backbone(name: str, weights: str) -> tuple[nn.Module, list[str]]:
    """Return (network up to its last convolutional stage, default style blocks).

    Args:
        weights: as in ImageConfig; `pretext` starts from random weights.

    Raises:
        ValueError: unknown network or family, or a weights file that does not fit.
    """
    if name == "resnet_tiny":
        full, body, blocks = tiny_resnet(), None, ["relu", "layer1"]
    else:
        if not name.startswith(("resnet", "wide_resnet", "resnext", "convnext", "squeezenet")):
            raise ValueError(
                f"encoder.image.backbone={name!r}: expected resnet_tiny or a ResNet, ConvNeXt or "
                f"SqueezeNet of torchvision"
            )
        try:
            full = torchvision.models.get_model(
                name, weights="DEFAULT" if weights == "torchvision" else None
            )
        except ValueError as error:
            raise ValueError(f"encoder.image.backbone={name!r}: {error}") from error
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
    if weights not in ("pretext", "torchvision", "none"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ValueError(
                f"encoder.image.weights={weights}: no such file; expected one, or pretext, "
                f"torchvision or none"
            )
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
        try:
            full.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"encoder.image.weights={weights}: {str(error)[:300]}") from error
    return full if body is None else body, blocks


class ImageEncoder(nn.Module):
    """Network, style head, and the scaling fitted on a sample of the data."""

    def __init__(
        self,
        *,
        backbone: str,
        weights: str,
        style_head: str,
        style_blocks: Iterable[str] = (),
        style_dim: int = 128,
    ):
        """Build the network and find the blocks the style head reads.

        Raises:
            ValueError: unknown network, head or block.
        """
        super().__init__()
        if style_head not in STYLE_HEADS:
            raise ValueError(
                f"encoder.image.style_head={style_head!r}: expected one of {', '.join(STYLE_HEADS)}"
            )
        self.body, default_blocks = build_backbone(backbone, weights)
        self.style_head = style_head
        self.style_blocks = list(style_blocks) or default_blocks
        self.style_dim = style_dim
        self.scaling: dict[str, torch.Tensor] = {}
        self._maps: dict[str, torch.Tensor] = {}
        modules = dict(self.body.named_modules())
        for block in self.style_blocks:
            if block not in modules:
                raise ValueError(
                    f"encoder.image.style_blocks: {block!r} is no module of {backbone}; it has "
                    f"{', '.join(n for n in modules if n and n.count('.') < 2)}"
                )
            modules[block].register_forward_hook(self._keeper(block))
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def _keeper(self, block: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self._maps[block] = output

        return keep

    def last_map(self, pixels_BSS3: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional map [B, D, H, W] of uint8 pictures [B, S, S, 3]."""
        x_B3SS = pixels_BSS3.permute(0, 3, 1, 2).float().div(255.0)
        x_B3SS = (x_B3SS - self.mean) / self.std
        return self.body(x_B3SS.contiguous(memory_format=torch.channels_last))

    def forward(self, pixels_BSS3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return raw (semantic [B, D], style [B, E]) of uint8 pictures [B, S, S, 3]."""
        semantic_BD = self.last_map(pixels_BSS3).mean(dim=(2, 3))
        maps = [self._maps[block] for block in self.style_blocks]
        style_BE = STYLE_HEADS[self.style_head](maps)
        self._maps.clear()
        return semantic_BD, style_BE

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        """Return scaled {"semantic": [B, D], "style": [B, E]} of uint8 pictures [B, S, S, 3]."""
        device = next(self.parameters()).device
        semantic_BD, style_BE = self(torch.from_numpy(pixels).to(device))
        return {
            "semantic": _scaled(semantic_BD, self.scaling, "semantic"),
            "style": _scaled(style_BE, self.scaling, "style"),
        }

    @torch.inference_mode()
    def fit_scaling(self, batches: Iterable[np.ndarray]) -> None:
        """Fit mean, deviation and principal components on a sample, batch by batch.

        gram_pca keeps the leading components of the centred sample; both outputs are then brought to
        mean 0 and deviation 1 per dimension, the scale a linear layer expects.

        Raises:
            ValueError: no picture in the sample.
        """
        device = next(self.parameters()).device
        raw: list[tuple[torch.Tensor, torch.Tensor]] = []
        for pixels in batches:
            semantic, style = self(torch.from_numpy(pixels).to(device))
            raw.append((semantic, style))
        if not raw:
            raise ValueError("no usable picture to fit the image encoder's scaling on")
        semantic_ND, style_NE = (torch.cat(part) for part in zip(*raw, strict=True))
        self.scaling = {}
        if self.style_head == "gram_pca":
            centre_E = style_NE.mean(dim=0)
            centred_NE = style_NE - centre_E
            # Eigenvectors of the small [N, N] matrix give those of the large [E, E] one.
            values, vectors = torch.linalg.eigh((centred_NE @ centred_NE.T).double())
            kept = min(self.style_dim, int((values > values[-1] * 1e-9).sum()))
            top = vectors[:, -kept:].flip(1)
            scale = values[-kept:].flip(0).sqrt()
            self.scaling["style_centre"] = centre_E
            self.scaling["style_components"] = (centred_NE.double().T @ top / scale).float()
            style_NE = _projected(style_NE, self.scaling)
        for name, vectors_ND in (("semantic", semantic_ND), ("style", style_NE)):
            deviation = vectors_ND.std(dim=0, correction=0)
            if name == "style" and self.style_head == "gram_pca":
                # One factor for all components: the leading ones carry the style.
                deviation = deviation.square().mean().sqrt().expand_as(deviation).clone()
            self.scaling[f"{name}_mean"] = vectors_ND.mean(dim=0)
            self.scaling[f"{name}_deviation"] = deviation.clamp_min(1e-6)

    def save(self, folder: Path, config: dict[str, Any]) -> None:
        """Write weights.safetensors and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"body.{k}": v.contiguous() for k, v in self.body.state_dict().items()}
        tensors |= {f"scaling.{k}": v.contiguous() for k, v in self.scaling.items()}
        save_file({k: v.cpu() for k, v in tensors.items()}, folder / "weights.safetensors")
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    def load(self, folder: Path) -> None:
        """Load what `save` wrote."""
        tensors = load_file(folder / "weights.safetensors")
        body = {k.removeprefix("body."): v for k, v in tensors.items() if k.startswith("body.")}
        self.body.load_state_dict(body)
        self.scaling = {
            k.removeprefix("scaling."): v for k, v in tensors.items() if k.startswith("scaling.")
        }


def _projected(style_BE: torch.Tensor, scaling: dict[str, torch.Tensor]) -> torch.Tensor:
    if "style_components" not in scaling:
        return style_BE
    device = style_BE.device
    centred_BE = style_BE - scaling["style_centre"].to(device)
    return centred_BE @ scaling["style_components"].to(device)


def _scaled(raw: torch.Tensor, scaling: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    if name == "style":
        raw = _projected(raw, scaling)
    mean = scaling[f"{name}_mean"].to(raw.device)
    deviation = scaling[f"{name}_deviation"].to(raw.device)
    # A rare picture far from the sample must not overflow fp16 or swamp a layer.
    return ((raw - mean) / deviation).clamp(-20, 20).cpu()
