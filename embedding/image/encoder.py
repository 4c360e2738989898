"""The image encoder: one network, two outputs, in one pass.

Semantics: global average over the last convolutional stage. Style: a head of
embedding/image/style.py over early blocks. Each goes through a projection
(embedding/image/projection.py) fitted on a sample. Any torchvision ResNet, ConvNeXt or SqueezeNet, or
`resnet_tiny`.
Shapes: B, N pictures, S side of the square input, R raw, D, E output widths.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recsys.errors import UserError

import embedding.torchvision_ops  # noqa: F401  isort: skip (before torchvision)
import torchvision.models
from torchvision.models.resnet import BasicBlock

from embedding.image.projection import Projection, Sample, build_projection
from embedding.image.style import STYLE_HEADS
from recsys.files import EMBED_AGAIN, reading, write_json
from recsys.schema import local_path

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Image encoder; presets in configs/encoder/image/."""

    backbone: str = "resnet_tiny"
    """`resnet_tiny`, or a ResNet, ConvNeXt or SqueezeNet of torchvision.models by name."""
    weights: str = "none"
    """Where the network starts: `none` (random), `torchvision` (its download), or a file
    (.safetensors, or a torch file of tensors)."""
    size: int = 96
    """Side of the square input, in pixels."""
    semantic_head: str = "discriminant"
    """`pool` (the paper: average of the last stage) or `discriminant` (pooled, then what varies
    within a content is whitened)."""
    style_head: str = "auto"
    """`gram_max` (the paper), `moments`, `gram_pca`, `palette`, `contrastive`, or `auto`: contrastive
    where the items have artists, else palette."""
    style_blocks: list[str] = field(default_factory=list)
    """Names of the early blocks the style head reads; empty: the default of the family."""
    style_dim: int = 128
    """Width of gram_pca, palette and contrastive."""
    style_steps: int = 600
    """Optimizer steps of the contrastive head."""
    fit_pictures: int = 4096
    """Pictures on which heads and scaling are fitted; a larger catalogue is sampled."""
    fit_views: int = 2
    """Views of each: the whole picture and crops of it."""
    batch_size: int = 64
    """Pictures a forward pass."""
    held_out_tenths: int = 1
    """Tenths of the contents (without a content column: of the items) that no training sees; on their
    pictures the encoder is measured. 0: train on everything, measure nothing."""
    held_out_artists: list[str] = field(default_factory=list)
    """Artists whose pictures no training sees; they are measured apart."""
    pretext_epochs: int = 0
    """Most passes of the tag pretext; 0: the network stays as it starts."""
    pretext_patience: int = 4
    """Passes without a better validation mAP after which the pretext stops; 0: never."""
    pretext_learning_rate: float = 3e-3
    """Peak step size of the tag pretext; about 3e-4 from trained weights."""
    pretext_batch_size: int = 64
    """Pictures a step over all ranks."""
    pretext_min_count: int = 20
    """Tags on fewer pictures are left out of the pretext."""
    pretext_max_pictures: int = 100_000
    """Most pictures of the pretext; a larger catalogue is sampled. size x size x 3 bytes of disk each
    while it runs."""


def chosen_style_head(style_head: str, has_artists: bool) -> str:
    """Return the head that `auto` stands for; any other name as it is.

    Without artists the contrastive head learns from crops of one picture, and then finds fewer hands
    than the palette does without any training (LOG.md, 2026-11-26).
    """
    if style_head != "auto":
        return style_head
    return "contrastive" if has_artists else "palette"


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
        weights: as in ImageConfig.

    Raises:
        UserError: unknown network or family, or a weights file that does not fit.
    """
    if name == "resnet_tiny":
        full, body, blocks = tiny_resnet(), None, ["relu", "layer1"]
    else:
        if not name.startswith(("resnet", "wide_resnet", "resnext", "convnext", "squeezenet")):
            raise UserError(
                f"encoder.image.backbone={name!r}: expected resnet_tiny or a ResNet, ConvNeXt or "
                f"SqueezeNet of torchvision"
            )
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
    """Return the tensors of a weights file; nothing in it is run.

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


SEMANTIC_HEADS = {"pool": "identity", "discriminant": "discriminant"}
"""Projection of the pooled last stage by encoder.image.semantic_head."""
OUTPUTS = ("semantic", "style")


