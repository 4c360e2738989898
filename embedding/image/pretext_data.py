"""Pictures and tags of the tag pretext: decoded once by all ranks, the same on every rank.

Input: item rows of the catalogue. Output: TagData for embedding/image/pretext.py.
Shapes: N pictures with tags, M pictures decoded, S side, T tags.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding.features.catalogue import Catalogue
from embedding.image.config import ImageConfig
from embedding.image.sample import decoded
from recsys.array_headers import one_header_at_a_time
from recsys.errors import StorageError, UserError
from recsys.files import new_array
from recsys.job import say
from recsys.runtime.collectives import gather, share
from recsys.runtime.env import Env

_VALID_SHARE = 10
"""One picture in so many validates."""
_DECODED_AT_ONCE = 512


@dataclass
class TagData:
    """Pictures with their tags; equal on all ranks."""

    pixels: np.ndarray
    """uint8 [M, S, S, 3], in memory or memory-mapped."""
    rows: np.ndarray
    """int64 [N]: positions in `pixels` of the pictures to train on."""
    targets: np.ndarray
    """bool [N, T]."""
    tags: list[str]
    groups: np.ndarray
    """int64 [N]: pictures of one group (content) are all trained on or all validated on."""


def tag_targets(
    tag_lists: Sequence[list[str] | None], min_count: int
) -> tuple[np.ndarray, list[str]]:
    """Return (bool [N, T], tags by falling count) of the tags on at least `min_count` items.

    Raises:
        UserError: no tag is frequent enough.
    """
    counts = Counter(tag for tags in tag_lists for tag in set(tags or ()))
    kept = sorted((t for t, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))
    if not kept:
        raise UserError(
            f"encoder.image.pretext_min_count={min_count}: no tag is on that many pictures; lower it, "
            f"map items.tags in the recipe, or set encoder.image.pretext_epochs=0"
        )
    index = {tag: i for i, tag in enumerate(kept)}
    targets = np.zeros((len(tag_lists), len(kept)), dtype=bool)
    for row, tags in enumerate(tag_lists):
        for tag in tags or ():
            if tag in index:
                targets[row, index[tag]] = True
    return targets, kept


def split_groups(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training rows int64 [A], validation rows [B]): a seeded tenth of the groups validates."""
    distinct = np.unique(groups)
    chosen = np.random.default_rng(seed).permutation(distinct)
    valid = np.isin(groups, chosen[: max(1, len(distinct) // _VALID_SHARE)])
    return np.flatnonzero(~valid), np.flatnonzero(valid)


def tag_data(
    catalogue: Catalogue,
    rows: list[int],
    root: Path,
    folder: Path,
    *,
    config: ImageConfig,
    env: Env,
) -> TagData:
    """Decode the pictures of ascending item rows, each rank its share, and count their tags.

    Args:
        root: of the pictures.
        folder: keeps the decoded pictures; on storage that all ranks see.

    Raises:
        UserError: no tag is frequent enough.
        StorageError: the pictures do not fit on the disk.
    """
    cache = PictureCache(folder, len(rows), config.size)
    share(cache.create)
    pixels = cache.open()

    def decode() -> np.ndarray:
        """Return bool [M]: the pictures of this rank's share that can be used."""
        usable = np.zeros(len(rows), dtype=bool)
        mine = np.array_split(np.arange(len(rows)), env.world_size)[env.rank]
        for piece in np.array_split(mine, max(1, len(mine) // _DECODED_AT_ONCE)):
            names = catalogue.column("image", [rows[i] for i in piece])
            pixels[piece], usable[piece] = decoded(root, names, config)
        return usable

    kept = np.flatnonzero(np.logical_or.reduce(gather(decode)))
    tagged = [rows[i] for i in kept]
    targets, tags = tag_targets(catalogue.column("tags", tagged), config.pretext_min_count)
    contents = catalogue.column("content", tagged)
    groups = [c or f"row {row}" for c, row in zip(contents, tagged, strict=True)]
    say(f"tag pretext: {len(kept):,} pictures, {len(tags)} tags, {env.world_size} rank(s)")
    return TagData(
        pixels=pixels,
        rows=kept,
        targets=targets,
        tags=tags,
        groups=np.unique(groups, return_inverse=True)[1],
    )


class PictureCache:
    """Decoded pictures in one memory-mapped file, filled by all ranks, removed when done.

    Memory stays free, ranks of one host share the pages, and a second pass does not decode again.
    """

    def __init__(self, folder: Path, count: int, size: int):
        """Args: folder: on storage that all ranks see."""
        self.folder = folder
        self.path = folder / "pictures.npy"
        self.shape = (count, size, size, 3)

    def create(self) -> None:
        """Allocate the file; one rank calls this before any rank opens it.

        Raises:
            StorageError: not enough space.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = int(np.prod(self.shape))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise StorageError(
                f"{self.folder}: {needed / 2**30:.1f} GiB are needed for the pretext's pictures, "
                f"{free / 2**30:.1f} GiB are free; lower encoder.image.pretext_max_pictures"
            )
        new_array(self.path, np.uint8, self.shape)

    def open(self) -> np.ndarray:
        """Return uint8 [M, S, S, 3], memory-mapped for reading and writing."""
        with one_header_at_a_time():
            return np.lib.format.open_memmap(self.path, mode="r+")
