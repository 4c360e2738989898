"""Feature tables of own vectors: made whole by prepare, and grown by an append.

In: rows and vectors of the items, in the order of rows. Out: features/<name>/ as
embedding/features/store.py describes it. An append keeps the scale and the vectors of the items before:
its shards that nothing is added to are hard links. The masks (ROW) note of every added vector to which
table it was added, so that those of an append that was killed are told apart.
Shapes: N rows of items, E vector width.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding.features.codebook_fit import SAMPLE_ROWS, fit_codebooks
from embedding.features.codes import Codebooks, RowForm
from embedding.features.store import (
    MASK_CODES,
    ROW,
    FeatureManifest,
    FeatureTable,
    ShardSpec,
    entry_file,
    spec_of,
    write_feature_manifest,
    write_shard,
)
from recsys.data.prepare.engine import Table
from recsys.data.prepare.writing import link
from recsys.errors import UserError
from recsys.files import EMBED_AGAIN, read_array
from recsys.job import say

SHARD_ROWS = 65_536
"""Rows of a shard, and of a piece that is held in memory."""
SCALING = "divided by one number: root mean square 1 over all items"
Rows = tuple[np.ndarray, np.ndarray]
"""Item rows [n], ascending, and their vectors, float32 [n, E]."""


@dataclass(frozen=True, kw_only=True)
class KnownVectors:
    """Vectors that an append finds: the items before keep theirs."""

    table: FeatureTable
    made_of: str
    """Checksum of the vectors before (Manifest.vectors)."""
    items: Table
    """Vocabulary of the items before (id, row, count)."""
    num_rows: int
    """Rows of the items before, row 0 included; a table that a killed append left behind has more."""

    @property
    def scale(self) -> float:
        """Number by which the vectors are multiplied."""
        scale = self.table.manifest.scale
        assert scale is not None, "open_known has looked"
        return scale

    def stored(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows [start, stop) as stored, [n, C], and which of them have a vector [n].

        Items that came later have none, nor have those that an append gave one which was killed.
        """
        known = min(max(self.num_rows - start, 0), stop - start)
        stored_NC = self.table.form.zeros(stop - start)
        has_N = np.zeros(stop - start, dtype=bool)
        if known:
            stored_NC[:known] = self.table.stored(start, start + known)
            has_N[:known] = self.table.has_vector(np.arange(start, start + known))
            has_N[:known] &= ~self.left_behind(start, start + known)
            stored_NC[~has_N] = 0
        return stored_NC, has_N

    @property
    def is_left_behind(self) -> bool:
        """Whether a killed append left the table behind, with rows or vectors more."""
        table = self.table
        return table.manifest.made_of != self.made_of or table.num_rows > self.num_rows

    def left_behind(self, start: int, stop: int) -> np.ndarray:
        """Return which of the rows [start, stop) a killed append gave their vector, bool [n]."""
        left_N = np.zeros(stop - start, dtype=bool)
        if self.table.manifest.made_of == self.made_of:
            return left_N
        for shard in self.table.manifest.shards:
            first, end = max(start, shard.start_row), min(stop, shard.end_row)
            if first < end:
                rows = read_array(self.table.folder / shard.rows_file, EMBED_AGAIN, mmap=True)
                added_to_N = rows["high"][first - shard.start_row : end - shard.start_row]
                left_N[first - start : end - start] = added_to_N == _mark(self.made_of)
        return left_N

    def shard(self, index: int, start: int, stop: int) -> ShardSpec | None:
        """Return the shard of this number if it has the rows [start, stop), all as they were before."""
        shards = self.table.manifest.shards
        spec = shards[index] if index < len(shards) and stop <= self.num_rows else None
        if not spec or (spec.start_row, spec.end_row) != (start, stop):
            return None
        return None if self.left_behind(start, stop).any() else spec


