"""Explanations: why a visitor is recommended an item, computed from the model and the liked items.

In: a visitor's likes, item rows and their modality weights. Out: reasons in one sentence, nearest liked
items, and the terms of the logit. Called by recommender.py.

A modality is a reason where the nearest liked item is nearer than random pairs of items are, by 1.5 of
their standard deviations at least; of several, the one whose distance times its weight is greatest.
Shapes: C items, T liked items, M modalities, E modality width, H hidden, D product.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import Users
from recsys.bundle.spec import TWO_SIDED
from recsys.serving.requests import NearLike, Reason
from recsys.serving.routes import FRESH, POPULAR, Router

_NEAR = 1.5
_OBJECTION = 0.5
"""Log-odds that a term takes away at least to be named."""
_RANDOM_PAIRS = 512
_COMPARED_LIKES = 100
_WORDS = {"semantic": "content", "style": "style", "text": "text"}
_AGAINST = {
    "semantic": "its content",
    "style": "its style",
    "text": "its text",
    "ids": "who liked it so far",
    "first_order": "how it is liked in general",
    "second_order": "how its properties go with yours",
    "deep": "how all of it goes together",
}
"""Words for the modality of a match, or for another term."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One item of a list, whose reason is asked for."""

    row: int
    weights: dict[str, float]
    routes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Near:
    """Liked items near to an item by one modality, nearest first."""

    deviations: float
    """Distance of the nearest one's cosine to the mean of random pairs, in their standard deviations."""
    rows: list[int]
    cosines: list[float]


