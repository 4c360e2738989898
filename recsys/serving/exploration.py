"""Exploration: lists that also show items of which little is known, so that the next model knows more.

Epsilon-greedy: every place of a list gets, with probability epsilon, a candidate drawn evenly from those
that are not listed yet.

Thompson sampling over the direct term of the logit, which is linear in the product x of the user's and
the item's retrieval vector and in a weight of the item itself. These weights have a Gaussian posterior by
Laplace's approximation on training rows with probabilities p (Chapelle and Li, An Empirical Evaluation
of Thompson Sampling, NeurIPS 2011; over the last layer of a network: Riquelme et al., ICLR 2018,
arXiv 1802.09127). For each request one draw decides the order:

    logit' = logit + (w - 1) . x + b_item       w ~ N(1, a^2 S)        b_item ~ N(0, a^2 s_item^2)
    S^-1 = I + sum over rows of p (1 - p) x x^T        s_item^-2 = 1 + n_item * mean of p (1 - p)

a is `explore.thompson`, n_item the item's training rows: a new item has s = 1, and one with a hundred
rows some 0.2. Answers keep the scores of the model itself. Files, written by launch/export.py:

    explore/factor.npy      float32 [R, R]: L with L L^T = S; [0, 0] for a model without a direct term
    explore/curvature.npy   float32 [1]: mean of p (1 - p)

Called by recommender.py. Shapes: C candidates, K places of a list, R retrieval width.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.spec import EXPORT_AGAIN
from recsys.errors import UserError
from recsys.files import read_array

FOLDER = "explore"


class Explorer:
    """Posterior of one bundle."""

    def __init__(self, bundle: Bundle):
        """Read the files, where the bundle has them.

        Raises:
            DamagedFileError: a file is broken.
        """
        self._items = bundle.items
        self._factor_RR: NDArray[np.float32] | None = None
        folder = bundle.folder / FOLDER
        if (folder / "factor.npy").is_file():
            self._factor_RR = read_array(folder / "factor.npy", EXPORT_AGAIN)
            self._curvature = float(read_array(folder / "curvature.npy", EXPORT_AGAIN)[0])

    def drawn(
        self,
        logits_C: NDArray,
        rows_C: NDArray[np.int64],
        user_R: torch.Tensor,
        scale: float,
        rng: np.random.Generator,
    ) -> NDArray[np.float64]:
        """Return logits [C] of one draw of the weights.

        Args:
            scale: a of the formula; 0 returns the logits as they are.

        Raises:
            UserError: the bundle was exported without a posterior.
        """
        logits_C = logits_C.astype(np.float64)
        if not scale:
            return logits_C
        if self._factor_RR is None:
            raise UserError(
                f"explore.thompson={scale:g}: this bundle has no posterior; {EXPORT_AGAIN}, with "
                f"posterior_rows above 0"
            )
        rows = torch.from_numpy(rows_C)
        count_C = self._items.train_count.take(rows).numpy()
        deviation_C = (1 + self._curvature * count_C) ** -0.5
        noise_C = deviation_C * rng.standard_normal(len(rows_C))
        if len(self._factor_RR):
            weights_R = self._factor_RR @ rng.standard_normal(len(self._factor_RR))
            user_weights_R = torch.from_numpy(weights_R).float() * user_R
            noise_C += (self._items.take("retrieval", rows) @ user_weights_R).numpy()
        return logits_C + scale * noise_C


def epsilon_greedy(
    places_K: NDArray[np.int64], num_candidates: int, epsilon: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the listed places [K], and the probability of each given those before it [K].

    Args:
        places_K: places of the best candidates, best first, distinct.
        num_candidates: C; places are below it.
        epsilon: probability that a place is filled by a candidate drawn evenly from those left.
    """
    left = list(range(num_candidates))
    greedy = places_K.tolist()
    listed, probabilities = [], []
    for _ in range(len(places_K)):
        chosen = best = next(place for place in greedy if place not in listed)
        if rng.random() < epsilon:
            chosen = left[rng.integers(len(left))]
        even = epsilon / len(left)
        probabilities.append(even + (1 - epsilon) * (chosen == best))
        listed.append(chosen)
        left.remove(chosen)
    return np.array(listed, np.int64), np.array(probabilities)
