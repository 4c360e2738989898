"""Export of thumbnails: the catalogue's pictures, small, in one file.

In: prepared/items.parquet and the picture files. Out: pictures.npy and pictures.offsets.npy of
recsys/bundle/catalogue.py, so that a bundle shows its items without the folder of the raw data.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from embedding.image.pictures import jpeg_of, load_pictures
from recsys.files import PREPARE_AGAIN, new_array, reading, write_array

_BLOCK_ROWS = 256


def write_thumbnails(
    folder: Path, prepared: Path, root: Path, *, num_items: int, pixels: int, threads: int
) -> int:
    """Write a square JPEG of every item that has a usable picture; return how many there are.

    Args:
        folder: `catalogue/` of a bundle in the making.
        root: folder that the pictures' paths are relative to.
        num_items: rows, unknown row 0 included.
        pixels: of a side.
    """
    lengths_N = np.zeros(num_items, np.int64)
    packed, row = folder / "pictures.bin", 0
    path = prepared / "items.parquet"
    with (
        open(packed, "wb") as stream,
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=num_items, desc="pictures", leave=False, disable=None) as progress,
        reading(path, PREPARE_AGAIN),
    ):
        file = pq.ParquetFile(path, memory_map=True)
        for batch in file.iter_batches(_BLOCK_ROWS, columns=["image"]):
            names = batch.column(0).to_pylist()
            pictures, reasons = load_pictures(pool, root.resolve(), names, pixels)
            usable = [picture for picture, r in zip(pictures, reasons, strict=True) if r is None]
            files = pool.map(jpeg_of, usable)
            for place, reason in enumerate(reasons):
                if reason is None:
                    content = next(files)
                    lengths_N[row + place] = len(content)
                    stream.write(content)
            row += len(names)
            progress.update(len(names))
    write_array(folder / "pictures.offsets.npy", np.concatenate([[0], np.cumsum(lengths_N)]))
    num_bytes = packed.stat().st_size
    array = new_array(folder / "pictures.npy", np.uint8, (num_bytes,))
    if num_bytes:
        array[:] = np.memmap(packed, dtype=np.uint8, mode="r")
        array.flush()
    packed.unlink()
    return int((lengths_N > 0).sum())