class Explainer:
    """Explains the scores of one bundle."""

    def __init__(self, bundle: Bundle, router: Router, title_of: Callable[[int], str]):
        """Args: title_of: the title of an item's row, or its id; words for an uploaded picture."""
        self._bundle, self._router, self._title_of = bundle, router, title_of

    @torch.inference_mode()
    def nearest_likes(
        self, modality: str, rows: Sequence[int], likes: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return (cosines, places among the likes) of each item's liked items, nearest first [C, T].

        Items without the modality have the cosine -inf.
        """
        items = self._bundle.items
        vectors_CE, present_C = items.modality(modality, torch.tensor(list(rows)))
        likes_TE, present_T = items.modality(modality, torch.from_numpy(likes))
        cosines_CT = F.normalize(vectors_CE, dim=1) @ F.normalize(likes_TE, dim=1).T
        is_pair_CT = (present_C[:, None] * present_T) > 0
        cosines_CT = cosines_CT.masked_fill(~is_pair_CT, -torch.inf)
        found = cosines_CT.sort(dim=1, descending=True, stable=True)
        return found.values.numpy(), found.indices.numpy()

    def reasons(self, listed: Sequence[Listed], likes: NDArray[np.int64]) -> list[Reason]:
        """Return a reason for each item of a list.

        Args:
            likes: liked item rows [T], oldest first; the latest hundred are compared.
        """
        likes = likes[-_COMPARED_LIKES:][::-1].copy()
        rows = [item.row for item in listed]
        near: list[dict[str, _Near]] = [{} for _ in listed]
        for name in self._bundle.items.modalities if len(likes) else ():
            mean, deviation = self._random_cosines[name]
            cosines_CT, places_CT = self.nearest_likes(name, rows, likes)
            for place, (cosines, places) in enumerate(zip(cosines_CT, places_CT, strict=True)):
                far = (cosines[:2] - mean) / deviation
                num_named = int((far >= _NEAR).sum())  # nearest first
                if num_named:
                    near[place][name] = _Near(
                        deviations=float(far[0]),
                        rows=likes[places[:num_named]].tolist(),
                        cosines=cosines[:num_named].tolist(),
                    )
        found = []
        for item, by in zip(listed, near, strict=True):
            found.append(self._reason(item, by, likes))
        return found

    def _reason(
        self, item: Listed, near: Mapping[str, "_Near"], likes: NDArray[np.int64]
    ) -> Reason:
        """Return the reason of one item, given its near liked items by modality; likes: rows [T]."""
        if near:
            by = max(near, key=lambda name: near[name].deviations * item.weights.get(name, 1.0))
            titles = " and ".join(map(self._title_of, near[by].rows))
            num_items = len(self._bundle.items)  # rows behind them are of uploaded pictures
            named = [
                pair
                for pair in zip(near[by].rows, near[by].cosines, strict=True)
                if pair[0] < num_items
            ]
            return Reason(
                f"Close in {_WORDS.get(by, by)} to {titles}, which you liked.",
                by,
                [self._bundle.item_id(row) for row, _ in named],
                [cosine for _, cosine in named],
                item.weights.get(by),
            )
        if len(likes) and item.weights.get("ids"):
            text = "It resembles nothing that you liked; it comes from who liked what."
            return Reason(text, "ids", weight=item.weights["ids"])
        if POPULAR in item.routes:
            count = int(self._bundle.items.train_count.take(torch.tensor([item.row]))[0])
            return Reason(f"Popular with others: {count:,} interactions so far.", POPULAR)
        if FRESH in item.routes:
            return Reason("New in the catalogue.", FRESH)
        return Reason("No single reason stands out: it fits by everything together.", "model")

    def near_likes(self, row: int, likes: NDArray[np.int64], num: int) -> dict[str, list[NearLike]]:
        """Return so many of the liked items [T] nearest to an item, by modality."""
        found: dict[str, list[NearLike]] = {}
        likes = likes[::-1].copy()
        for name in self._bundle.items.modalities if len(likes) else ():
            cosines_CT, places_CT = self.nearest_likes(name, [row], likes)
            found[name] = [
                NearLike(
                    self._bundle.item_id(int(likes[p])), float(c), self._title_of(int(likes[p]))
                )
                for c, p in zip(cosines_CT[0][:num], places_CT[0][:num], strict=True)
                if c > -np.inf
            ]
        return found

    @torch.inference_mode()
    def terms(
        self, users: Users, row: int, logit: float, dials_M: NDArray | None
    ) -> dict[str, float]:
        """Return the terms of one user's logit of one item, by name; their sum is the logit.

        `deep` is the logit less the others: final layers, interactions and bias.
        """
        items, spec, at = self._bundle.items, self._bundle.spec, torch.tensor([row])
        terms: dict[str, float] = {}
        if "first_order" in items.parts:
            if spec.first_order:
                item_first = float(items.take("first_order", at)[0])
                terms["first_order"] = float(users.first_order_U[0]) + item_first
            if spec.kind == TWO_SIDED and "present" in items.parts:
                dials = torch.ones(1) if dials_M is None else torch.from_numpy(dials_M)
                present_M = items.take("present", at)[0] * dials
                if spec.match_weights:
                    vectors_MH = items.take("vectors", at)[0]
                    weights_M = torch.tensor(spec.match_weights)
                    match_M = weights_M * (vectors_MH @ users.vectors[0][0]) * present_M
                    pairs = zip(spec.modality_names, match_M.tolist(), strict=True)
                    terms |= {f"match:{name}": value for name, value in pairs}
                if spec.widths.product:
                    product_D = (items.take("products", at)[0] * present_M[:, None]).sum(dim=0)
                    terms["second_order"] = float(product_D @ users.vectors[1][0])
        terms["deep"] = logit - sum(terms.values())
        return terms

    @cached_property
    def _random_cosines(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of the cosines of random pairs of items, by modality."""
        items, found = self._bundle.items, {}
        rng = np.random.default_rng(0)
        pairs_P2 = torch.from_numpy(rng.integers(1, max(items.num_stored, 2), (_RANDOM_PAIRS, 2)))
        for name in items.modalities:
            one_PE, has_one_P = items.modality(name, pairs_P2[:, 0])
            other_PE, has_other_P = items.modality(name, pairs_P2[:, 1])
            cosines_P = F.cosine_similarity(one_PE, other_PE, dim=1)
            kept_P = cosines_P[(has_one_P * has_other_P > 0) & (pairs_P2[:, 0] != pairs_P2[:, 1])]
            if len(kept_P) < 2:
                found[name] = (0.0, 1.0)
            else:
                found[name] = (float(kept_P.mean()), max(float(kept_P.std()), 1e-3))
        return found


def with_objection(reason: Reason, terms: Mapping[str, float]) -> Reason:
    """Return a reason that also says which term lowers the logit most, where one lowers it by 0.5."""
    name, value = min(terms.items(), key=lambda term: term[1])
    if value > -_OBJECTION:
        return reason
    words = _AGAINST[name.removeprefix("match:")]
    return replace(reason, text=f"{reason.text} Against it: {words}.")
