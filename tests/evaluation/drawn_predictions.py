"""Predictions of drawn rows, and their evaluation with settings that are quick."""

import numpy as np

from recsys.evaluation.candidates import RankingConfig
from recsys.evaluation.config import BootstrapConfig, EvaluateConfig
from recsys.evaluation.predict import Predictions, by_score
from recsys.evaluation.split import RowUsers, evaluate_rows

CONFIG = EvaluateConfig(
    bootstrap=BootstrapConfig(num_replicates=20), ranking=RankingConfig(ks=[1, 3], num_negatives=2)
)
NAMES = ["ids", "semantic", "style", "text"]


def rows(rng, count=600, weights=4):
    label = (rng.random(count) < 0.3).astype(np.float64)
    return Predictions(
        row_id=rng.permutation(count),
        user_row=rng.integers(1, 30, count),
        item_row=rng.integers(1, 20, count),
        label=label,
        score=np.clip(0.2 + 0.3 * label + 0.4 * rng.random(count), 0, 1),
        weights=rng.dirichlet(np.ones(max(weights, 1)), count)[:, :weights].astype(np.float32),
    )


def evaluated(
    predictions, segments=(), names=NAMES, item_counts=None, has_users=True, unknown_users=None
):
    predictions = by_score(predictions.take(np.arange(len(predictions.row_id))))
    return evaluate_rows(
        predictions,
        RowUsers(
            user_row_N=predictions.user_row if has_users else None, unknown_user_N=unknown_users
        ),
        segments=segments,
        item_counts=item_counts,
        modality_names=names if predictions.weights.shape[1] else [],
        config=CONFIG,
    )
