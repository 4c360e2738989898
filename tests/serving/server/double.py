"""Double of the recommender, for tests of the server alone: known answers, and faults by order.

A bundle is a folder with a bundle.json of {"version", "since"}; {"damaged": true} cannot be opened. Items
are i00000 to i00999. Users order what happens: `poison` kills the worker, `slow` takes half a second,
`fault` raises. It needs no torch, so that its server starts two seconds sooner.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from recsys.bundle import spec
from recsys.errors import UserError
from recsys.files import write_json
from recsys.listing import write_listing
from recsys.serving.encoded_item import EncodedItem
from recsys.serving.requests import (
    ExplainRequest,
    Explanation,
    ItemCard,
    NewItem,
    Reason,
    Recommendations,
    RecommendedItem,
    RecommendRequest,
    ScoredItem,
    ScoreRequest,
    Scores,
    SearchRequest,
    SimilarItem,
    SimilarItems,
    SimilarRequest,
    UnknownIdError,
)
from recsys.serving.store import AddedItem

OPENER = "tests.serving.server.double:Double"
WEIGHTS = {"ids": 0.25, "semantic": 0.25, "style": 0.25, "text": 0.25}


def make_bundle(folder: Path, version: str, *, since: float = 0.0, **more: object) -> Path:
    """Write a bundle of the double."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bundle.json", {"version": version, "since": since, **more})
    write_listing(folder)
    return folder


def point_to(current: Path, folder: Path) -> None:
    """Make a bundle the current one."""
    spec.point_to(current.parent, folder.name)


class Double:
    """The methods that a worker calls."""

    def __init__(self, content: dict):
        self.version: str = content["version"]
        self.since: float = content["since"]
        self.later_likes: Callable[[str], list[tuple[str, float]]] = lambda user: []
        self.items = [f"i{n:05d}" for n in range(1000)]

    @classmethod
    def open(cls, folder: str) -> "Double":
        content = json.loads((Path(folder) / "bundle.json").read_text())
        time.sleep(content.get("seconds", 0.0))
        if content.get("damaged"):
            raise UserError(f"{folder}/tables/item_id.npy: damaged")
        if content.get("deadly"):
            os.kill(os.getpid(), signal.SIGKILL)
        return cls(content)

    def _order(self, user: str | None) -> None:
        if user == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if user == "slow":
            time.sleep(0.5)
        if user == "fault":
            raise RuntimeError("an ordered fault")

    def recommend_many(self, requests: list[RecommendRequest]) -> list[Recommendations]:
        return [self._recommend(request) for request in requests]

    def _recommend(self, request: RecommendRequest) -> Recommendations:
        self._order(request.user)
        later = [item for item, _ in self.later_likes(request.user)] if request.user else []
        seen = {*later, *request.likes}
        items = [item for item in reversed(self.items) if item not in seen][: request.k]
        return Recommendations(
            version=self.version,
            items=[
                RecommendedItem(n, item, 1 / n, WEIGHTS, None, None, ["model"])
                for n, item in enumerate(items, start=1)
            ],
            known_user=request.user is not None,
            history=len(later) + len(request.likes),
            unknown_likes=[item for item in request.likes if item not in self.items],
        )

    def score_many(self, requests: list[ScoreRequest]) -> list[Scores]:
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> Scores:
        self._order(request.user)
        scored = [ScoredItem(item, 0.123456, WEIGHTS, True) for item in request.items]
        return Scores(self.version, scored, True, [])

    def similar_request(self, request: SimilarRequest) -> SimilarItems:
        self._known(request.item)
        if request.by not in WEIGHTS:
            raise UserError(f"by={request.by!r}: expected one of {', '.join(WEIGHTS)}")
        found = [SimilarItem(1, self.items[0], 1.0, None, None)]
        return SimilarItems(self.version, request.by, found)

    def search_request(self, request: SearchRequest) -> SimilarItems:
        found = [SimilarItem(1, self.items[0], 1.0, None, None)]
        return SimilarItems(self.version, "text", found)

    def explain_request(self, request: ExplainRequest) -> Explanation:
        self._known(request.item)
        reason = Reason("It resembles i00000.", "style", ["i00000"])
        return Explanation(
            self.version, request.item, 0.5, 0.0, {"deep": 0.0}, WEIGHTS, {}, reason, []
        )

    def card(self, item: str) -> ItemCard:
        self._known(item)
        return ItemCard(self.version, item, None, None, [], None, 0, [], item[0] != "i")

    def _known(self, item: str) -> None:
        if item not in self.items:
            raise UnknownIdError(f"item {item!r} given; the bundle has {len(self.items):,} others")

    def encode_item(self, item: NewItem) -> EncodedItem:
        if item.id in self.items:
            raise UserError(f"id={item.id!r}: an item of the bundle")
        return EncodedItem(version=self.version, card={"item_id": item.id}, vectors={}, features={})

    def apply_stored(self, item: AddedItem) -> None:
        if item.id not in self.items:
            self.items.append(item.id)
