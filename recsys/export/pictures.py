"""Export of thumbnails: the catalogue's pictures, small, in one file.

In: prepared/items.parquet, the picture files and, for a delta, the base, whose thumbnails are taken where
the picture has not changed. Out: pictures.npy and pictures.offsets.npy of recsys/bundle/catalogue.py, so
that a bundle shows its items without the folder of the raw data.
"""

import datetime
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from embedding.image.pictures import jpeg_of, load_pictures
from recsys.bundle.catalogue import Catalogue
from recsys.bundle.spec import read_spec
from recsys.bundle.vocabulary import Vocabulary
from recsys.files import PREPARE_AGAIN, new_array, reading, write_array
from recsys.progress import progress_bar

_BLOCK_ROWS = 256


class EarlierThumbnails:
    """Thumbnails of an earlier bundle whose picture files have not been written to since."""

    def __init__(self, bundle: Path, root: Path, pixels: int):
        """Open the bundle.

        Args:
            root: folder that the pictures' paths are relative to.
            pixels: of a side; thumbnails of another size are none.
        """
        spec = read_spec(bundle)
        self._catalogue = Catalogue(bundle / "catalogue", spec)
        self._rows = Vocabulary(bundle / "vocab", "item_id", spec.id_type("item_id"))
        self._since = datetime.datetime.fromisoformat(spec.created).timestamp()
        self._root, self._pixels = root, pixels

    def of(self, ids: Sequence[str], names: Sequence[str | None]) -> list[bytes | None]:
        """Return the thumbnails (JPEG) of items by ids and picture names; None: it is to be made."""
        if "image" not in self._catalogue.columns:
            return [None] * len(ids)
        rows = self._rows.rows_of(ids)
        earlier = self._catalogue.column("image").take(rows).to_pylist()
        return [
            self._thumbnail(row, name) if row and name is not None and name == before else None
            for row, name, before in zip(rows.tolist(), names, earlier, strict=True)
        ]

    def _thumbnail(self, row: int, name: str) -> bytes | None:
        path, content = self._root / name, self._catalogue.picture(row)
        if content is None or not path.is_file() or os.stat(path).st_mtime >= self._since:
            return None
        with Image.open(io.BytesIO(content)) as image:
            return content if image.size == (self._pixels, self._pixels) else None


def write_thumbnails(
    folder: Path,
    prepared: Path,
    root: Path,
    *,
    num_items: int,
    pixels: int,
    threads: int,
    base: Path | None = None,
) -> int:
    """Write a square JPEG of every item that has a usable picture; return how many there are.

    Args:
        folder: `catalogue/` of a bundle in the making.
        root: folder that the pictures' paths are relative to.
        num_items: rows, unknown row 0 included.
        pixels: of a side.
        base: earlier bundle, whose thumbnails are taken where they are of the same picture.
    """
    earlier = None if base is None else EarlierThumbnails(base, root, pixels)
    lengths_N = np.zeros(num_items, np.int64)
    packed, row = folder / "pictures.bin", 0
    path = prepared / "items.parquet"
    with (
        open(packed, "wb") as stream,
        ThreadPoolExecutor(threads) as pool,
        progress_bar(total=num_items, desc="pictures", unit="item") as progress,
        reading(path, PREPARE_AGAIN),
    ):
        file = pq.ParquetFile(path, memory_map=True)
        for batch in file.iter_batches(_BLOCK_ROWS, columns=["item_id", "image"]):
            ids = batch.column("item_id").fill_null("").to_pylist()
            names = batch.column("image").to_pylist()
            kept = [None] * len(ids) if earlier is None else earlier.of(ids, names)
            made = _made(pool, root, names, kept, pixels)
            lengths_N[row : row + len(made)] = [len(content) for content in made]
            stream.write(b"".join(made))
            row += len(made)
            progress.update(len(made))
    write_array(folder / "pictures.offsets.npy", np.concatenate([[0], np.cumsum(lengths_N)]))
    num_bytes = packed.stat().st_size
    array = new_array(folder / "pictures.npy", np.uint8, (num_bytes,))
    if num_bytes:
        array[:] = np.memmap(packed, dtype=np.uint8, mode="r")
        array.flush()
    packed.unlink()
    return int((lengths_N > 0).sum())


def _made(
    pool: ThreadPoolExecutor,
    root: Path,
    names: Sequence[str | None],
    kept: Sequence[bytes | None],
    pixels: int,
) -> list[bytes]:
    """Return the thumbnails of a block: those kept from before, or made; empty without a picture."""
    wanted = [name if content is None else None for name, content in zip(names, kept, strict=True)]
    pictures, reasons = load_pictures(pool, root.resolve(), wanted, pixels)
    usable = [picture for picture, r in zip(pictures, reasons, strict=True) if r is None]
    files = pool.map(jpeg_of, usable)
    made = [next(files) if reason is None else b"" for reason in reasons]
    return [new if old is None else old for new, old in zip(made, kept, strict=True)]
