"""Heads of the image encoder: fitted on a sample, measured on pictures that no training has seen.

Over any number of ranks: each runs the network on its share of the sample, rank 0 fits, all take
over what it fitted. Called by embedding/image/making.py. Shapes: N pictures, S side, V views, D widths.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from embedding.features.catalogue import drawn
from embedding.features.extractor import batched
from embedding.image.augmentation import random_crops
from embedding.image.encoder import OUTPUTS, ImageEncoder
from embedding.image.neighbour_accuracy import nearest_neighbour_accuracy
from embedding.image.sample import Pictures
from embedding.image.triplets import Sample
from recsys.errors import UserError
from recsys.runtime.collectives import gather, share

_REDUCTION_PICTURES = 1024
"""Pictures that centres and components are fitted on."""
_LEAST_CROP = 0.6


def fit_heads(
    encoder: ImageEncoder, pictures: Pictures, *, num_views: int, batch_size: int, seed: int
) -> None:
    """Fit projections and scaling in place; all ranks call this, each with its share.

    Raises:
        UserError: no usable picture on any rank.
    """
    counts = gather(lambda: len(pictures))
    if not sum(counts):
        raise UserError("no usable picture to fit the image encoder's heads on")
    # The rank with most pictures speaks for all.
    first = int(np.argmax(counts))

    def fit_reductions() -> None:
        sample = drawn(len(pictures), _REDUCTION_PICTURES, seed)
        encoder.fit_reductions(pictures.pixels[sample], batch_size)

    _fit_on(first, encoder, fit_reductions)

    def reduce() -> tuple[dict[str, torch.Tensor], list[str | None], list[str | None]]:
        """Return reduced statistics [N, V, D] by output, artists and contents of this rank's share."""
        # Every rank crops its pictures in another way.
        of_rank = seed * 7919 + (dist.get_rank() if dist.is_initialized() else 0)
        reduced = _reduced_views(encoder, pictures, num_views, batch_size, of_rank)
        return reduced, pictures.artists, pictures.contents

    parts = gather(reduce)

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
    """Return int64 [N]: a number per name; every null gets one of its own."""
    numbers: dict[Any, int] = {}
    keys = [("row", row) if name is None else name for row, name in enumerate(names)]
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def _fit_on(source: int, encoder: ImageEncoder, fit: Callable[[], None]) -> None:
    """Call `fit` on rank `source`; all ranks' encoders take over what it fitted."""

    def fitted() -> dict[str, torch.Tensor]:
        """Return the fitted tensors, [D, ...] by name."""
        fit()
        return {name: values.cpu() for name, values in encoder.fitted_state().items()}

    state = share(fitted, source=source)
    encoder.restore_fitted(state)


def measure(
    encoder: ImageEncoder, pictures: Pictures, *, held_out_artists: Sequence[str], batch_size: int
) -> dict[str, Any]:
    """Return the nearest-neighbour accuracy of each output on the pictures, for artist and content.

    Keys: `semantic` and `style`, each with `hand` (nearest neighbour among other contents has the
    same artist) and `content` (nearest among other artists shows the same), each a share and the
    pictures it was counted on; with held-out artists also `unseen_hand`, of their pictures only.
    Measures of columns that the catalogue lacks (artists, contents) are left out.
    """
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in OUTPUTS}
    for pixels in batched(pictures.pixels, batch_size):
        for name, encoded in encoder.encode(pixels).items():
            vectors[name].append(encoded.numpy())
    artists, contents = pictures.artists, pictures.contents
    unseen_N = np.isin(np.array(artists, dtype=object), list(held_out_artists))
    result: dict[str, Any] = {}
    for name in OUTPUTS:
        vectors_NE = np.concatenate(vectors[name])
        accuracies = {
            "hand": nearest_neighbour_accuracy(vectors_NE, artists, contents, ~unseen_N),
            "content": nearest_neighbour_accuracy(vectors_NE, contents, artists, ~unseen_N),
            "unseen_hand": nearest_neighbour_accuracy(vectors_NE, artists, contents, unseen_N),
        }
        result[name] = {
            key: {"share": found.share, "count": found.count}
            for key, found in accuracies.items()
            if found.count
        }
    return result
