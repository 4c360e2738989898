"""Image encoder: one network, two outputs, in one pass.

Semantics: the pooled last features of the network, or means and deviations of the channels of late
blocks, and their means in the cells of a grid. Style: a head of embedding/image/style.py over early
blocks. Each goes through a projection (embedding/image/projection.py) fitted on a sample.
Shapes: B, N pictures, S side of the square input, R raw, D, E output widths.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from embedding.image.backbone import Maps, build_backbone
from embedding.image.config import ImageConfig
from embedding.image.projection import Projection, build_projection
from embedding.image.style import STYLE_HEADS, difference_histograms, grid_means, moments
from embedding.image.triplets import Sample
from recsys.errors import UserError
from recsys.files import EMBED_AGAIN, reading, write_json

SEMANTIC_HEADS = {
    "pool": "identity",
    "discriminant": "discriminant",
    "contrastive": "content_contrastive",
}
"""Projection of the pooled last stage by encoder.image.semantic_head."""
OUTPUTS = ("semantic", "style")


class ImageEncoder(nn.Module):
    """Network, the two heads, and their scaling, fitted on a sample of the data."""

    def __init__(self, config: ImageConfig, folder: Path | None = None):
        """Build the network with its starting weights, and heads that are not fitted yet.

        Args:
            config: with a style head other than `auto` (chosen_style_head).
            folder: of a finished encoder; `load` follows. None: an encoder is made.

        Raises:
            UserError: unknown network or block, a missing package, or weights that do not fit.
        """
        super().__init__()
        self.backbone = build_backbone(config, folder)
        self.body = self.backbone.network
        self.semantic_grid = config.semantic_grid
        self.is_bgr = config.channels == "bgr"
        self.style = STYLE_HEADS[config.style_head]
        self.style_differences = config.style_differences and config.style_head == "contrastive"
        self.projections: dict[str, Projection] = {
            "semantic": build_projection(
                SEMANTIC_HEADS[config.semantic_head],
                dim=config.semantic_dim,
                steps=config.semantic_steps,
            ),
            "style": build_projection(
                self.style.projection,
                dim=config.style_dim,
                steps=config.style_steps,
                networks=config.style_networks,
            ),
        }
        self.scaling: dict[str, torch.Tensor] = {}
        self.mean: torch.Tensor
        self.std: torch.Tensor
        for name in ("mean", "std"):
            channels = torch.tensor(getattr(self.backbone, name))[:, None, None]
            self.register_buffer(name, channels, persistent=False)

    def features(self, pixels_BSS3: torch.Tensor) -> tuple[torch.Tensor, Maps, Maps]:
        """Return (pooled last features [B, D], maps of the semantic blocks, of the style blocks).

        Args:
            pixels_BSS3: uint8 pictures [B, S, S, 3].
        """
        x_B3SS = pixels_BSS3.permute(0, 3, 1, 2).float().div(255.0)
        x_B3SS = ((x_B3SS.flip(1) if self.is_bgr else x_B3SS) - self.mean) / self.std
        return self.backbone.features(x_B3SS.contiguous(memory_format=torch.channels_last))

    def statistics(self, pixels_BSS3: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Return raw statistics, each [B, R], by output, of uint8 pictures [B, S, S, 3]."""
        pooled_BD, semantic_maps, style_maps = self.features(pixels_BSS3)
        semantic = [pooled_BD]
        if semantic_maps:
            parts = moments(pixels_BSS3, semantic_maps)
            if self.semantic_grid:
                parts += grid_means(semantic_maps, self.semantic_grid)
            semantic = [torch.cat(parts, dim=1)]
        style = self.style.statistics(pixels_BSS3, style_maps)
        if self.style_differences:
            style = [*style, difference_histograms(pixels_BSS3)]
        return {"semantic": semantic, "style": style}

    def forward(self, pixels_BSS3: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return scaled {"semantic": [B, D], "style": [B, E]} of uint8 pictures [B, S, S, 3]."""
        statistics = self.statistics(pixels_BSS3)
        return {
            name: self._scaled(name, self.projections[name](statistics[name])) for name in OUTPUTS
        }

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> dict[str, torch.Tensor]:
        """Return `forward` of uint8 pictures [N, S, S, 3], each output [N, D], on the CPU."""
        device = self.mean.device
        encoded = self(torch.from_numpy(pixels).to(device))
        return {name: vectors.cpu() for name, vectors in encoded.items()}

    @torch.inference_mode()
    def fit_reductions(self, pixels_NSS3: np.ndarray, batch_size: int) -> None:
        """Fit what the projections of [N, S, S, 3] need before labels: centres, components.

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
        """Return the fitted tensors of heads and scaling by name, in the shapes [D, ...] of each head."""
        state = {f"scaling.{k}": v for k, v in self.scaling.items()}
        for name, projection in self.projections.items():
            state |= {f"projections.{name}.{k}": v for k, v in projection.state_dict().items()}
        return state

    def restore_fitted(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `fitted_state` returned, in the shapes [D, ...] of each head."""
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
        """Write weights.safetensors, config.json, and what the backbone needs besides."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save(folder)
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
