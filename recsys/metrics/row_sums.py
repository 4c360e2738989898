"""Sums over rows, from which every metric of the registry is computed: of all rows, or of drawn users.

In: rows of every rank, ascending by score. Out: sums over the rows of all ranks [R], each row counted as
often as its user is drawn in each of R replicates, or once ([1]). Called by the files of the metrics.

Log-loss, calibration and Brier score are quotients of sums. AUC and PR-AUC are, once each rank knows what
lies below its range of scores: a first pass over the rows sums up what the ranks then exchange, a second
one counts pairs. Per-user AUC needs the rows of a user on one rank: they are sent there. Draws are made
piece by piece, so the memory is that of the rows, for any number of users and replicates.
Shapes: N rows of a rank, C rows of a piece, T groups of tied scores, U users of a rank, R replicates,
B bins, K kinds of sums.
"""

import functools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.metrics.auc import auc_by_user
from recsys.metrics.bootstrap import drawn_sums, poisson_draws
from recsys.metrics.calibration import bin_of_rows, last_of_bins
from recsys.metrics.entropy import row_losses
from recsys.metrics.predictions import LabelledScores, group_starts
from recsys.schema import is_known

_PIECE_VALUES = 1 << 18
"""Numbers of a piece: rows times replicates; arrays of a pass stay in the processor's cache."""
_ROUND_ROWS = 1 << 22
"""Rows of a rank, about, that are sent to the ranks of their users at a time."""
_ROW_SUMS = ("rows", "positives", "losses", "probabilities", "squared_errors")


