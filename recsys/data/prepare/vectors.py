"""Own vectors: vectors of the items that somebody else made, as modalities without an encoder.

In: the files of items.vectors, .npy [N, E] by row of the items files or Parquet by item id. Out: vectors
by item row, of which vector_tables.py makes feature tables. All checks come first, so that they are
reported with every other problem of the input. Shapes: N items, E vector width, V numbers.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from recsys.array_headers import one_header_at_a_time
from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.raw_files import find_paths
from recsys.data.prepare.raw_paths import RawPath
from recsys.data.prepare.sources import Source
from recsys.data.prepare.text_files import path_list
from recsys.data.prepare.vector_tables import (
    SHARD_ROWS,
    KnownVectors,
    Rows,
    by_shard,
    scale_of,
    scaled,
)
from recsys.data.raw_text import text_sql
from recsys.data.recipe import VectorsRecipe
from recsys.data.sql import quoted, short
from recsys.errors import UserError

FLOAT16_MAX = float(np.finfo(np.float16).max)
"""Largest number that is stored."""


def vectors_key(name: str) -> str:
    """Return the config key of the vectors of a modality: the section of their files."""
    return f"items.vectors.{name}"


class OwnVectors:
    """Vectors of one modality, opened."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        section: VectorsRecipe,
        root: RawPath,
        *,
        items: Source | None,
        id_column: str,
        only: tuple[RawPath, ...] | None = None,
    ):
        """Open the files.

        Args:
            root: the folder `data.source`.
            items: the items files, with ids in `id_column`; None: an append reads none.
            only: the files to read, of those that there are; None: all.

        Raises:
            UserError: a file is missing, broken, or holds no vectors.
        """
        self.engine, self.name, self.items = engine, name, items
        self.id_column = id_column
        self.bits: int = section.bits
        self.paths = only or tuple(find_paths(root, section.file, vectors_key(name)))
        self.path = self.paths[0] if len(self.paths) == 1 else root / section.file
        self.arrays: list[np.ndarray] = []
        self.relation = ""
        endings = {path.suffix.lower() for path in self.paths}
        if endings not in ({".npy"}, {".parquet"}):
            raise UserError(
                f"{self.path}: expected .npy or .parquet files of vectors ({vectors_key(name)}.file)"
            )
        if endings == {".npy"}:
            self.arrays = [_opened_array(engine, path, name) for path in self.paths]
        else:
            self._open_table(section)

    def _open_table(self, section: VectorsRecipe) -> None:
        """Set the SQL of (id, vector) in file order.

        Raises:
            UserError: the file cannot be read, or lacks the columns.
        """
        reader = f"read_parquet({path_list(self.paths)}, hive_partitioning=false)"
        try:
            described = self.engine.rows(f"DESCRIBE SELECT * FROM {reader}")
        except duckdb.Error as error:
            raise UserError(f"{self.path}: cannot be read ({short(error)})") from error
        kinds = {column: kind for column, kind, *_ in described}
        id_column = section.item_id or self.id_column
        column = section.column or self.name
        for key, wanted in (("item_id", id_column), ("column", column)):
            if wanted not in kinds:
                raise UserError(
                    f"{self.path}: column {wanted!r} (items.vectors.{self.name}.{key}) is missing; the "
                    f"file has {', '.join(kinds)}"
                )
        if not kinds[column].endswith("]") or kinds[column].count("[") != 1:
            raise UserError(
                f"{self.path}: column {column!r} (items.vectors.{self.name}.column) holds "
                f"{kinds[column]}; expected a list of numbers a row"
            )
        self.relation = (
            f"(SELECT {text_sql(id_column, kinds[id_column])} AS id, "
            f"try_cast({quoted(column)} AS FLOAT[]) AS vector FROM {reader})"
        )

    def check(
        self, problems: Problems, listed: str | None, known: KnownVectors | None = None
    ) -> None:
        """Note everything for which the vectors cannot be those of the items.

        Args:
            listed: SQL of (id) of all items.
            known: of an append, the vectors before.
        """
        wrong = [*(self._wrong_count() if self.arrays else self._wrong_ids(listed))]
        found = self._measured()
        if found.num_bad:
            wrong.append(
                f"vectors with a value that is no finite number: {found.num_bad:,}, first at data row "
                f"{found.first_bad:,}"
            )
        width = known.table.dim if known else next(iter(found.lengths), 0)
        others = "those of the prepared data" if known else "others"
        wrong += [
            f"a vector of {length:,} numbers at data row {row:,}, {others} have {width:,}; expected "
            f"vectors of one length"
            for length, row in found.lengths.items()
            if length != width
        ]
        if not width:
            wrong.append("no vectors; expected one for some item at least")
        if not wrong:
            scale = known.scale if known else scale_of(found.squares, found.num_vectors * width)
            wrong += found.too_large(scale)
        if known and not wrong:
            wrong += self._changed(known)
        problems.found += [f"{self.path} ({vectors_key(self.name)}): {text}" for text in wrong]

    def _wrong_count(self) -> Iterator[str]:
        """Yield what is wrong with the number of vectors that have no ids."""
        num_vectors = sum(map(len, self.arrays))
        if self.items is None:
            yield (
                f"{num_vectors:,} vectors by row of the items file, which has not changed; give new "
                f"vectors together with the rows of new items: known items keep theirs"
            )
            return
        num_items = self.engine.one(f"SELECT count(*) FROM {self.items.view}")[0]
        if num_vectors != num_items:
            yield (
                f"{num_vectors:,} vectors, but the items file has {num_items:,} rows; expected one for "
                f"each, in its order"
            )

    def _measured(self) -> "_Measured":
        """Read all vectors once, and return what their numbers are."""
        found, at = _Measured(), 0
        for values, lengths_N in self._pieces():
            found.add(values, lengths_N, at)
            at += len(lengths_N)
        found.lengths = dict(sorted(found.lengths.items(), key=lambda item: item[1]))
        return found

    def _wrong_ids(self, listed: str | None) -> Iterator[str]:
        """Yield what is wrong with the ids of a table."""
        ids = listed or "SELECT NULL AS id"
        is_unknown = f"id NOT IN (SELECT id FROM ({ids}) WHERE id IS NOT NULL)"
        nulls, unknown, example = self.engine.one(
            f"SELECT count(*) FILTER (WHERE id IS NULL), count(*) FILTER (WHERE {is_unknown}), "
            f"min(id) FILTER (WHERE {is_unknown}) FROM {self.relation}"
        )
        twice, repeated = self.engine.one(
            f"SELECT count(*), min(id) FROM (SELECT id FROM {self.relation} WHERE id IS NOT NULL "
            f"GROUP BY id HAVING count(*) > 1)"
        )
        if nulls:
            yield f"null id: {nulls:,} rows"
        if unknown:
            yield f"{unknown:,} ids that the items file does not have, for example {example!r}"
        if twice:
            yield f"duplicate id: {twice:,}, for example {repeated!r}"

    def _changed(self, known: KnownVectors) -> Iterator[str]:
        """Yield which items have another vector than the prepared data has of them."""
        count, first = 0, 0
        for rows_N, vectors_NE in self.by_row(known.items):
            for at, start, stop in by_shard(rows_N):
                stored_NC, has_N = known.stored(start, stop)
                own_N = rows_N[at] - start
                now_NC = known.table.form.encode(scaled(vectors_NE[at], known.scale))
                different_N = (stored_NC[own_N] != now_NC).sum(axis=1)
                # Of equal vectors a few codes may differ, where two codewords are equally near.
                most = now_NC.shape[1] // 8 if known.table.form.codebooks else 0
                is_other_N = has_N[own_N] & (different_N > most)
                if is_other_N.any():
                    first = first or int(rows_N[at][is_other_N][0])
                    count += int(is_other_N.sum())
        if count:
            (example,) = self.engine.one(f"SELECT id FROM {known.items} WHERE row = {first}")
            yield (
                f"other vectors than before of {count:,} known items, for example {example!r}: runs "
                f"were trained on those before. Give known items their vectors as they were, or "
                f"prepare anew without append"
            )

    def _pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the vectors in file order: numbers end to end [V], and how many each has [N]."""
        if not self.arrays:
            yield from map(_flat, self._vectors())
        for array in self.arrays:
            for start in range(0, len(array), SHARD_ROWS):
                part_NE = np.asarray(array[start : start + SHARD_ROWS], dtype=np.float32)
                yield part_NE.reshape(-1), np.full(len(part_NE), part_NE.shape[1])

    def _vectors(self) -> Iterator[pa.Array]:
        """Yield the lists of a table, in file order."""
        for batch in self.engine.batches(f"SELECT vector FROM {self.relation}"):
            yield batch.column(0)

    def by_row(self, vocabulary: Table) -> Iterator[Rows]:
        """Yield the rows of the items that have a vector, and their vectors, in pieces.

        Args:
            vocabulary: of the items (id, row).
        """
        # Asked for before the stream: the database answers one query at a time.
        width = self.width
        if self.arrays:
            assert self.items is not None, "vectors without ids are those of an items file"
            query = (
                f"SELECT v.row, s.source_row FROM {vocabulary} v JOIN (SELECT source_row, "
                f"{quoted(self.id_column)} AS id FROM {self.items.view}) s ON s.id = v.id "
                f"ORDER BY v.row"
            )
            for batch in self.engine.batches(query):
                rows_N, places_N = (batch.column(name).to_numpy() for name in ("row", "source_row"))
                yield _with_vectors(rows_N, _gathered(self.arrays, places_N))
            return
        query = (
            f"SELECT s.vector, v.row FROM {vocabulary} v JOIN {self.relation} s ON s.id = v.id "
            f"WHERE len(s.vector) > 0 ORDER BY v.row"
        )
        for batch in self.engine.batches(query):
            values, _ = _flat(batch.column(0))
            yield _with_vectors(batch.column(1).to_numpy(), values.reshape(-1, width))

    @functools.cached_property
    def width(self) -> int:
        """Numbers of a vector, E; 0 where there is no vector."""
        if self.arrays:
            return int(self.arrays[0].shape[1])
        return int(self.engine.one(f"SELECT coalesce(max(len(vector)), 0) FROM {self.relation}")[0])


@dataclass
class _Measured:
    """Numbers of vectors, read piece by piece."""

    lengths: dict[int, int] = field(default_factory=dict)
    """First row of each length, in the order of rows."""
    num_bad: int = 0
    """Vectors with a number that is not finite."""
    first_bad: int = 0
    num_vectors: int = 0
    """Vectors that are not all zero."""
    squares: float = 0.0
    """Sum of all numbers' squares."""
    largest: float = 0.0
    """Largest absolute number."""
    largest_row: int = 0

    def add(self, values: np.ndarray, lengths_N: np.ndarray, at: int) -> None:
        """Take vectors, their numbers end to end [V], the first one in row `at`."""
        for length in np.unique(lengths_N[lengths_N > 0]).tolist():
            self.lengths.setdefault(length, at + int(np.argmax(lengths_N == length)))
        is_bad_N = _num_true(~np.isfinite(values), lengths_N) > 0
        if is_bad_N.any():
            self.first_bad = self.first_bad if self.num_bad else at + int(np.argmax(is_bad_N))
            self.num_bad += int(is_bad_N.sum())
        self.num_vectors += int((_num_true(values != 0, lengths_N) > 0).sum())
        self.squares += float(np.square(values, dtype=np.float64).sum())
        place = int(np.argmax(np.abs(values))) if len(values) else 0
        if len(values) and abs(values[place]) > self.largest:
            self.largest = abs(float(values[place]))
            self.largest_row = at + int(np.searchsorted(lengths_N.cumsum(), place, side="right"))

    def too_large(self, scale: float) -> Iterator[str]:
        """Yield that a number is too large to be stored, multiplied by `scale`."""
        if self.largest * scale > FLOAT16_MAX:
            yield (
                f"a number of {self.largest:.6g} at data row {self.largest_row:,}, which is "
                f"{self.largest * scale:.6g} times the root mean square that vectors are divided by; "
                f"expected at most {FLOAT16_MAX:,.0f} times, as float16 holds it: correct this "
                f"item's vector, or leave it out"
            )


