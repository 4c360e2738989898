"""Recommender: lists, scores, similar items, search and explanations out of one bundle.

    recommender = Recommender.open("workspace/bundles/current")
    recommender.recommend(user="12", k=10)
    recommender.recommend(likes=["3", "5", "8", "13", "21"], dials={"style": 2}, explain=True)

In: requests (requests.py), as keyword arguments or as records. Out: answers. Used in notebooks, by the
server's workers and by launch/recommend.py. One thread at a time may use it.
Shapes: U requests, C candidates of all requests, M modalities, E modality width.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer, Users
from recsys.schema import UNKNOWN_ROW
from recsys.serving.additions import Additions
from recsys.serving.answers import Answers, ScoredRows, probabilities
from recsys.serving.encoded_item import EncodedItem
from recsys.serving.encoders import Encoders
from recsys.serving.explain import Explainer, Listed, with_objection
from recsys.serving.filters import ItemFilter
from recsys.serving.item_search import ItemSearch
from recsys.serving.pictures import UploadedPictures
from recsys.serving.requests import (
    ExplainRequest,
    Explanation,
    ItemCard,
    NewItem,
    Recommendations,
    RecommendRequest,
    ScoreRequest,
    Scores,
    SearchRequest,
    SimilarItems,
    SimilarRequest,
    Taste,
    VisitorRequest,
    checked,
)
from recsys.serving.routes import Candidates, Router, Wanted
from recsys.serving.store import AddedItem, Store
from recsys.serving.taste import taste_of
from recsys.serving.visitors import LaterLikes, Visitor, Visitors

_NEAREST_LIKES = 3


class Recommender:
    """Answers of one bundle."""

    def __init__(self, bundle: Bundle, store: Store | None = None):
        """Open everything that requests read.

        Args:
            store: keeps items that `add_item` adds; None: they live as long as this object.

        Raises:
            DamagedFileError: a file of the bundle is missing or broken.
        """
        self.bundle = bundle
        self.version = bundle.version
        self.scorer = BundleScorer(bundle)
        self._filter = ItemFilter(bundle)
        self.router = Router(bundle, self.scorer, self._filter)
        self._visitors = Visitors(bundle)
        self._encoders = Encoders(bundle)
        self._pictures = UploadedPictures(bundle, self._encoders, self.router)
        self._search = ItemSearch(bundle, self.router, self._filter, self._encoders)
        self._explainer = Explainer(bundle, self.router, self._title)
        self._answers = Answers(bundle, self.router, self._explainer, self._search.shown)
        self._additions = Additions(
            bundle, self.scorer, self._encoders, (self.router, self._filter), store
        )

    @classmethod
    def open(cls, folder: str | Path, events: str | Path | None = None) -> "Recommender":
        """Open a bundle.

        Args:
            folder: its folder, or the file `current` beside bundles.
            events: event store that keeps added items, as the server's key of this name: an SQLite file
                or a URL; its items are added at once. None: added items live as long as this object.

        Raises:
            UserError: no bundle there, or a damaged one; names the file.
        """
        return cls(Bundle.open(folder), None if events is None else Store.open(events))

    @property
    def later_likes(self) -> LaterLikes:
        """Likes of a user that the bundle may not know yet; a server puts its own function here."""
        return self._visitors.later_likes

    @later_likes.setter
    def later_likes(self, likes: LaterLikes) -> None:
        self._visitors.later_likes = likes

    @cached_property
    def since(self) -> float:
        """Time up to which the bundle's histories reach, in seconds since 1970; 0 where not known."""
        return float(self.bundle.users.newest_time)

    # Lists

    def recommend(
        self, user: str | None = None, likes: Sequence[str] = (), k: int = 20, **more: Any
    ) -> Recommendations:
        """Return a list of items for a user, for liked items, or for nobody in particular.

        Args:
            more: other fields of RecommendRequest: `filters`, `dials`, `explain`, ...

        Raises:
            UserError: a value is out of its bounds, or names something that the bundle lacks.
        """
        given = {"user": user, "likes": list(likes), "k": k, **more}
        return self.recommend_many([checked(RecommendRequest, given)])[0]

    def recommend_many(self, requests: Sequence[RecommendRequest]) -> list[Recommendations]:
        """Return the answer to each request; their candidates are scored in one call.

        Raises:
            UserError: one of the requests names something that the bundle lacks.
        """
        with self._pictures.rows_of(requests) as pictured:
            return self._recommended(requests, pictured)

    def _recommended(
        self, requests: Sequence[RecommendRequest], pictured: Sequence[Sequence[int]]
    ) -> list[Recommendations]:
        """Return the answer to each request, given the item rows of its pictures."""
        wanted = list(map(self._wanted, requests, pictured))
        visitors = [asked.visitor for asked in wanted]
        users, dials_UM = self._users(visitors)
        users_UR = self.router.user_vectors(users, dials_UM)
        found = self.router.candidates(wanted, users_UR)
        logits_C, weights_CM = self._score(users, [c.rows_C for c in found], dials_UM)
        answers, start = [], 0
        for request, visitor, candidates, user_R in zip(
            requests, visitors, found, users_UR, strict=True
        ):
            part = slice(start, start + len(candidates.rows_C))
            start = part.stop
            scored = ScoredRows(candidates.rows_C, logits_C[part], weights_CM[part])
            items = self._answers.listed(request, visitor, scored, candidates.routes_C, user_R)
            answers.append(
                Recommendations(
                    version=self.version,
                    items=items,
                    known_user=visitor.known_user,
                    history=len(visitor.likes),
                    unknown_likes=visitor.unknown_likes,
                )
            )
        return answers

    def candidates(self, wanted: Sequence[Wanted]) -> list[Candidates]:
        """Return the candidates of visitors, not scored yet."""
        users, dials_UM = self._users([asked.visitor for asked in wanted])
        return self.router.candidates(wanted, self.router.user_vectors(users, dials_UM))

    def _wanted(self, request: RecommendRequest, pictured: Sequence[int]) -> Wanted:
        visitor = self._visitor_of(request, pictured)
        excluded = self.bundle.item_rows(request.filters.exclude_items)
        if request.exclude_seen:
            excluded = np.concatenate([excluded, visitor.seen])
        return Wanted(
            visitor=visitor,
            size=max(request.candidates, request.k),
            excluded=excluded[excluded != UNKNOWN_ROW],
            allowed=self._filter.allowed(request.filters),
        )

    # Scores

    def score(self, user: str | None, items: Sequence[str], **more: Any) -> Scores:
        """Return the probability that a user likes each item.

        Args:
            more: other fields of ScoreRequest: `likes`, `features`, `dials`.
        """
        given = {"user": user, "items": list(items), **more}
        return self.score_many([checked(ScoreRequest, given)])[0]

    def score_many(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """Return the scores that each request asks for, items in its order; all of one call.

        Raises:
            UserError: one of the requests names something that the bundle lacks.
        """
        visitors = [self._visitor_of(request) for request in requests]
        # One lookup for all: it has a fixed cost.
        ends = np.cumsum([len(request.items) for request in requests])
        asked = self.bundle.item_rows([item for request in requests for item in request.items])
        rows = np.split(asked, ends[:-1])
        users, dials_UM = self._users(visitors)
        logits_C, weights_CM = self._score(users, rows, dials_UM)
        answers, start = [], 0
        for request, visitor, rows_C in zip(requests, visitors, rows, strict=True):
            part = slice(start, start + len(rows_C))
            start = part.stop
            scored = ScoredRows(rows_C, logits_C[part], weights_CM[part])
            answers.append(
                Scores(
                    version=self.version,
                    items=self._answers.scored(request.items, scored),
                    known_user=visitor.known_user,
                    unknown_likes=visitor.unknown_likes,
                )
            )
        return answers

    def taste(self, request: VisitorRequest) -> Taste:
        """Return a score of every item of the bundle's files for one visitor."""
        users, _ = self._users([self._visitor_of(request)])
        return taste_of(self.bundle, self.scorer, self.router, users)

    def explain(self, user: str | None, item: str, **more: Any) -> Explanation:
        """Return why an item has its score for a user.

        Args:
            more: other fields of ExplainRequest: `likes`, `features`, `dials`.

        Raises:
            UnknownIdError: the bundle has no such item.
        """
        return self.explain_request(checked(ExplainRequest, {"user": user, "item": item, **more}))

    def explain_request(self, request: ExplainRequest) -> Explanation:
        """Return the explanation that a request asks for."""
        row, visitor = self._search.row(request.item), self._visitor_of(request)
        users, dials_UM = self._users([visitor])
        logits_C, weights_CM = self._score(users, [np.array([row])], dials_UM)
        weights, logit = self._answers.weights(weights_CM[0].tolist()), float(logits_C[0])
        reasons = self._explainer.reasons(
            [Listed(row=row, weights=weights, routes=[])], visitor.likes
        )
        terms = self._explainer.terms(users, row, logit, visitor.dials)
        return Explanation(
            version=self.version,
            item=request.item,
            score=float(probabilities(logits_C)[0]),
            logit=logit,
            terms=terms,
            weights=weights,
            nearest_likes=self._explainer.near_likes(row, visitor.likes, _NEAREST_LIKES),
            reason=with_objection(reasons[0], terms),
            unknown_likes=visitor.unknown_likes,
        )

    # Items

    def similar(self, item: str, by: str | None = None, k: int = 20, **more: Any) -> SimilarItems:
        """Return the items nearest to an item by one modality or by the model, without itself.

        Raises:
            UnknownIdError: the bundle has no such item.
            UserError: the bundle lacks the modality, or the item has no vector of it.
        """
        return self.similar_request(
            checked(SimilarRequest, {"item": item, "by": by, "k": k, **more})
        )

    def similar_request(self, request: SimilarRequest) -> SimilarItems:
        """Return the similar items that a request asks for."""
        return self._search.similar(request)

    def search(
        self, words: str | None = None, picture: bytes | None = None, k: int = 20, **more: Any
    ) -> SimilarItems:
        """Return the items nearest to words, or to a picture file.

        Args:
            more: other fields of SearchRequest: `by`, `filters`.

        Raises:
            UserError: the bundle has no encoder for it, or the picture cannot be read.
        """
        given = {"words": words, "picture": picture, "k": k, **more}
        return self.search_request(checked(SearchRequest, given))

    def search_request(self, request: SearchRequest) -> SimilarItems:
        """Return the items that a search asks for."""
        return self._search.search(request)

    def card(self, item: str) -> ItemCard:
        """Return what the catalogue says of an item.

        Raises:
            UnknownIdError: the bundle has no such item.
        """
        return self._search.card(item)

    # New items

    def add_item(self, id: str, **content: Any) -> ItemCard:
        """Add an item that the model was not trained with, and return its card.

        It is recommended at once, by its picture, text and features.

        Args:
            content: other fields of NewItem: `picture`, `text`, `title`, `artist`, `tags`, `features`.

        Raises:
            UserError: the id is taken, the bundle lacks an encoder or a feature, or the picture cannot be
                read.
        """
        item = checked(NewItem, {"id": id, **content})
        self._additions.add(item)
        return self.card(item.id)

    def encode_item(self, item: NewItem) -> EncodedItem:
        """Return a new item as this bundle reads it, for a store; raises UserError as `add_item`."""
        return self._additions.encode(item)

    def apply_stored(self, item: AddedItem) -> None:
        """Recommend an item of the event store; one that another bundle encoded is encoded anew.

        Raises:
            UserError: it cannot be encoded by this bundle; names the item.
        """
        self._additions.apply_stored(item)

    # Parts

    def _visitor_of(self, request: VisitorRequest, pictured: Sequence[int] = ()) -> Visitor:
        return self._visitors.of(
            user=request.user,
            likes=request.likes,
            features=request.features,
            dials=request.dials,
            pictured=pictured,
        )

    def _users(self, visitors: Sequence[Visitor]) -> tuple[Users, torch.Tensor | None]:
        """Return the encoded users and their dials [U, M]; None where all are 1."""
        users = self.scorer.encode([visitor.profile for visitor in visitors])
        if all(visitor.dials is None for visitor in visitors):
            return users, None
        one_M = np.ones(len(self.scorer.dial_names), np.float32)
        return users, torch.from_numpy(
            np.stack([one_M if v.dials is None else v.dials for v in visitors])
        )

    def _score(
        self, users: Users, rows: Sequence[NDArray[np.int64]], dials_UM: torch.Tensor | None
    ) -> tuple[NDArray, NDArray]:
        """Return (logits [C], weights [C, M]) of every user's rows, one user after the other."""
        counts = [len(of_user) for of_user in rows]
        of_row_C = torch.from_numpy(np.repeat(np.arange(len(rows)), counts))
        rows_C = torch.from_numpy(np.concatenate(rows))
        logits_C, weights_CM = self.scorer.score(users, of_row_C, rows_C, dials_UM)
        if dials_UM is not None:  # the dials scale weights that summed to 1
            weights_CM = weights_CM / weights_CM.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return logits_C.numpy(), weights_CM.numpy()

    def _title(self, row: int) -> str:
        if row >= len(self.bundle.items):
            return "a picture of yours"
        item, title, _ = self._search.shown.of(row)
        return f'"{title}"' if title else item
