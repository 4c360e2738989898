"""Learned modality weights against the sensitivities that the drawn world's users were given.

In: predictions with weights, and users.parquet of the truth. Out: both as shares by user, and their
correlation. Called by evaluate.py of this folder; training never reads the truth. Shapes: U users.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.evaluation.predict import Predictions
from recsys.files import DRAW_AGAIN, reading
from recsys.metrics.weights import correlation, mean_by_user
from recsys.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class PlantedShare:
    """One modality's share of every user's sensitivities and of the weights the model gave them."""

    user_row_U: NDArray[np.int64]
    planted_U: NDArray[np.float64]
    learned_U: NDArray[np.float64]
    correlation: float
    """Pearson's r of the two."""


def planted_shares(
    predictions: Predictions,
    names: list[str],
    truth: Path,
    ids_of: Callable[[NDArray[np.int64]], Sequence[str]],
    ranks: Ranks = ALONE,
) -> dict[str, PlantedShare]:
    """Return each user's planted and learned share [U], by modality.

    Sensitivities add up to one constant for every user, so they and the users' mean weights are
    compared as shares of the modalities that have a sensitivity. Empty where there is no truth, or
    the model has no such weights.

    Args:
        predictions: of this rank.
        truth: users.parquet of the drawn world.
        ids_of: returns the ids [U] of users, given by row [U] in ascending order.

    Raises:
        UserError: the truth does not know a user.
    """
    if not truth.is_file():
        return {}
    with reading(truth, DRAW_AGAIN):
        table = pq.read_table(truth)
    planted = [name for name in names if f"sensitivity_{name}" in table.column_names]
    if len(planted) < 2:
        return {}
    users, means_UM = mean_by_user(predictions.weights, predictions.user_row, ranks)
    at = {user_id: index for index, user_id in enumerate(table.column("user_id").to_pylist())}
    rows = np.array([at.get(user_id, -1) for user_id in ids_of(users)], dtype=np.int64)
    if (rows < 0).any():
        raise UserError(
            f"{truth}: no sensitivities of {np.count_nonzero(rows < 0)} of {users.size} users; the "
            f"prepared data was made from another drawing, run launch/prepare.py again"
        )
    drawn = [table.column(f"sensitivity_{name}").to_numpy()[rows] for name in planted]
    learned = [means_UM[:, names.index(name)] for name in planted]
    of_drawn, of_learned = np.sum(drawn, axis=0), np.maximum(np.sum(learned, axis=0), 1e-12)
    shares = {}
    for name, drawn_U, learned_U in zip(planted, drawn, learned, strict=True):
        drawn_U, learned_U = drawn_U / of_drawn, learned_U / of_learned
        shares[name] = PlantedShare(
            user_row_U=users,
            planted_U=drawn_U,
            learned_U=learned_U,
            correlation=correlation(drawn_U, learned_U),
        )
    return shares
