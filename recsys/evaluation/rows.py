"""predictions.parquet: the scored rows of a run, written by evaluation and read by comparisons.

A folder with one Parquet file a rank, each with a range of row ids. pyarrow, pandas and others read the
folder as they read a file, which earlier versions wrote.
In: predictions and the ids of users and items; back: labels, scores, and whose each row is. Called by
launch/evaluate.py and launch/compare.py. Shapes: N rows, K ids.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.codes import codes_of
from recsys.errors import UserError
from recsys.evaluation.predict import Predictions
from recsys.files import PREPARE_AGAIN, reading, sync, writing
from recsys.metrics.bootstrap import unit_keys
from recsys.runtime.distributed_sort import sorted_rows
from recsys.runtime.ranks import ALONE, Ranks

_PIECE_ROWS = 1 << 18
"""Rows written at a time: their ids stay below the 2 GiB that a column of strings may have."""


def write_predictions(
    folder: Path,
    predictions: Predictions,
    *,
    modality_names: list[str],
    prepared: Path,
    unknown_users_N: NDArray[np.uint64] | None,
    ranks: Ranks = ALONE,
) -> None:
    """Write this rank's part of the rows of all ranks, one line per row, in input order over the parts.

    Columns: row_id, user_id, unknown_user (a hash of the id where the vocabulary does not know the
    user and user_id is null; 0 elsewhere), item_id, label, score, a weight per modality.

    Args:
        folder: is there already.
        predictions: of this rank, in any order; the record is emptied.
        unknown_users_N: in the order of `predictions`; None where nobody knows: no such column.

    Raises:
        DiskFullError: there is no space for the part; names it.
    """
    columns = predictions.emptied()
    if unknown_users_N is not None:
        columns["unknown_user"] = unknown_users_N
    columns = sorted_rows(columns, "row_id", ranks)
    unknown_N = columns.pop("unknown_user", None)
    ordered = Predictions(**columns)
    ids = {
        "user": IdsOfRows.read(prepared / "users.parquet", "user_id", ordered.user_row),
        "item": IdsOfRows.read(prepared / "items.parquet", "item_id", ordered.item_row),
    }

    def lines(piece: slice) -> pa.Table:
        rows = Predictions(**{name: values[piece] for name, values in ordered.columns().items()})
        return _table(rows, None if unknown_N is None else unknown_N[piece], ids, modality_names)

    part = folder / _part_name(ranks.rank, ranks.size)
    with writing(part):
        with pq.ParquetWriter(part, lines(slice(0)).schema, compression="zstd") as writer:
            for start in range(0, len(ordered.row_id), _PIECE_ROWS):
                writer.write_table(lines(slice(start, start + _PIECE_ROWS)))
        sync(part)


def _part_name(rank: int, num_ranks: int) -> str:
    return f"part-{rank:05d}-of-{num_ranks:05d}.parquet"


def _table(
    rows: Predictions,
    unknown_users_N: NDArray[np.uint64] | None,
    ids: dict[str, "IdsOfRows | None"],
    modality_names: list[str],
) -> pa.Table:
    """Return the lines of some rows [N]."""
    columns: dict[str, Any] = {"row_id": rows.row_id}
    if ids["user"] is not None:
        columns["user_id"] = ids["user"].of(rows.user_row)
        if unknown_users_N is not None:
            columns["unknown_user"] = unknown_users_N
    if ids["item"] is not None:
        columns["item_id"] = ids["item"].of(rows.item_row)
    columns["label"] = rows.label.astype(np.uint8)
    columns["score"] = rows.score
    if rows.weights.shape[1]:
        for index, name in enumerate(modality_names):
            columns[f"weight_{name}"] = rows.weights[:, index]
    return pa.table(columns)


@dataclass(frozen=True)
class IdsOfRows:
    """Ids of some users or items."""

    rows_K: NDArray[np.int64]
    """Their rows, ascending."""
    ids_K: pa.Array
    """Null for the unknown; of 64-bit offsets, so that they may be more than 2 GiB."""

    @classmethod
    def read(cls, path: Path, name: str, rows_N: NDArray[np.int64]) -> "IdsOfRows | None":
        """Return the ids of the rows named, each once; None where the data has none.

        The file is read one row group at a time, those alone that hold some of them.
        """
        if not path.is_file():
            return None
        rows_K = np.unique(rows_N)
        parts, start = [], 0
        with reading(path, PREPARE_AGAIN):
            file = pq.ParquetFile(path, memory_map=True)
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                low, high = np.searchsorted(rows_K, [start, stop])
                if low < high:
                    ids = file.read_row_group(group, columns=[name]).column(0)
                    own = ids.take(pa.array(rows_K[low:high] - start))
                    parts += own.cast(pa.large_string()).chunks
                start = stop
        if not parts:
            parts = [pa.array([], pa.large_string())]
        return cls(rows_K, pa.concat_arrays(parts))

    def of(self, rows_N: NDArray[np.int64]) -> pa.Array:
        """Return the ids [N] of rows that are among `rows_K`."""
        at = np.searchsorted(self.rows_K, rows_N)
        return pc.take(self.ids_K, pa.array(at)).cast(pa.string())


def read_lines(path: Path, remedy: str) -> pa.Table:
    """Return the lines of predictions.parquet: a folder of parts, or a file of an earlier version.

    Args:
        remedy: what makes the file anew, for the message.

    Raises:
        DamagedFileError: a file is missing or damaged.
    """
    parts = [path]
    if path.is_dir():
        found = sorted(path.glob("part-*-of-*.parquet"))
        num_parts = int(found[0].stem.split("-of-")[1]) if found else 1
        parts = [path / _part_name(rank, num_parts) for rank in range(num_parts)]
    tables = []
    for part in parts:
        with reading(part, remedy):
            tables.append(pq.ParquetFile(part).read())
    return pa.concat_tables(tables)


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """A run's predictions in the order of the split's rows."""

    row_id_N: NDArray[np.int64]
    label_N: NDArray[np.float64]
    score_N: NDArray[np.float64]
    user_row_N: NDArray[np.int64] | None = None
    """A number per known user, 0 for the unknown; None where there are no users."""
    unit_N: NDArray[np.uint64]
    """Key of what the bootstrap draws: a user, or a row where nobody says whose it is."""
    tells_unknown_users: bool = False
    """Users whom the vocabulary does not know are told apart; files of earlier versions do not."""

    def with_units_of(self, common: "ScoredRows") -> "ScoredRows":
        """Return these rows with the units of `common`, so that both are resampled alike.

        Raises:
            UserError: the rows or labels are others.
        """
        if not (
            np.array_equal(self.row_id_N, common.row_id_N)
            and np.array_equal(self.label_N, common.label_N)
        ):
            raise UserError(
                f"predictions of {len(common.row_id_N):,} and {len(self.row_id_N):,} rows are not of "
                f"the same data; evaluate the runs again on one prepared data set"
            )
        return dataclasses.replace(self, unit_N=common.unit_N)


def scored_rows(table: pa.Table) -> ScoredRows:
    """Return what predictions.parquet says; equal rows have equal units, whichever run scored them."""
    rows_N = table.column("row_id").to_numpy()
    order_N = np.argsort(rows_N, kind="stable")
    users_N = unknown_N = None
    if "user_id" in table.column_names:
        codes_N = codes_of(table.column("user_id"))[0][order_N]
        users_N = _by_first_row(codes_N) + 1
    if "unknown_user" in table.column_names:
        unknown_N = table.column("unknown_user").to_numpy()[order_N]
    rows_N = rows_N[order_N]
    return ScoredRows(
        row_id_N=rows_N,
        label_N=table.column("label").to_numpy()[order_N].astype(np.float64),
        score_N=table.column("score").to_numpy()[order_N],
        user_row_N=users_N,
        unit_N=unit_keys(rows_N, users_N, unknown_N),
        tells_unknown_users=unknown_N is not None,
    )


def _by_first_row(codes_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return codes [N] numbered by their first row, however the parts of a file lie; -1 stays."""
    known, first, place_N = np.unique(codes_N, return_index=True, return_inverse=True)
    first = np.where(known < 0, -1, first)
    return np.where(codes_N < 0, -1, np.argsort(np.argsort(first))[place_N] - (known < 0).any())
