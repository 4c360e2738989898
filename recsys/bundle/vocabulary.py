"""Vocabularies of a bundle: id to row by sorted hashes, row to id by offsets; memory-mapped, exact.

    vocab/<table>.hashes.npy    uint64 [K], ascending
    vocab/<table>.rows.npy      int64 [K], the row of each hash
    vocab/<table>.offsets.npy   int64 [N + 1], where each row's id is in
    vocab/<table>.texts.npy     uint8, UTF-8

Ids of equal hash stand beside each other, and the stored text decides. Row 0, the unknown, has no id.
Shapes: K ids, N rows.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.bundle.spec import EXPORT_AGAIN
from recsys.data.raw_text import as_written
from recsys.files import new_array, read_array, write_array
from recsys.schema import UNKNOWN_ROW

_BLAKE2B = hashlib.blake2b(digest_size=8)
_BLOCK_ROWS = 65_536
_FEW = 8
"""Ids that are compared one by one: a dozen calls of numpy cost more."""


def hashes_of(encoded: Iterable[bytes]) -> NDArray[np.uint64]:
    """Return the 64-bit BLAKE2b hashes [K] of ids in UTF-8."""
    digests = []
    for content in encoded:
        hashing = _BLAKE2B.copy()  # a new one costs more, for its many arguments
        hashing.update(content)
        digests.append(hashing.digest())
    return np.frombuffer(b"".join(digests), "<u8")


def _encoded(ids: Iterable[str]) -> list[bytes]:
    return [text.encode("utf-8", "surrogatepass") for text in ids]


class Vocabulary(Mapping[str, int]):
    """Row by id, of one table; ids that were added at run time come after those of the files."""

    def __init__(self, folder: Path, table: str, written: str | None = None):
        """Map the files of a table below `vocab/`.

        Args:
            written: FeatureSpec.column_type of the ids: "7" finds "7.0" of a floating-point column.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self._hashes_K, self._rows_K, self._offsets, self._texts = (
            # Plain views: indexing a memmap costs several times as much.
            np.asarray(read_array(folder / f"{table}.{part}.npy", EXPORT_AGAIN, mmap=True))
            for part in ("hashes", "rows", "offsets", "texts")
        )
        self._written = written
        self._added: dict[str, int] = {}
        self._added_ids: list[str] = []

    @property
    def num_rows(self) -> int:
        """Rows of the files, unknown row 0 included."""
        return len(self._offsets) - 1

    def __getitem__(self, text: str) -> int:
        """Return an id's row.

        Raises:
            KeyError: no such id.
        """
        row = int(self.rows_of([text])[0])
        if row == UNKNOWN_ROW:
            raise KeyError(text)
        return row

    def _row_from(self, text: str, wanted: int, place: int) -> int:
        """Return an id's row, its hash being `wanted`, first found at `place`; 0: not listed."""
        while place < len(self._hashes_K) and self._hashes_K.item(place) == wanted:
            row = self._rows_K.item(place)
            if self.id_of(row) == text:
                return row
            place += 1
        return self._added.get(text, UNKNOWN_ROW)

    def __len__(self) -> int:
        return len(self._hashes_K) + len(self._added_ids)

    def __iter__(self) -> Iterator[str]:
        for row in range(1, self.num_rows):
            yield self.id_of(row)
        yield from self._added_ids

    def id_of(self, row: int) -> str:
        """Return the id of a row; "" for the unknown row 0."""
        if row >= self.num_rows:
            return self._added_ids[row - self.num_rows]
        start, stop = self._offsets.item(row), self._offsets.item(row + 1)
        return self._texts[start:stop].tobytes().decode("utf-8", "surrogatepass")

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of ids [K], sought as they are, then as prepare wrote them; 0: not listed."""
        if not ids:
            return np.zeros(0, np.int64)
        rows_K = self._rows_of_texts(ids)
        missing = np.flatnonzero(rows_K == UNKNOWN_ROW)
        if len(missing) and self._written not in (None, "text"):
            given = pa.array([ids[place] for place in missing.tolist()], pa.large_string())
            rows_K[missing] = self._rows_of_texts(as_written(given, self._written).to_pylist())
        return rows_K

    def _rows_of_texts(self, ids: Sequence[str]) -> NDArray[np.int64]:
        encoded = _encoded(ids)
        wanted_K = hashes_of(encoded)
        places_K = np.searchsorted(self._hashes_K, wanted_K)
        rows_K = np.zeros(len(ids), np.int64)
        if len(ids) > _FEW:
            rows_K = self._rows_at(places_K, encoded)
        for place in np.flatnonzero(rows_K == UNKNOWN_ROW).tolist():
            wanted, first = wanted_K.item(place), places_K.item(place)
            rows_K[place] = self._row_from(ids[place], wanted, first)
        return rows_K

    def _rows_at(self, places_K: NDArray[np.int64], encoded: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the rows [K] of ids that are the ones at their places of the hashes; 0 for others."""
        if not len(self._hashes_K):
            return np.zeros(len(encoded), np.int64)
        rows_K = self._rows_K[np.minimum(places_K, len(self._hashes_K) - 1)]
        starts_K = self._offsets[rows_K]
        lengths_K = np.array(list(map(len, encoded)))
        is_as_long_K = (self._offsets[rows_K + 1] - starts_K == lengths_K) & (lengths_K > 0)
        lengths_S = lengths_K[is_as_long_K]
        if not len(lengths_S):
            return np.zeros(len(encoded), np.int64)
        # All texts of the right length, end to end, against those that were given.
        firsts_S = np.cumsum(lengths_S) - lengths_S
        bytes_V = np.repeat(starts_K[is_as_long_K] - firsts_S, lengths_S)
        bytes_V += np.arange(len(bytes_V))
        given = b"".join(compress(encoded, is_as_long_K.tolist()))
        is_equal_V = self._texts[bytes_V] == np.frombuffer(given, np.uint8)
        is_found_K = is_as_long_K
        is_found_K[is_as_long_K] = np.logical_and.reduceat(is_equal_V, firsts_S)
        return np.where(is_found_K, rows_K, UNKNOWN_ROW)

    def starting_with(self, prefix: str, limit: int) -> list[str]:
        """Return up to `limit` ids that begin with a text, by row; every id's first bytes are read."""
        wanted = np.frombuffer(prefix.encode("utf-8", "surrogatepass"), np.uint8)
        found: list[str] = []
        for start in range(1, self.num_rows, _BLOCK_ROWS):
            offsets = np.asarray(self._offsets[start : start + _BLOCK_ROWS + 1])
            rows_B = np.flatnonzero(np.diff(offsets) >= max(len(wanted), 1))
            for place, byte in enumerate(wanted):
                rows_B = rows_B[self._texts[offsets[rows_B] + place] == byte]
            rows_B = rows_B[: limit - len(found)]
            found += [self.id_of(start + int(row)) for row in rows_B]
            if len(found) == limit:
                return found
        added = (text for text in self._added_ids if text.startswith(prefix))
        return found + list(islice(added, limit - len(found)))

    def add(self, text: str) -> int:
        """Give the next row to an id; an id that is listed keeps its row."""
        known = self.get(text)
        if known is not None:
            return known
        row = self.num_rows + len(self._added_ids)
        self._added[text] = row
        self._added_ids.append(text)
        return row


