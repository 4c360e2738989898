"""Answers: scored rows as the items that people read, with id, title, weights, routes and reason.

In: rows with logits and modality weights. Out: the items of recsys/serving/requests.py. Called by
recommender.py.
Shapes: C scored rows, M modalities.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.schema import UNKNOWN_ROW
from recsys.serving.explain import Explainer, Listed
from recsys.serving.exploration import Explorer, epsilon_greedy
from recsys.serving.item_search import Captions
from recsys.serving.requests import RecommendedItem, RecommendRequest, ScoredItem
from recsys.serving.routes import FRESH, Router
from recsys.serving.selection import DIVERSITY_OF_STRANGERS, best, with_fresh
from recsys.serving.visitors import Visitor


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Scores of one request."""

    rows_C: NDArray[np.int64]
    logits_C: NDArray
    weights_CM: NDArray
    """Modality weights; M is 0 for a model that measures none."""


class Answers:
    """Makes the items of answers of one bundle."""

    def __init__(self, bundle: Bundle, router: Router, explainer: Explainer, captions: Captions):
        """Args: router: that found the candidates."""
        self._items, self._modality_names = bundle.items, bundle.spec.modality_names
        self._router, self._explainer, self._captions = router, explainer, captions
        self._explorer = Explorer(bundle)

    def listed(
        self,
        request: RecommendRequest,
        visitor: Visitor,
        scored: ScoredRows,
        routes_C: NDArray[np.uint16],
        user_R: torch.Tensor,
    ) -> list[RecommendedItem]:
        """Return the list of a request, best first.

        Args:
            scored: its candidates.
            routes_C: bits of the routes that found each.
            user_R: the visitor's retrieval vector.

        Raises:
            UserError: it asks for Thompson sampling, and the bundle has no posterior.
        """
        places, propensities = self._explored(request, visitor, scored, routes_C, user_R)
        rows = scored.rows_C[places].tolist()
        routes = [self._router.names_of(bits) for bits in routes_C[places].tolist()]
        weights = [self.weights(weights_M) for weights_M in scored.weights_CM[places].tolist()]
        reasons: Sequence[Any] = [None] * len(rows)
        if request.explain:
            listed = [
                Listed(row=row, weights=w, routes=r)
                for row, w, r in zip(rows, weights, routes, strict=True)
            ]
            reasons = self._explainer.reasons(listed, visitor.likes)
        scores = probabilities(scored.logits_C[places]).tolist()
        items = []
        for place, row in enumerate(rows):
            item, title, artist = self._captions.of(row)
            items.append(
                RecommendedItem(
                    rank=place + 1,
                    id=item,
                    score=scores[place],
                    weights=weights[place],
                    title=title,
                    artist=artist,
                    routes=routes[place],
                    reason=reasons[place],
                    propensity=propensities[place],
                )
            )
        return items

    def _explored(
        self,
        request: RecommendRequest,
        visitor: Visitor,
        scored: ScoredRows,
        routes_C: NDArray[np.uint16],
        user_R: torch.Tensor,
    ) -> tuple[NDArray[np.int64], Sequence[float | None]]:
        """Return the places of the listed rows [K], in order, and their propensities."""
        explore = request.explore
        if explore is None or not (explore.epsilon or explore.thompson):
            places = self._places(request, visitor, scored, routes_C)
            return places, [None] * len(places)
        rng = np.random.default_rng(request.seed)
        drawn_C = self._explorer.drawn(
            scored.logits_C, scored.rows_C, user_R, explore.thompson, rng
        )
        scored = replace(scored, logits_C=drawn_C)
        places = self._places(request, visitor, scored, routes_C)
        num_candidates = len(scored.rows_C)
        places, chances = epsilon_greedy(places, num_candidates, explore.epsilon, rng)
        return places, [None] * len(places) if explore.thompson else chances.tolist()

    def _places(
        self,
        request: RecommendRequest,
        visitor: Visitor,
        scored: ScoredRows,
        routes_C: NDArray[np.uint16],
    ) -> NDArray[np.int64]:
        """Return the places of the listed rows, in order."""
        diversity = request.diversity
        if diversity is None:
            diversity = DIVERSITY_OF_STRANGERS if visitor.is_stranger else 0.0
        places = best(scored.logits_C, scored.rows_C, self._items, k=request.k, diversity=diversity)
        if visitor.is_stranger:
            is_fresh_C = (routes_C & self._router.bit(FRESH)) > 0
            places = with_fresh(places, scored.logits_C, is_fresh_C)
        return places

    def scored(self, items: Sequence[str], scored: ScoredRows) -> list[ScoredItem]:
        """Return the scores of items, in the order given."""
        # `map` runs on in C: a loop here takes twice as long, 0.1 ms for 500 items.
        weights = map(dict, map(zip, repeat(self._modality_names), scored.weights_CM.tolist()))
        scores = probabilities(scored.logits_C).tolist()
        is_known = (scored.rows_C != UNKNOWN_ROW).tolist()
        return list(map(ScoredItem, items, scores, weights, is_known))

    def weights(self, weights_M: Sequence[float]) -> dict[str, float]:
        """Return modality weights by name; none for a model that measures none."""
        return dict(zip(self._modality_names, weights_M, strict=False))


def probabilities(logits_C: NDArray) -> NDArray[np.float64]:
    """Return the logistic function of logits [C]."""
    return 1 / (1 + np.exp(-logits_C.astype(np.float64)))
