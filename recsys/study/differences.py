"""Paired differences of AUC between two models, over users and seeds, with intervals and a verdict.

In: predictions of two models on the same rows, each trained from the same seeds. Out: the mean
difference of AUC with an interval. Called by launch/compare.py.
Shapes: N rows, S seeds, R replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.evaluation.rows import ScoredRows
from recsys.metrics.auc import auc
from recsys.metrics.bootstrap import interval
from recsys.metrics.formulas import bootstrap_auc

Verdict = Literal["better", "worse", "within noise"]
"""One model against another: the interval of the difference above 0, below 0, or with 0 in it."""


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """Scores of one model, by seed."""

    auc_S: NDArray[np.float64]
    replicates_SR: NDArray[np.float64]
    """AUC on R resampled sets of users; column r is the same set for every model and seed."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A mean difference and its interval."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """`better`, `worse`, or `within noise` where the interval holds 0."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "within noise"


def seed_scores(seeds: Sequence[ScoredRows], *, num_replicates: int, seed: int) -> SeedScores:
    """Return the AUC of every seed's predictions, as they are and on resampled users.

    Raises:
        UserError: the predictions are not of the same rows.
    """
    seeds = [rows.with_units_of(seeds[0]) for rows in seeds]
    return SeedScores(
        auc_S=np.array([auc(rows.label_N, rows.score_N) for rows in seeds]),
        replicates_SR=np.stack([
            bootstrap_auc(
                rows.label_N,
                rows.score_N,
                rows.unit_N,
                num_replicates=num_replicates,
                seed=seed,
            )
            for rows in seeds
        ]),
    )


def paired_difference(ours: SeedScores, reference: SeedScores, *, seed: int) -> Difference:
    """Return the mean over seeds of AUC(ours) - AUC(reference), with a 95 % interval.

    Both sources of luck are drawn again: the users (in pairs, by the replicates) and the seeds (with
    replacement, both models' runs of a drawn seed together). Few seeds understate their share: with
    one seed the interval is that of the users alone.

    Edge cases: the difference of a model to itself is 0 with the interval [0, 0].

    Raises:
        UserError: the models have different numbers of seeds.
    """
    if ours.replicates_SR.shape != reference.replicates_SR.shape:
        raise UserError(
            f"{len(ours.auc_S)} seeds against {len(reference.auc_S)}: a paired difference needs the "
            f"same seeds of both models"
        )
    difference_SR = ours.replicates_SR - reference.replicates_SR
    num_seeds, num_replicates = difference_SR.shape
    drawn_SR = np.random.default_rng(seed).integers(num_seeds, size=difference_SR.shape)
    means_R = difference_SR[drawn_SR, np.arange(num_replicates)].mean(axis=0)
    low, high = interval(means_R)
    return Difference(mean=float((ours.auc_S - reference.auc_S).mean()), low=low, high=high)
