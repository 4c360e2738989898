"""Share of the attainable lift that a model recovers, where the true probabilities are known.

In: the drawn world's true probabilities by row_id, and predictions. Out: the oracle's metrics.
Called by launch/evaluate.py; training never reads the truth.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from recsys.errors import UserError
from recsys.files import DRAW_AGAIN, reading
from recsys.metrics.formulas import auc_of, log_loss_of
from recsys.metrics.predictions import LabelledScores
from recsys.metrics.row_sums import RowSums


@dataclass(frozen=True, kw_only=True)
class OracleMetrics:
    """Metrics of the true probabilities on the rows of an evaluation."""

    auc: float
    """The best possible AUC."""
    log_loss: float
    """The best possible log-loss."""
    lift_recovered: float
    """Share of the lift over 0.5 that the model reaches."""


def true_probabilities(path: Path, row_ids_N: ArrayLike) -> NDArray[np.float64] | None:
    """Return the true probability of every row [N]; None where there is no file of them.

    Raises:
        UserError: the file does not have a probability for every row.
    """
    if not path.is_file():
        return None
    with reading(path, DRAW_AGAIN):
        table = pq.read_table(path, columns=["row_id", "probability"])
    row_id, probability = (table.column(i).to_numpy() for i in range(2))
    wanted = np.asarray(row_ids_N)
    order = np.argsort(row_id)
    at = np.searchsorted(row_id[order], wanted)
    found = order[np.minimum(at, len(order) - 1)]
    missing = np.count_nonzero(row_id[found] != wanted)
    if missing:
        raise UserError(
            f"{path}: no true probability for {missing} of {len(wanted)} rows; the "
            f"prepared data was made from another drawing, run launch/prepare.py again"
        )
    return probability[found]


def oracle_metrics(true_rows: LabelledScores, *, reached_auc: float) -> OracleMetrics:
    """Return the oracle's AUC and log-loss, and the share of the lift the model recovers.

    lift_recovered = (AUC - 0.5) / (oracle AUC - 0.5), over the same rows.

    Args:
        true_rows: labels of the rows of all ranks, scored by their true probabilities.
        reached_auc: of the model.

    Edge cases: nan with one class only.
    """
    sums = RowSums(true_rows)
    best = float(auc_of(sums)[0])
    return OracleMetrics(
        auc=best,
        log_loss=float(log_loss_of(sums)[0]),
        lift_recovered=(reached_auc - 0.5) / (best - 0.5),
    )