def open_known(folder: Path, made_of: str, items: Table, num_rows: int) -> KnownVectors:
    """Return the vectors of a folder that an append adds to.

    Args:
        folder: features/<name>/.
        made_of, items, num_rows: as KnownVectors has them.

    Raises:
        UserError: they are missing, broken, not those of the prepared data, or of a version that kept
            no scale.
    """
    try:
        table = FeatureTable(folder)
    except UserError as error:
        raise UserError(
            f"{error}; for own vectors: prepare all days anew without append"
        ) from error
    made = table.manifest
    if made_of not in (made.made_of, made.made_of_before) or made.scale is None:
        raise UserError(
            f"{folder}: not the vectors that the prepared data was made with, or of a version that kept "
            f"no scale of them; nothing can be appended to them: prepare all days anew without append"
        )
    return KnownVectors(table=table, made_of=made_of, items=items, num_rows=num_rows)


def write_table(
    name: str,
    files: str,
    pieces: Callable[[], Iterable[Rows]],
    *,
    width: int,
    bits: int,
    num_rows: int,
    items_checksum: str,
    folder: Path,
) -> str:
    """Write a feature table into an empty folder; return the checksum of the vectors.

    Args:
        files: name of the files, for people.
        pieces: yields the vectors, ascending by row through all pieces; called twice.
        bits: of a stored number: 16, or 2 or 4 as codes.
        num_rows: of the items, row 0 included.
        items_checksum: of the manifest.
    """
    squares, num_vectors = 0.0, 0
    digest = hashlib.sha256()
    sample, step = [], -(-num_rows // SAMPLE_ROWS)
    for start, vectors_NE in in_shards(pieces(), num_rows, width):
        squares += float(np.square(vectors_NE, dtype=np.float64).sum())
        num_vectors += int(vectors_NE.any(axis=1).sum())
        digest.update(vectors_NE[0 if start else 1 :].tobytes())
        if bits != 16:
            sample.append(vectors_NE[::step].copy())
    scale = scale_of(squares, num_vectors * width)
    books = _write_codebooks(folder, sample, scale, bits)
    form = RowForm(dim=width, codebooks=books)
    shards: list[ShardSpec] = []
    for start, vectors_NE in in_shards(pieces(), num_rows, form.dim):
        has_N = np.asarray(vectors_NE.any(axis=1))
        stored_NC = form.encode(scaled(vectors_NE, scale))
        shards.append(_write_shard(folder, len(shards), start, stored_NC, has_N, form))
    made_of, num_masked = digest.hexdigest(), num_rows - num_vectors
    write_feature_manifest(
        folder,
        FeatureManifest(
            name=name,
            encoder=f"own vectors of {files}",
            revision=made_of[:16],
            dim=form.dim,
            bits=bits,
            codebooks=books.digest if books else "",
            dtype=str(form.dtype),
            count=num_rows,
            items_checksum=items_checksum,
            made_of=made_of,
            num_masked=num_masked,
            masked={"none": num_masked},
            scaling=SCALING,
            scale=scale,
            shards=tuple(shards),
        ),
    )
    say(f"vectors {name}: {num_vectors:,} of {num_rows - 1:,} items, {form.dim} numbers each")
    return made_of


def _write_codebooks(
    folder: Path, sample: list[np.ndarray], scale: float, bits: int
) -> Codebooks | None:
    """Fit codebooks on a sample of vectors [n, E] and write them; None without a sample: fp16."""
    if not sample:
        return None
    books = fit_codebooks(scaled(np.concatenate(sample), scale), bits)
    books.write(folder)
    return books


def write_grown_table(
    known: KnownVectors, pieces: Iterable[Rows], num_rows: int, items_checksum: str, folder: Path
) -> str:
    """Write a feature table with the items that an append adds; return the checksum of the vectors.

    An item that has a vector keeps it; one that had none gets the one it is given now.

    Args:
        pieces: vectors of new and of known items, ascending by row through all pieces.
        num_rows: of the items now, row 0 included.
        items_checksum: of the grown manifest.
        folder: empty.
    """
    digest, form = hashlib.sha256(known.made_of.encode()), known.table.form
    if form.codebooks:
        form.codebooks.write(folder)
    shards: list[ShardSpec] = []
    num_vectors = num_new = 0
    for start, given_NE in in_shards(pieces, num_rows, known.table.dim):
        stop = start + len(given_NE)
        stored_NC, has_N = known.stored(start, stop)
        new_N = np.flatnonzero(given_NE.any(axis=1) & ~has_N)
        digest.update((start + new_N).tobytes() + given_NE[new_N].tobytes())
        stored_NC[new_N] = form.encode(scaled(given_NE[new_N], known.scale))
        has_N[new_N] = True
        shard = None if len(new_N) else known.shard(len(shards), start, stop)
        if shard:
            entry = entry_file(known.table.folder, len(shards)).name
            for name in (shard.file, shard.rows_file, entry):
                link(known.table.folder / name, folder / name)
        else:
            added_to_N = np.zeros(len(has_N), dtype=np.uint64)
            added_to_N[new_N] = _mark(known.made_of)
            shard = _write_shard(folder, len(shards), start, stored_NC, has_N, form, added_to_N)
        shards.append(shard)
        num_new += len(new_N)
        num_vectors += int(has_N.sum())
    made_of = digest.hexdigest() if num_new else known.made_of
    num_masked = num_rows - num_vectors
    before = known.table.manifest
    write_feature_manifest(
        folder,
        dataclasses.replace(
            before,
            count=num_rows,
            items_checksum=items_checksum,
            made_of=made_of,
            made_of_before=known.made_of,
            num_masked=num_masked,
            masked={"none": num_masked},
            row_hash="the table that the vector was added to: 64 bits of its made_of; 0: not known",
            shards=tuple(shards),
        ),
    )
    say(f"vectors {before.name}: {num_new:,} new, {num_vectors:,} of {num_rows - 1:,} items")
    return made_of


def scale_of(squares: float, num_numbers: int) -> float:
    """Return the factor for numbers of this sum of squares; those of zeros alone stay."""
    return (squares / max(num_numbers, 1)) ** -0.5 if squares else 1.0


def scaled(vectors_NE: np.ndarray, scale: float) -> np.ndarray:
    """Return vectors [n, E] in the scale of the table, float16."""
    return (vectors_NE * np.float32(scale)).astype(np.float16)


def _mark(made_of: str) -> np.uint64:
    """Return the first 64 bits of a checksum in hex."""
    return np.uint64(int(made_of[:16], 16))


def _write_shard(
    folder: Path,
    index: int,
    start: int,
    stored_NC: np.ndarray,
    has_N: np.ndarray,
    form: RowForm,
    added_to_N: np.ndarray | int = 0,
) -> ShardSpec:
    """Write a shard of stored rows [n, C].

    Args:
        has_N: which rows have one [n].
        added_to_N: mark of the table that each vector is added to, uint64 [n]; 0: to none.
    """
    rows = np.zeros(len(stored_NC), dtype=ROW)
    rows["high"] = added_to_N
    rows["masked"] = np.where(has_N, 0, MASK_CODES["none"])
    return spec_of(write_shard(folder, index, start, stored_NC, rows, form))


def in_shards(
    pieces: Iterable[Rows], num_rows: int, width: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row of every shard and its vectors [n, E], all zero where an item has none.

    Args:
        pieces: rows and vectors, ascending through all of them.
        num_rows: of the items, row 0 included.
    """
    stream = iter(pieces)
    held: Rows | None = None
    for start in range(0, num_rows, SHARD_ROWS):
        stop = min(start + SHARD_ROWS, num_rows)
        vectors_NE = np.zeros((stop - start, width), dtype=np.float32)
        while held := held or next(stream, None):
            rows_N, given_NE = held
            end = int(np.searchsorted(rows_N, stop))
            vectors_NE[rows_N[:end] - start] = given_NE[:end]
            held = (rows_N[end:], given_NE[end:]) if end < len(rows_N) else None
            if held:
                break
        yield start, vectors_NE


def by_shard(rows_N: np.ndarray) -> Iterator[tuple[slice, int, int]]:
    """Yield the places of ascending rows [N] of one shard, and the shard's rows [start, stop)."""
    for start in (np.unique(rows_N // SHARD_ROWS) * SHARD_ROWS).tolist():
        stop = start + SHARD_ROWS
        first, last = np.searchsorted(rows_N, (start, stop)).tolist()
        yield slice(first, last), start, stop
