"""Samples of the catalogue's pictures: for training, for fitting the heads, and for measuring.

Called by embedding/image/making.py. Shapes: N pictures, S side.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from embedding.features.catalogue import Catalogue, drawn, sample_rows
from embedding.holdout import held_out
from embedding.image.config import ImageConfig
from embedding.image.pictures import load_pictures
from recsys.errors import UserError

MEASURED_PICTURES = 4096
"""Most unseen pictures the image encoder is measured on."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Decoded pictures with their artists and contents."""

    pixels: np.ndarray
    """uint8 [N, S, S, 3]."""
    artists: list[str | None]
    contents: list[str | None]

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, kw_only=True)
class PictureSample:
    """Item rows whose pictures an encoder is trained and measured on."""

    rows: list[int]
    """Ascending; the arrays below are positions in it."""
    learned: np.ndarray
    """int64 [L], in a seeded order: training and fitting."""
    measured: np.ndarray
    """int64 [M], ascending: pictures that no training sees."""


def choose_pictures(catalogue: Catalogue, config: ImageConfig, seed: int) -> PictureSample:
    """Return a seeded sample of the catalogue, without held-out contents and artists in `learned`.

    Raises:
        UserError: no picture is by a held-out artist.
    """
    rows = sample_rows(catalogue.num_rows, config.pretext_max_pictures, seed)
    labels = {name: catalogue.column(name, rows) for name in ("item_id", "artist", "content")}
    names = [c or i for c, i in zip(labels["content"], labels["item_id"], strict=True)]
    unseen_artist = np.isin(np.array(labels["artist"], dtype=object), config.held_out_artists)
    unseen = held_out(names, config.held_out_tenths)
    if config.held_out_artists and not unseen_artist.any():
        raise UserError(
            f"encoder.image.held_out_artists={config.held_out_artists}: no picture is by any of "
            f"them; check the column items.artist of the recipe"
        )
    learned = np.random.default_rng(seed).permutation(np.flatnonzero(~unseen & ~unseen_artist))
    measured = np.flatnonzero(unseen)
    return PictureSample(
        rows=rows,
        learned=learned,
        measured=measured[drawn(len(measured), MEASURED_PICTURES, seed)],
    )


def decoded(
    root: Path, names: list[str | None], config: ImageConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [N, S, S, 3], bool [N] usable) of picture files."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        pixels, reasons = load_pictures(pool, root.resolve(), names, config.size, config.framing)
    return pixels, np.array([reason is None for reason in reasons], dtype=bool)


def load_usable(catalogue: Catalogue, root: Path, rows: list[int], config: ImageConfig) -> Pictures:
    """Return the pictures at ascending item rows that can be used, [N, S, S, 3]."""
    columns = {name: catalogue.column(name, rows) for name in ("image", "artist", "content")}
    pixels, usable = decoded(root, columns["image"], config)
    good = np.flatnonzero(usable)
    return Pictures(
        pixels=pixels[good],
        artists=[columns["artist"][i] for i in good],
        contents=[columns["content"][i] for i in good],
    )
