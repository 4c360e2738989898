"""Backbone of timm: any of its models with intermediate features, by name, from a hub or from a folder.

Called by embedding/image/backbone.py. timm is an optional package (requirements-timm.txt).
Shapes: B pictures, S side, C, D channels, H, W positions.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import embedding.torchvision_ops  # noqa: F401  isort: skip (before timm, which imports torchvision)

from embedding.starting_weights import read_tensors, weights_file
from recsys.errors import UserError
from recsys.job import say

_FOLDER = "timm"
"""Folder within an encoder's: config.json, from which timm builds the network anew."""
_WEIGHTS = "encoder.image.weights"
_NEEDED = ("feature_info", "forward_intermediates", "forward_head")
"""Parts of a model of timm that are called here; some architectures lack them."""
_EARLY = 8
"""Pixels a position of an early stage stands for, at most."""


class TimmBackbone:
    """A model of timm without its classifier, and the early stages that style is read from."""

    network: nn.Module

    def __init__(
        self,
        name: str,
        weights: str,
        style_blocks: Sequence[str],
        semantic_blocks: Sequence[str] = (),
        *,
        size: int,
        folder: Path | None = None,
    ):
        """Build the network with its weights, for pictures of `size` pixels.

        Args:
            name: of the model; `hf-hub:OWNER/NAME` or `local-dir:FOLDER`.
            weights, style_blocks, semantic_blocks, size: as in ImageConfig.
            folder: of a finished encoder, from which the network is built instead.

        Raises:
            UserError: timm is not installed; an unknown model, stage or size; a model without
                intermediate features; or weights that do not fit.
        """
        if importlib.util.find_spec("timm") is None:
            raise UserError(
                f"encoder.image.backbone=timm/{name}: needs the package timm: "
                f"pip install -r requirements-timm.txt"
            )
        import timm

        source = name if folder is None else f"local-dir:{folder / _FOLDER}"
        try:
            network: Any = timm.create_model(source, pretrained=weights == "timm", num_classes=0)
        except (
            Exception
        ) as error:  # registry, hub client and files raise many kinds; all mean: not there
            raise UserError(
                f"encoder.image.backbone=timm/{name}: no model of timm, hub or folder that can be loaded "
                f"({type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]})"
            ) from error
        if weights not in ("none", "timm"):
            path = weights_file(weights, _WEIGHTS, "timm (its download) or none")
            _load(network, read_tensors(path, _WEIGHTS), path)
        data = timm.data.resolve_model_data_config(network)
        self.mean, self.std = tuple(data["mean"]), tuple(data["std"])
        trained_size = max(data["input_size"][1:])
        if size != trained_size:
            if problem := _resize(network, size):
                raise UserError(
                    f"encoder.image.size={size}: timm/{name} cannot read it ({problem}); expected "
                    f"{trained_size}, the size it was trained with"
                )
            if weights != "none":
                say(
                    f"note: timm/{name} was trained with pictures of {trained_size} pixels, "
                    f"encoder.image.size={size}"
                )
        reductions = _reductions(network, name)
        self.style_stages = _numbers("style", style_blocks, name, reductions) or _early(reductions)
        self.semantic_stages = _numbers("semantic", semantic_blocks, name, reductions)
        self.network = network

    def features(
        self, x_B3SS: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Return (features before the classifier [B, D], maps of semantic stages, of style stages)."""
        network: Any = self.network
        stages = sorted({*self.semantic_stages, *self.style_stages})
        last, maps = network.forward_intermediates(x_B3SS, indices=stages, output_fmt="NCHW")
        map_of = dict(zip(stages, maps, strict=True))
        semantic, style = (
            [map_of[stage] for stage in wanted]
            for wanted in (self.semantic_stages, self.style_stages)
        )
        return network.forward_head(last, pre_logits=True).float(), semantic, style

    def save(self, folder: Path) -> None:
        """Write timm/config.json: architecture and input of the network, without its weights."""
        from timm.models import save_for_hf

        save_for_hf(self.network, str(folder / _FOLDER), safe_serialization=True)
        # The encoder stores the weights itself, with those of its heads.
        (folder / _FOLDER / "model.safetensors").unlink()


def _load(network: Any, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load the tensors of a file of the whole model: its classifier is left out.

    Raises:
        UserError: tensors are missing, have other shapes, or are not the model's.
    """
    classifier = network.pretrained_cfg.get("classifier") or ()
    names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    ends = tuple(f"{name}." for name in names)
    body = {name: values for name, values in tensors.items() if not name.startswith(ends)}
    try:
        network.load_state_dict(body)
    except RuntimeError as error:
        raise UserError(f"{_WEIGHTS}={path}: {str(error)[:300]}") from error


def _resize(network: Any, size: int) -> str | None:
    """Make the network read pictures of `size` pixels; return why it cannot, or None."""
    is_fixed = network.pretrained_cfg.get("fixed_input_size")
    try:
        if is_fixed and not getattr(network, "dynamic_img_size", False):
            network.set_input_size(img_size=(size, size))
        with torch.inference_mode():
            network.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:  # each architecture fails in a way of its own
        return (str(error).splitlines() or [""])[0][:200]
    return None


def _reductions(network: Any, name: str) -> list[int]:
    """Return the pixels, along a side, that a position of each stage stands for.

    Raises:
        UserError: a model without stages.
    """
    if lacking := [part for part in _NEEDED if not hasattr(network, part)]:
        raise UserError(
            f"encoder.image.backbone=timm/{name}: a model of timm without {', '.join(lacking)}, so "
            f"that no stages can be read from it; expected one with intermediate features, such as "
            f"a ResNet, ConvNeXt, EfficientNet or ViT"
        )
    info = network.feature_info
    return [entry["reduction"] for entry in getattr(info, "info", info)]


def _numbers(key: str, blocks: Sequence[str], name: str, reductions: Sequence[int]) -> list[int]:
    """Return the numbers of the stages that a key `<key>_blocks` names, ascending.

    Raises:
        UserError: a stage that the model does not have.
    """
    unknown = [b for b in blocks if not b.isdigit() or int(b) >= len(reductions)]
    if unknown:
        raise UserError(
            f"encoder.image.{key}_blocks: {unknown[0]!r} is no stage of timm/{name}; expected numbers "
            f"from 0 to {len(reductions) - 1}"
        )
    return sorted({int(b) for b in blocks})


def _early(reductions: Sequence[int]) -> list[int]:
    """Return the stages that style is read from by default.

    Those of at most 8 pixels a position; for transformers with larger patches the last block of the
    first quarter.
    """
    early = [index for index, reduction in enumerate(reductions) if reduction <= _EARLY]
    return early or [max(0, len(reductions) // 4 - 1)]