class ImageEncoder(nn.Module):
    """Network, the two heads, and their scaling, fitted on a sample of the data."""

    def __init__(
        self,
        *,
        backbone: str,
        weights: str,
        style_head: str,
        semantic_head: str = "pool",
        style_blocks: Iterable[str] = (),
        style_dim: int = 128,
        style_steps: int = 600,
        say: Callable[[str], None] = lambda text: None,
    ):
        """Build the network and find the blocks the style head reads.

        Raises:
            UserError: unknown network, head or block.
        """
        super().__init__()
        for key, name, known in (
            ("style_head", style_head, STYLE_HEADS),
            ("semantic_head", semantic_head, SEMANTIC_HEADS),
        ):
            if name not in known:
                raise UserError(f"encoder.image.{key}={name!r}: expected one of {', '.join(known)}")
        self.body, default_blocks = build_backbone(backbone, weights)
        self.style = STYLE_HEADS[style_head]
        self.projections: dict[str, Projection] = {
            "semantic": build_projection(SEMANTIC_HEADS[semantic_head], dim=0, steps=0),
            "style": build_projection(
                self.style.projection, dim=style_dim, steps=style_steps, say=say
            ),
        }
        self.style_blocks = list(style_blocks) or default_blocks
        self.scaling: dict[str, torch.Tensor] = {}
        self._maps: dict[str, torch.Tensor] = {}
        modules = dict(self.body.named_modules())
        for block in self.style_blocks:
            if block not in modules:
                raise UserError(
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

    def statistics(self, pixels_BSS3: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Return raw statistics, each [B, R], by output, of uint8 pictures [B, S, S, 3]."""
        pooled_BD = self.last_map(pixels_BSS3).mean(dim=(2, 3))
        maps = [self._maps[block] for block in self.style_blocks]
        self._maps.clear()
        return {
            "semantic": [pooled_BD],
            "style": self.style.statistics(pixels_BSS3, maps),
        }

    def forward(self, pixels_BSS3: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return scaled {"semantic": [B, D], "style": [B, E]} of uint8 pictures [B, S, S, 3]."""
        statistics = self.statistics(pixels_BSS3)
        return {
            name: self._scaled(name, self.projections[name](statistics[name])) for name in OUTPUTS
        }

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        """Return `forward` of a NumPy array, on the CPU."""
        device = self.mean.device
        encoded = self(torch.from_numpy(pixels).to(device))
        return {name: vectors.cpu() for name, vectors in encoded.items()}

    @torch.inference_mode()
    def fit_reductions(self, pixels_NSS3: np.ndarray, batch_size: int) -> None:
        """Fit what the projections need before labels: centres, components.

        Raises:
            UserError: no picture in the sample.
        """
        if not len(pixels_NSS3):
            raise UserError("no usable picture to fit the image encoder's heads on")
        raw: dict[str, list[list[torch.Tensor]]] = {name: [] for name in OUTPUTS}
        for start in range(0, len(pixels_NSS3), batch_size):
            part = torch.from_numpy(pixels_NSS3[start : start + batch_size]).to(self.mean.device)
            for name, statistics in self.statistics(part).items():
                raw[name].append(statistics)
        for name in OUTPUTS:
            columns = [torch.cat(column) for column in zip(*raw[name], strict=True)]
            self.projections[name].fit_reduction(columns)

    @torch.inference_mode()
    def reduced(self, pixels_BSS3: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return reduced statistics [B, D] by output of uint8 pictures [B, S, S, 3]."""
        statistics = self.statistics(pixels_BSS3.to(self.mean.device))
        return {name: self.projections[name].reduce(statistics[name]) for name in OUTPUTS}

    def fit_heads(self, samples: dict[str, Sample], seed: int) -> None:
        """Fit heads on labelled samples on the CPU, then the scaling on their whole pictures.

        Vectors get mean 0. `identity` outputs get deviation 1 per dimension, the others one factor
        for all, as their directions carry meaning.
        """
        for name in OUTPUTS:
            projection = self.projections[name]
            projection.fit(samples[name], seed)
            with torch.no_grad():
                vectors_ND = projection.head(samples[name].reduced_NVD[:, 0])
            deviation_D = vectors_ND.std(dim=0, correction=0)
            if type(projection) is not Projection:
                deviation_D = deviation_D.square().mean().sqrt().expand_as(deviation_D).clone()
            self.scaling[f"{name}_mean"] = vectors_ND.mean(dim=0)
            self.scaling[f"{name}_deviation"] = deviation_D.clamp_min(1e-6)

    def _scaled(self, name: str, vectors_BD: torch.Tensor) -> torch.Tensor:
        mean_D, deviation_D = (self.scaling[f"{name}_{part}"] for part in ("mean", "deviation"))
        # A rare picture far from the sample must not overflow fp16 or swamp a layer.
        return ((vectors_BD - mean_D) / deviation_D).clamp(-20, 20)

    def fitted_state(self) -> dict[str, torch.Tensor]:
        """Return the fitted tensors of heads and scaling by name."""
        state = {f"scaling.{k}": v for k, v in self.scaling.items()}
        for name, projection in self.projections.items():
            state |= {f"projections.{name}.{k}": v for k, v in projection.state_dict().items()}
        return state

    def restore_fitted(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `fitted_state` returned."""
        device = self.mean.device
        for name in OUTPUTS:
            prefix = f"projections.{name}."
            self.projections[name].restore({
                k.removeprefix(prefix): v.to(device)
                for k, v in state.items()
                if k.startswith(prefix)
            })
        self.scaling = {
            k.removeprefix("scaling."): v.to(device)
            for k, v in state.items()
            if k.startswith("scaling.")
        }

    def save(self, folder: Path, config: dict[str, Any]) -> None:
        """Write weights.safetensors and config.json."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"body.{k}": v for k, v in self.body.state_dict().items()} | self.fitted_state()
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            folder / "weights.safetensors",
        )
        write_json(folder / "config.json", config)

    def load(self, folder: Path) -> None:
        """Load what `save` wrote."""
        file = folder / "weights.safetensors"
        with reading(file, f"delete {folder} and {EMBED_AGAIN}"):
            tensors = load_file(file)
            body = {k.removeprefix("body."): v for k, v in tensors.items() if k.startswith("body.")}
            self.body.load_state_dict(body)
            self.restore_fitted(tensors)
