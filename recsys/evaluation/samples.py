"""Sample users of the report: what they liked, what they are recommended, and with which weights.

In: candidates, their scores and every user's best of them. Out: SampleUser records of item rows; the page
shows the items. Called by evaluate.py of this folder. Shapes: N pairs, M modalities.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recsys.evaluation.candidates import Candidates
from recsys.evaluation.planted import PlantedShare
from recsys.evaluation.predict import Predictions
from recsys.runtime.ranks import ALONE, Ranks

SHOWN_ITEMS = 8
"""Liked and recommended items of a sample user."""


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """A candidate at the top of a user's list."""

    item_row: int
    score: float
    weights: dict[str, float]
    """By modality; empty for a model that measures none."""
    is_positive: bool
    """The user did like it in the split."""


@dataclass(frozen=True, kw_only=True)
class SampleUser:
    """A user, the items they liked, and the items the model recommends."""

    user_id: str
    num_liked: int
    liked: list[int]
    """Item rows of the latest of them, newest first."""
    recommended: list[Recommendation]
    """Best first."""
    planted: dict[str, float] = field(default_factory=dict)
    """Share of each sensitivity the user was drawn with, where that is known."""

    @property
    def item_rows(self) -> list[int]:
        """Rows of all items that are shown."""
        return [*self.liked, *(found.item_row for found in self.recommended)]


def choose_users(
    best: Mapping[int, NDArray[np.int64]],
    histories: Mapping[int, NDArray[np.int64]],
    *,
    num_users: int,
    seed: int,
    ranks: Ranks = ALONE,
) -> list[int]:
    """Return user rows at random, of users of any rank with a history where there are any.

    Args:
        best: pairs by user row, best first [K], of this rank's users.
        histories: item rows by user row, latest last.
    """
    nothing = np.zeros(0, np.int64)
    own = np.array(list(best), np.int64)
    has_past = np.array([histories.get(user, nothing).size > 0 for user in best], bool)
    parts = ranks.gather((own, has_past))
    users, has_past = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    eligible = users[has_past] if has_past.any() else users
    return np.random.default_rng(seed).permutation(eligible)[:num_users].tolist()


def sample_user(
    user: int,
    user_id: str,
    *,
    candidates: Candidates,
    scored: Predictions,
    best_K: NDArray[np.int64],
    history: NDArray[np.int64],
    modality_names: list[str],
    planted: Mapping[str, PlantedShare],
) -> SampleUser:
    """Return what the report shows of one user.

    Args:
        scored: predictions of the candidates, in the order of the candidates [N].
        best_K: numbers of the user's best pairs, best first.
        history: item rows the user liked before, latest last [any number].
        modality_names: of the columns of `scored.weights` [N, M].
    """
    shares = {}
    for name, share in planted.items():
        at = np.flatnonzero(share.user_row_U == user)
        if at.size:
            shares[name] = float(share.planted_U[at[0]])
    return SampleUser(
        user_id=user_id,
        num_liked=len(history),
        liked=history[::-1][:SHOWN_ITEMS].tolist(),
        recommended=[
            Recommendation(
                item_row=int(candidates.item_row_N[pair]),
                score=float(scored.score[pair]),
                weights=dict(zip(modality_names, scored.weights[pair].tolist(), strict=False)),
                is_positive=bool(candidates.relevant_N[pair]),
            )
            for pair in best_K[:SHOWN_ITEMS]
        ],
        planted=shares,
    )
