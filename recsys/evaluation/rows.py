"""predictions.parquet: the scored rows of a run, written by evaluation and read by comparisons.

In: predictions and the ids of users and items; back: labels, scores, and whose each row is. Called by
launch/evaluate.py and launch/compare.py. Shapes: N rows.
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
from recsys.files import PREPARE_AGAIN, reading
from recsys.metrics.bootstrap import bootstrap_units

_PIECE_ROWS = 1 << 18
"""Rows written at a time: their ids stay below the 2 GiB that a column of strings may have."""


def write_predictions(
    path: Path,
    predictions: Predictions,
    *,
    modality_names: list[str],
    prepared: Path,
    unknown_users_N: NDArray[np.uint64] | None,
) -> None:
    """Write one line per row, in input order.

    Columns: row_id, user_id, unknown_user (a hash of the id where the vocabulary does not know the
    user and user_id is null; 0 elsewhere), item_id, label, score, a weight per modality.

    Args:
        unknown_users_N: in the order of `predictions`; None where nobody knows: no such column.
    """
    order_N = np.argsort(predictions.row_id, kind="stable")
    ids = {side: _ids(prepared / f"{side}s.parquet", f"{side}_id") for side in ("user", "item")}
    writer: pq.ParquetWriter | None = None
    for start in range(0, max(order_N.size, 1), _PIECE_ROWS):
        piece_N = order_N[start : start + _PIECE_ROWS]
        rows = predictions.take(piece_N)
        columns: dict[str, Any] = {"row_id": rows.row_id}
        if ids["user"] is not None:
            columns["user_id"] = _taken(ids["user"], rows.user_row)
            if unknown_users_N is not None:
                columns["unknown_user"] = unknown_users_N[piece_N]
        if ids["item"] is not None:
            columns["item_id"] = _taken(ids["item"], rows.item_row)
        columns["label"] = rows.label.astype(np.uint8)
        columns["score"] = rows.score
        if rows.weights.shape[1]:
            for index, name in enumerate(modality_names):
                columns[f"weight_{name}"] = rows.weights[:, index]
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None, "even no rows are one piece"
    writer.close()


def _ids(path: Path, name: str) -> pa.Array | None:
    """Return the ids by row, of any size together; None where the data has none."""
    if not path.is_file():
        return None
    with reading(path, PREPARE_AGAIN):
        ids = pq.read_table(path, columns=[name]).column(0)
    return ids.cast(pa.large_string()).combine_chunks()


def _taken(ids: pa.Array, rows_N: NDArray[np.int64]) -> pa.Array:
    return pc.take(ids, pa.array(rows_N)).cast(pa.string())


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """A run's predictions in the order of the split's rows."""

    row_id_N: NDArray[np.int64]
    label_N: NDArray[np.float64]
    score_N: NDArray[np.float64]
    user_row_N: NDArray[np.int64] | None = None
    """A number per known user, 0 for the unknown; None where there are no users."""
    unit_N: NDArray[np.int64]
    """What the bootstrap draws: a number per user, or per row where nobody says whose it is."""
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
        users_N = codes_of(table.column("user_id"))[0][order_N] + 1
    if "unknown_user" in table.column_names:
        unknown_N = table.column("unknown_user").to_numpy()[order_N]
    return ScoredRows(
        row_id_N=rows_N[order_N],
        label_N=table.column("label").to_numpy()[order_N].astype(np.float64),
        score_N=table.column("score").to_numpy()[order_N],
        user_row_N=users_N,
        unit_N=bootstrap_units(
            users_N, rows_N.size, np.random.default_rng(0), unknown_users_N=unknown_N
        ),
        tells_unknown_users=unknown_N is not None,
    )
