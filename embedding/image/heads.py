"""Fits an image encoder's heads on a sample and measures them on pictures no training has seen.

Over any number of ranks: each runs the network on its share of the sample, rank 0 fits, all take
over what it fitted. Called by launch/embed.py. Shapes: N pictures, S side, V views, D widths.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from embedding.features.catalogue import drawn
from embedding.image.augmentation import random_crops
from embedding.image.encoder import OUTPUTS, ImageEncoder
from embedding.image.neighbour_accuracy import nearest_agreement
from embedding.image.projection import Sample
from recsys.errors import UserError
from recsys.runtime.collectives import gather, share

_REDUCTION_PICTURES = 1024
"""Pictures that centres and components are fitted on."""
_LEAST_CROP = 0.6


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Decoded pictures, whose they are and what they show."""

    pixels: np.ndarray
    """uint8 [N, S, S, 3]."""
    artists: list[str | None]
    contents: list[str | None]

    def __len__(self) -> int:
        return len(self.pixels)


def fit_heads(
    encoder: ImageEncoder, pictures: Pictures, *, num_views: int, batch_size: int, seed: int
) -> None:
    """Fit projections and scaling in place; all ranks call this, each with its share.

    Raises:
        UserError: no usable picture on any rank.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    counts = gathered(len(pictures), world)
    if not sum(counts):
        raise UserError("no usable picture to fit the image encoder's heads on")
    # The rank with most pictures speaks for all.
    first = int(np.argmax(counts))

    def fit_reductions() -> None:
        sample = drawn(len(pictures), _REDUCTION_PICTURES, seed)
        encoder.fit_reductions(pictures.pixels[sample], batch_size)

    _fit_on(first, encoder, fit_reductions)
    reduced = _reduced_views(encoder, pictures, num_views, batch_size, seed * 7919 + rank)
    parts = gathered((reduced, pictures.artists, pictures.contents), world)

    def fit() -> None:
        artist_N = _labels([name for _, artists, _ in parts for name in artists])
        content_N = _labels([name for _, _, contents in parts for name in contents])
        samples = {
            name: Sample(
                reduced_NVD=torch.cat([part[name] for part, _, _ in parts if name in part]),
                artist_N=artist_N,
                content_N=content_N,
            )
            for name in OUTPUTS
        }
        encoder.fit_heads(samples, seed)

    _fit_on(0, encoder, fit)


def _reduced_views(
    encoder: ImageEncoder, pictures: Pictures, num_views: int, batch_size: int, seed: int
) -> dict[str, torch.Tensor]:
    """Return reduced statistics [N, V, D] by output, on the CPU; {} without a picture."""
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[torch.Tensor]] = {}
    with torch.no_grad():
        for start in range(0, len(pictures), batch_size):
            whole = torch.from_numpy(pictures.pixels[start : start + batch_size])
            views = [whole]
            for _ in range(num_views - 1):
                views.append(random_crops(whole, generator, min_side=_LEAST_CROP))
            reduced = [encoder.reduced(view) for view in views]
            for name in OUTPUTS:
                stacked = torch.stack([r[name] for r in reduced], dim=1)
                parts.setdefault(name, []).append(stacked.cpu())
    return {name: torch.cat(pieces) for name, pieces in parts.items()}


def _labels(names: Sequence[str | None]) -> torch.Tensor:
    """Return a number per name; every null gets one of its own."""
    numbers: dict[Any, int] = {}
    keys = [("row", row) if name is None else name for row, name in enumerate(names)]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def gathered(value: Any, world_size: int) -> list[Any]:
    """Return the values of all ranks, by rank."""
    values = gather(lambda: value)
    assert len(values) == world_size, "one value a rank"
    return values


def _fit_on(source: int, encoder: ImageEncoder, fit: Callable[[], None]) -> None:
    """Call `fit` on rank `source`; all ranks' encoders take over what it fitted."""

    def fitted() -> dict[str, torch.Tensor]:
        fit()
        return {name: values.cpu() for name, values in encoder.fitted_state().items()}

    encoder.restore_fitted(share(fitted, source=source))


def measure(
    encoder: ImageEncoder, pictures: Pictures, *, held_out_artists: Sequence[str], batch_size: int
) -> dict[str, Any]:
    """Return what each output knows of the pictures: its own subject and the other's.

    Keys: `semantic` and `style`, each with `hand` (nearest neighbour among other contents has the
    same artist) and `content` (nearest among other artists shows the same), each a share and the
    pictures it was counted on; with held-out artists also `unseen_hand`, of their pictures only.
    What the catalogue does not tell (no artists, no contents) is left out.
    """
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in OUTPUTS}
    for pixels in _batches(pictures.pixels, batch_size):
        for name, encoded in encoder.encode(pixels).items():
            vectors[name].append(encoded.numpy())
    unseen_N = np.isin(np.array(pictures.artists, dtype=object), list(held_out_artists))
    result: dict[str, Any] = {}
    for name in OUTPUTS:
        vectors_NE = np.concatenate(vectors[name])
        hand = nearest_agreement(vectors_NE, pictures.artists, pictures.contents, ~unseen_N)
        content = nearest_agreement(vectors_NE, pictures.contents, pictures.artists, ~unseen_N)
        unseen = nearest_agreement(vectors_NE, pictures.artists, pictures.contents, unseen_N)
        result[name] = {
            key: {"share": found.share, "count": found.count}
            for key, found in (("hand", hand), ("content", content), ("unseen_hand", unseen))
            if found.count
        }
    return result


def _batches(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(pixels), size):
        yield pixels[start : start + size]