def _with_vectors(rows_N: np.ndarray, vectors_NE: np.ndarray) -> Rows:
    """Return the rows whose vectors are not all zero: an item of zeros lacks the modality."""
    has_N = vectors_NE.any(axis=1)
    return rows_N[has_N].astype(np.int64), vectors_NE[has_N]


def _gathered(arrays: list[np.ndarray], places_N: np.ndarray) -> np.ndarray:
    """Return rows of arrays that follow each other, float32 [N, E].

    Args:
        places_N: row numbers through all arrays [N].
    """
    starts = np.cumsum([0, *map(len, arrays)])
    vectors_NE = np.zeros((len(places_N), arrays[0].shape[1]), dtype=np.float32)
    array_N = np.searchsorted(starts, places_N, side="right") - 1
    for index in np.unique(array_N).tolist():
        is_own_N = array_N == index
        vectors_NE[is_own_N] = arrays[index][places_N[is_own_N] - starts[index]]
    return vectors_NE


def _flat(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of lists end to end, float32 [V], and how many each has [N]."""
    lists = column.cast(pa.large_list(pa.float32()))
    lengths_N = pa.compute.fill_null(pa.compute.list_value_length(lists), 0)
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return values.astype(np.float32), lengths_N.to_numpy(zero_copy_only=False).astype(int)


def _opened_array(engine: Engine, path: RawPath, name: str) -> np.ndarray:
    """Return the vectors [N, E] of a .npy file, memory-mapped; that of an object store is copied first.

    Raises:
        UserError: it is broken, or holds no matrix of floating-point numbers.
    """
    try:
        with one_header_at_a_time():
            array = np.load(_on_disk(engine, path), mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({short(error)})") from error
    if array.ndim != 2 or not array.shape[1] or array.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: holds {array.dtype} {array.shape}; expected numbers [items, width] "
            f"(items.vectors.{name}.file)"
        )
    return array


def _on_disk(engine: Engine, path: RawPath) -> Path:
    if isinstance(path, Path):
        return path
    copy = engine.scratch / f"{engine.unused('vectors')}.npy"
    path.copy_to(copy)
    return copy


def _num_true(is_V: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """Return how many numbers of each vector something holds of [N].

    Args:
        is_V: of the numbers end to end.
        lengths_N: how many of them each vector has.
    """
    counts = np.concatenate([[0], np.cumsum(is_V)])
    ends_N = np.cumsum(lengths_N)
    return counts[ends_N] - counts[ends_N - lengths_N]