class RowSums:
    """Sums over the rows of all ranks, every one computed when it is first asked for, on all ranks."""

    def __init__(
        self,
        rows: LabelledScores,
        *,
        num_replicates: int = 0,
        seed: int = 0,
        only_order: bool = False,
    ):
        """Args:
            num_replicates: resampled sets of users R; 0: each row once, R = 1.
            seed: equal seeds draw equal users.
            only_order: scores are no probabilities; there are sums for AUC and PR-AUC, and no others.

        Raises:
            UserError: rows without units are to be resampled.
        """
        if num_replicates and rows.unit_N is None:
            raise UserError("rows without units cannot be resampled: give labelled_scores units_N")
        self.rows = rows
        self.num_replicates = num_replicates
        self.seed = seed
        self.only_order = only_order
        self.shape = (max(num_replicates, 1),)

    @property
    def num_rows(self) -> NDArray[np.float64]:
        """Rows [R]."""
        return self._row_sums["rows"]

    @property
    def num_positives(self) -> NDArray[np.float64]:
        """Positives [R]."""
        return self._row_sums["positives"]

    @property
    def losses(self) -> NDArray[np.float64]:
        """Sum of the rows' cross-entropies [R]."""
        return self._row_sums["losses"]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Sum of the predicted probabilities [R]."""
        return self._row_sums["probabilities"]

    @property
    def squared_errors(self) -> NDArray[np.float64]:
        """Sum of (probability - label)^2 [R]."""
        return self._row_sums["squared_errors"]

    @property
    def gaps(self) -> NDArray[np.float64]:
        """Sum of probability - label by calibration bin of all rows [B, R]."""
        return self._row_sums["gaps"]

    @property
    def won_twice(self) -> NDArray[np.float64]:
        """Twice the pairs of a positive and a negative that the positive wins, ties as a half [R]."""
        return self._ranked[0]

    @property
    def precision(self) -> NDArray[np.float64]:
        """Sum over the positives of the precision among rows that score as much or more [R]."""
        return self._ranked[1]

    @functools.cached_property
    def of_users(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sum of rows times AUC over known users with both classes [R], and of their rows [R]."""
        if self.rows.user_row_N is None:
            return np.zeros(self.shape), np.zeros(self.shape)
        own_2R = np.zeros((2, *self.shape))
        for auc_U, rows_U, unit_U in users_of_this_rank(self.rows):
            both_U = ~np.isnan(auc_U)
            values_2U = np.stack([rows_U[both_U] * auc_U[both_U], rows_U[both_U]])
            if self.num_replicates:
                own_2R += drawn_sums(
                    values_2U, unit_U[both_U], num_replicates=self.num_replicates, seed=self.seed
                )
            else:
                own_2R += values_2U.sum(axis=1, keepdims=True)
        won_R, weight_R = self.rows.ranks.total(own_2R)
        return won_R, weight_R

    def _pieces(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Yield parts of this rank's rows, lowest score first, and how often each counts [C, R]."""
        num_rows, step = self.rows.positive_N.size, _PIECE_VALUES // self.shape[0] + 1
        for start in range(0, num_rows, step):
            part = slice(start, min(start + step, num_rows))
            if self.num_replicates:
                assert self.rows.unit_N is not None, "asked for at the beginning"
                drawn = poisson_draws(self.rows.unit_N[part], self.num_replicates, self.seed)
                yield part, drawn.astype(np.float64)
            else:
                yield part, np.ones((part.stop - part.start, 1))

    @functools.cached_property
    def _row_sums(self) -> dict[str, NDArray[np.float64]]:
        """Sums [R] by name; `below` are rows and positives of the ranks with lower scores [2, R]."""
        rows = self.rows
        last_B = np.zeros(0) if self.only_order else last_of_bins(rows)
        num_sums = 2 if self.only_order else len(_ROW_SUMS) + len(last_B)
        own_KR = np.zeros((num_sums, *self.shape))
        for part, drawn_CR in self._pieces():
            positive_C, p_C = rows.positive_N[part], rows.probability_N[part]
            values = [np.ones(p_C.size), positive_C]
            if not self.only_order:
                gap_C = p_C - positive_C
                values += [row_losses(positive_C, p_C), p_C, gap_C**2]
                bin_C = bin_of_rows(p_C, last_B)
                values += [gap_C * (bin_C == b) for b in range(len(last_B))]
            own_KR += np.stack(values).astype(np.float64) @ drawn_CR
        before_KR, total_KR = rows.ranks.before_and_total(own_KR)
        found = dict(zip(_ROW_SUMS, total_KR, strict=False))
        return {**found, "gaps": total_KR[len(_ROW_SUMS) :], "below": before_KR[:2]}

    @functools.cached_property
    def _ranked(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Count won pairs and precision [R] in one pass from the lowest score to the highest.

        A group of tied scores is counted when it is whole: what is left open at the end of a piece waits
        for the next.
        """
        rows, (rows_below_R, positives_below_R) = self.rows, self._row_sums["below"]
        tally = _Tally(
            self.num_positives,
            self.num_rows - self.num_positives,
            positives_below_R,
            rows_below_R - positives_below_R,
        )
        open_2R = np.zeros((2, 1, *self.shape))
        for part, drawn_CR in self._pieces():
            positive_C, score_C = rows.positive_N[part], rows.probability_N[part]
            goes_on = part.start > 0 and rows.probability_N[part.start - 1] == score_C[0]
            pos_TR, neg_TR = _by_group(positive_C, score_C, drawn_CR)
            if goes_on:
                pos_TR[0] += open_2R[0, 0]
                neg_TR[0] += open_2R[1, 0]
            else:
                tally.count(*open_2R)
            tally.count(pos_TR[:-1], neg_TR[:-1])
            open_2R = np.stack([pos_TR[-1:], neg_TR[-1:]])
        tally.count(*open_2R)
        won_R, precision_R = rows.ranks.total(np.stack([tally.won_twice_R, tally.precision_R]))
        return won_R, precision_R


def _by_group(
    positive_C: NDArray[np.bool_], score_C: NDArray[np.float64], drawn_CR: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the positives and negatives of every group of tied scores [T, R].

    Neighbouring groups without a positive are one, since no threshold between them changes a sum; the
    first and the last group may have rows in other pieces and stay apart.
    """
    starts_T = group_starts(score_C[1:] != score_C[:-1], score_C.size)
    has_positive_T = np.add.reduceat(positive_C, starts_T, dtype=np.int64) > 0
    keep_T = has_positive_T.copy()
    keep_T[1:] |= has_positive_T[:-1]
    keep_T[[0, -1]] = True
    keep_T[1:2] = True
    starts_T, has_positive_T = starts_T[keep_T], has_positive_T[keep_T]
    all_TR = np.add.reduceat(drawn_CR, starts_T, axis=0)
    pos_TR = np.zeros_like(all_TR)
    if has_positive_T.any():
        at_P = np.flatnonzero(positive_C)
        group_P = np.searchsorted(starts_T, at_P, side="right")
        firsts = group_starts(group_P[1:] != group_P[:-1], group_P.size)
        pos_TR[has_positive_T] = np.add.reduceat(drawn_CR[at_P], firsts, axis=0)
    return pos_TR, all_TR - pos_TR


class _Tally:
    """Running sums of a pass from the lowest score to the highest; whole numbers in float64."""

    def __init__(
        self,
        total_pos_R: NDArray,
        total_neg_R: NDArray,
        pos_below_R: NDArray,
        neg_below_R: NDArray,
    ):
        self.total_pos_R, self.total_neg_R = total_pos_R, total_neg_R
        self.pos_below_R, self.neg_below_R = pos_below_R.copy(), neg_below_R.copy()
        self.won_twice_R = np.zeros_like(total_pos_R)
        self.precision_R = np.zeros_like(total_pos_R)

    def count(self, pos_TR: NDArray, neg_TR: NDArray) -> None:
        """Count whole groups of tied scores, ascending."""
        if not len(pos_TR):
            return
        # Up to and with each group. torch sums columns three times as fast as numpy.
        pos_to_TR, neg_to_TR = (
            torch.from_numpy(x).cumsum(0).numpy() + below_R
            for x, below_R in ((pos_TR, self.pos_below_R), (neg_TR, self.neg_below_R))
        )
        # Twice what lies below a group, and once what it ties with: up to before + up to here.
        self.won_twice_R += np.einsum("tr,tr->r", pos_TR, 2 * neg_to_TR - neg_TR)
        pos_above_TR = self.total_pos_R - pos_to_TR + pos_TR
        above_TR = self.total_neg_R - neg_to_TR + neg_TR + pos_above_TR
        share_TR = np.divide(pos_above_TR, above_TR, out=pos_above_TR, where=above_TR > 0)
        self.precision_R += np.einsum("tr,tr->r", pos_TR, share_TR)
        self.pos_below_R, self.neg_below_R = pos_to_TR[-1].copy(), neg_to_TR[-1].copy()


def users_of_this_rank(
    rows: LabelledScores,
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64], NDArray]]:
    """Yield AUC, rows and unit [U] of the known users that this rank gets; nan with one class only.

    The rows of a user are sent to the rank that the user row chooses. The users are taken in rounds, so
    that few of the rows are held twice.
    """
    assert rows.user_row_N is not None, "asked for only where there are users"
    ranks = rows.ranks
    num_rounds = 1 + rows.num_rows // (ranks.size * _ROUND_ROWS)
    for number in range(num_rounds):
        at = np.flatnonzero(
            is_known(rows.user_row_N) & (rows.user_row_N // ranks.size % num_rounds == number)
        )
        columns: dict[str, NDArray] = {
            "positive": rows.positive_N[at],
            "score": rows.probability_N[at],
            "user": rows.user_row_N[at],
            "unit": (rows.user_row_N if rows.unit_N is None else rows.unit_N)[at],
        }
        columns = ranks.send(columns, columns["user"] % ranks.size)
        users_U, auc_U, rows_U = auc_by_user(columns["positive"], columns["score"], columns["user"])
        first_U = np.unique(columns["user"], return_index=True)[1]
        assert len(first_U) == len(users_U), "both are of the same users, ascending"
        yield auc_U, rows_U, columns["unit"][first_U]
