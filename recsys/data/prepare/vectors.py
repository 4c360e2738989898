"""Own vectors: vectors of the items that somebody else made, as modalities without an encoder.

In: the files of items.vectors, .npy [N, E] by row of the items file or Parquet by item id. Out: feature
tables features/<name>/ as embedding/features/store.py describes them. All checks come first, so that they
are reported with every other problem of the input. Shapes: N items, E vector width.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from embedding.features.store import (
    MASK_CODES,
    ROW,
    FeatureManifest,
    ShardSpec,
    spec_of,
    write_feature_manifest,
    write_shard,
)
from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.sources import Source
from recsys.data.prepare.text_files import path_list
from recsys.data.raw_text import text_sql
from recsys.data.recipe import VectorsRecipe
from recsys.data.sql import quoted, short
from recsys.errors import UserError
from recsys.job import say

SHARD_ROWS = 65_536
"""Rows of a shard, and of a piece that is held in memory."""
SCALING = "divided by one number: root mean square 1 over all items"


class OwnVectors:
    """Vectors of one modality, opened."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        section: VectorsRecipe,
        path: Path,
        *,
        items: Source,
        id_column: str,
    ):
        """Open the file.

        Args:
            items: the items file, with ids in `id_column`.

        Raises:
            UserError: it is missing, broken, or holds no vectors.
        """
        self.engine, self.name, self.items, self.path = engine, name, items, path
        self.id_column = id_column
        self.array: np.ndarray | None = None
        self.relation = ""
        if not path.is_file() or path.suffix.lower() not in (".npy", ".parquet"):
            raise UserError(
                f"{path}: expected a .npy or .parquet file of vectors (items.vectors.{name}.file)"
            )
        if path.suffix.lower() == ".npy":
            self.array = _opened_array(path, name)
        else:
            self._open_table(section)

    def _open_table(self, section: VectorsRecipe) -> None:
        """Set the SQL of (id, vector) in file order.

        Raises:
            UserError: the file cannot be read, or lacks the columns.
        """
        reader = f"read_parquet({path_list([self.path])}, hive_partitioning=false)"
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

    def check(self, problems: Problems) -> None:
        """Note everything for which the vectors cannot be those of the items."""
        place = f"{self.path} (items.vectors.{self.name})"
        if self.array is not None:
            num_items = self.engine.one(f"SELECT count(*) FROM {self.items.view}")[0]
            if len(self.array) != num_items:
                problems.found.append(
                    f"{place}: {len(self.array):,} vectors, but the items file has {num_items:,} rows; "
                    f"expected one for each, in its order"
                )
        else:
            problems.found += [f"{place}: {wrong}" for wrong in self._wrong_ids()]
        width, bad, first = 0, 0, 0
        lengths: dict[int, int] = {}
        at = 0
        for vectors, lengths_N in self._pieces():
            for length in np.unique(lengths_N[lengths_N > 0]).tolist():
                lengths.setdefault(length, at + int(np.argmax(lengths_N == length)))
            is_bad_N = ~_are_finite(vectors, lengths_N)
            if is_bad_N.any():
                first = first if bad else at + int(np.argmax(is_bad_N))
                bad += int(is_bad_N.sum())
            at += len(lengths_N)
            width = width or next(iter(lengths), 0)
        if bad:
            problems.found.append(
                f"{place}: vectors with a value that is no finite number: {bad:,}, first at data row "
                f"{first:,}"
            )
        for length, row in list(lengths.items())[1:]:
            problems.found.append(
                f"{place}: a vector of {length:,} numbers at data row {row:,}, others have {width:,}; "
                f"expected vectors of one length"
            )
        if not width:
            problems.found.append(f"{place}: no vectors; expected one for some item at least")

    def _wrong_ids(self) -> Iterator[str]:
        """Yield what is wrong with the ids of a table."""
        ids = f"SELECT {quoted(self.id_column)} FROM {self.items.view}"
        nulls, unknown, example = self.engine.one(
            f"SELECT count(*) FILTER (WHERE id IS NULL), count(*) FILTER (WHERE id NOT IN ({ids} "
            f"WHERE {quoted(self.id_column)} IS NOT NULL)), min(id) FILTER (WHERE id NOT IN "
            f"({ids} WHERE {quoted(self.id_column)} IS NOT NULL)) FROM {self.relation}"
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

    def _pieces(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the vectors in file order: numbers end to end [V], and how many each has [N]."""
        if self.array is None:
            yield from self._lists(f"SELECT vector FROM {self.relation}")
            return
        for start in range(0, len(self.array), SHARD_ROWS):
            part_NE = np.asarray(self.array[start : start + SHARD_ROWS], dtype=np.float32)
            yield part_NE.reshape(-1), np.full(len(part_NE), part_NE.shape[1])

    def _lists(self, query: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the lists of a query's only column: numbers end to end [V], and how many each has [N]."""
        for batch in self.engine.batches(query):
            lists = batch.column(0).cast(pa.large_list(pa.float32()))
            lengths_N = pa.compute.fill_null(pa.compute.list_value_length(lists), 0)
            values = lists.flatten().to_numpy(zero_copy_only=False)
            yield values.astype(np.float32), lengths_N.to_numpy(zero_copy_only=False).astype(int)

    def _in_row_order(self, vocabulary: Table) -> Iterator[np.ndarray]:
        """Yield the vectors [n, E] of the item rows from 1 on, all zero where an item has none."""
        if self.array is None:
            query = (
                f"SELECT s.vector FROM {vocabulary} v LEFT JOIN {self.relation} s ON s.id = v.id "
                f"ORDER BY v.row"
            )
            for values, lengths_N in self._lists(query):
                has_N = lengths_N > 0
                vectors_NE = np.zeros((len(lengths_N), self.width), dtype=np.float32)
                vectors_NE[has_N] = values.reshape(-1, self.width)
                yield vectors_NE
            return
        query = (
            f"SELECT s.source_row FROM {vocabulary} v LEFT JOIN (SELECT source_row, "
            f"{quoted(self.id_column)} AS id FROM {self.items.view}) s ON s.id = v.id "
            f"ORDER BY v.row"
        )
        for batch in self.engine.batches(query):
            rows_N = pa.compute.fill_null(batch.column(0), -1).to_numpy(zero_copy_only=False)
            vectors_NE = np.zeros((len(rows_N), self.width), dtype=np.float32)
            vectors_NE[rows_N >= 0] = self.array[rows_N[rows_N >= 0]]
            yield vectors_NE

    @functools.cached_property
    def width(self) -> int:
        """Numbers of a vector, E."""
        if self.array is not None:
            return int(self.array.shape[1])
        return int(self.engine.one(f"SELECT max(len(vector)) FROM {self.relation}")[0])

    def write(self, vocabulary: Table, items_checksum: str, folder: Path) -> str:
        """Write the feature table into an empty folder; return the checksum of the vectors.

        Args:
            vocabulary: of the items (id, row).
            items_checksum: of the manifest.
        """
        # Asked for before the first stream: the database answers one query at a time.
        width = self.width
        squares, num_vectors = 0.0, 0
        digest = hashlib.sha256()
        for vectors_NE in self._in_row_order(vocabulary):
            has_N = vectors_NE.any(axis=1)
            squares += float(np.square(vectors_NE, dtype=np.float64).sum())
            num_vectors += int(has_N.sum())
            digest.update(vectors_NE.tobytes())
        scale = (squares / max(num_vectors * width, 1)) ** -0.5 if squares else 1.0
        first = np.zeros((1, width), dtype=np.float32)  # the unknown item
        shards: list[ShardSpec] = []
        masked, count = 0, 0
        for vectors_NE in _in_shards(first, self._in_row_order(vocabulary)):
            scaled_NE = vectors_NE * np.float32(scale)
            rows = np.zeros(len(scaled_NE), dtype=ROW)
            rows["masked"] = np.where(vectors_NE.any(axis=1), 0, MASK_CODES["none"])
            entry = write_shard(folder, len(shards), count, scaled_NE, rows)
            shards.append(spec_of(entry))
            masked += sum(entry.masked.values())
            count += len(scaled_NE)
        made_of = digest.hexdigest()
        write_feature_manifest(
            folder,
            FeatureManifest(
                name=self.name,
                encoder=f"own vectors of {self.path.name}",
                revision=made_of[:16],
                dim=width,
                count=count,
                items_checksum=items_checksum,
                made_of=made_of,
                num_masked=masked,
                masked={"none": masked},
                scaling=SCALING,
                scale=scale,
                shards=tuple(shards),
            ),
        )
        say(f"vectors {self.name}: {num_vectors:,} of {count - 1:,} items, {width} numbers each")
        return made_of


def _opened_array(path: Path, name: str) -> np.ndarray:
    """Return the vectors [N, E] of a .npy file, memory-mapped.

    Raises:
        UserError: it is broken, or holds no matrix of floating-point numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({short(error)})") from error
    if array.ndim != 2 or not array.shape[1] or array.dtype.kind not in "fiu":
        raise UserError(
            f"{path}: holds {array.dtype} {array.shape}; expected numbers [items, width] "
            f"(items.vectors.{name}.file)"
        )
    return array


def _are_finite(values: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    """Return whether all numbers of each vector are finite [N]; an empty one's are.

    Args:
        values: end to end [V].
        lengths_N: how many of them each vector has.
    """
    bad = np.concatenate([[0], np.cumsum(~np.isfinite(values))])
    ends_N = np.cumsum(lengths_N)
    return bad[ends_N] == bad[ends_N - lengths_N]


def _in_shards(first: np.ndarray, pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield rows [n, E] in pieces of SHARD_ROWS, the last one shorter."""
    held = first
    for piece in pieces:
        held = np.concatenate([held, piece])
        while len(held) >= SHARD_ROWS:
            yield held[:SHARD_ROWS]
            held = held[SHARD_ROWS:]
    if len(held):
        yield held
