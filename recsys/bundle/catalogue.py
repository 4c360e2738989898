"""Catalogue of a bundle: what people see of an item, memory-mapped.

    catalogue/items.arrow          Arrow file of COLUMNS, BATCH_ROWS rows a batch, row 0 included
    catalogue/pictures.npy         uint8: thumbnails (JPEG) end to end
    catalogue/pictures.offsets.npy int64 [N + 1]; an item without a picture has no bytes

Shapes: N items.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.bundle.spec import EXPORT_AGAIN, BundleSpec
from recsys.files import read_array, reading

COLUMNS = ("item_id", "title", "artist", "tags", "content", "text", "image", "first_time")
"""`tags` is a list of texts, `first_time` the time of the item's first interaction in the log's unit
(null: not known); the others are texts. A data set has some of them."""
BATCH_ROWS = 65_536


class Catalogue:
    """Cards of items, those added at run time included."""

    def __init__(self, folder: Path, spec: BundleSpec):
        """Map the files of `catalogue/`.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        path = folder / "items.arrow"
        with reading(path, EXPORT_AGAIN):
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
                self.table = pa.Table.from_batches(self._batches, reader.schema)
        self._pictures = self._offsets = None
        if "catalogue/pictures.npy" in spec.sizes:
            self._pictures, self._offsets = (
                read_array(folder / f"pictures{part}.npy", EXPORT_AGAIN, mmap=True)
                for part in ("", ".offsets")
            )
        self._added: list[dict[str, Any]] = []
        self._added_pictures: list[bytes | None] = []

    def __len__(self) -> int:
        """Rows of all items, unknown row 0 and added ones included."""
        return self.table.num_rows + len(self._added)

    @property
    def columns(self) -> list[str]:
        """Columns that the data set has, of COLUMNS."""
        return self.table.column_names

    def card(self, row: int) -> dict[str, Any]:
        """Return the columns of an item by name; None where it has none."""
        if row >= self.table.num_rows:
            return dict(self._added[row - self.table.num_rows])
        batch = self._batches[row // BATCH_ROWS]
        return {
            name: batch.column(place)[row % BATCH_ROWS].as_py()
            for place, name in enumerate(self.columns)
        }

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of all items by row, added ones behind those of the files."""
        stored = self.table.column(name)
        added = pa.array([card.get(name) for card in self._added], stored.type)
        return pa.chunked_array([*stored.chunks, added], stored.type)

    def picture(self, row: int) -> bytes | None:
        """Return an item's thumbnail (JPEG); None where it has none."""
        if row >= self.table.num_rows:
            return self._added_pictures[row - self.table.num_rows]
        if self._pictures is None or self._offsets is None:
            return None
        start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._pictures[start:stop].tobytes() if stop > start else None

    def add(self, card: Mapping[str, Any], picture: bytes | None = None) -> None:
        """Add an item's columns and thumbnail in memory, at the next row."""
        self._added.append({name: card.get(name) for name in self.columns})
        self._added_pictures.append(picture)