def write_vocabulary(
    folder: Path, table: str, *, num_rows: int, blocks: Iterable[tuple[NDArray, Sequence[str]]]
) -> None:
    """Write the vocabulary of a table.

    Args:
        folder: `vocab/` of a bundle in the making.
        num_rows: N, unknown row 0 included.
        blocks: (rows [B], their ids) by ascending row, none for row 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hashes_N = np.zeros(num_rows, dtype=np.uint64)
    lengths_N = np.zeros(num_rows, dtype=np.int64)
    is_listed_N = np.zeros(num_rows, dtype=bool)
    texts = folder / f"{table}.texts.bin"
    with open(texts, "wb") as stream:
        for rows_B, ids in blocks:
            encoded = _encoded(ids)
            hashes_N[rows_B] = hashes_of(encoded)
            lengths_N[rows_B] = [len(content) for content in encoded]
            is_listed_N[rows_B] = True
            stream.write(b"".join(encoded))
    rows_K = np.flatnonzero(is_listed_N)
    order_K = np.argsort(hashes_N[rows_K], kind="stable")
    write_array(folder / f"{table}.hashes.npy", hashes_N[rows_K][order_K])
    write_array(folder / f"{table}.rows.npy", rows_K[order_K])
    write_array(folder / f"{table}.offsets.npy", np.concatenate([[0], np.cumsum(lengths_N)]))
    num_bytes = texts.stat().st_size
    if num_bytes:
        array = new_array(folder / f"{table}.texts.npy", np.uint8, (num_bytes,))
        array[:] = np.memmap(texts, dtype=np.uint8, mode="r")
        array.flush()
    else:
        write_array(folder / f"{table}.texts.npy", np.zeros(0, np.uint8))
    texts.unlink()
