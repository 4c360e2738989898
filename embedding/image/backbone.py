"""Backbone: the convolutional network of the image encoder, up to its last convolutional stage.

Any torchvision ResNet, ConvNeXt or SqueezeNet, or `resnet_tiny`. Called by embedding/image/encoder.py.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

import embedding.torchvision_ops  # noqa: F401  isort: skip (before torchvision)
import torchvision.models
from torchvision.models.resnet import BasicBlock

from recsys.errors import UserError
from recsys.schema import local_path


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
        name: `resnet_tiny`, or a network of torchvision.models of a family of
            embedding.image.config.FAMILIES.
        weights: as in ImageConfig.

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
        path = local_path(weights, "encoder.image.weights")
        if not path.is_file():
            raise UserError(
                f"encoder.image.weights={weights}: no such file; expected one, torchvision or none "
                f"(random, then trained by pretext_epochs)"
            )
        state = _read_weights(path)
        try:
            full.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"encoder.image.weights={weights}: {str(error)[:300]}") from error
    return full if body is None else body, blocks


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file, [D, ...] by name; nothing in it is executed.

    Raises:
        UserError: it is damaged, or holds other things than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # readers raise whatever a broken file makes them raise
        raise UserError(
            f"encoder.image.weights={path}: cannot be read as tensors alone "
            f"({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})"
        ) from error
