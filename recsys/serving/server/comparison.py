"""Comparison of two bundles by people: two lists side by side, blind, and the choice between them.

In: a user. Out: both models' lists, on sides that a coin decides for each user; choices, kept in the
event store, and their tally. app.py registers the routes; without a second bundle they answer 404.
"""

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from recsys.serving.choices import Tally, is_swapped, tally
from recsys.serving.events import StoredId, StoredRequest
from recsys.serving.requests import RecommendRequest
from recsys.serving.server.messages import Reply
from recsys.serving.server.problems import ProblemError, busy
from recsys.serving.store import Choice

_SHOWN = ("id", "title", "artist")

router = APIRouter()


class ListsRequest(StoredRequest):
    """Ask for two lists for a user."""

    user: StoredId
    """User; a known one, or one with likes."""
    k: int = Field(default=12, ge=1, le=100)
    """Items of each list."""


class ChoiceRequest(StoredRequest):
    """Say which list is better."""

    user: StoredId
    """User whose lists they are; a later choice replaces an earlier one."""
    choice: Literal["left", "right", "neither"]
    """Side of the better list."""


@dataclass(frozen=True, slots=True)
class ComparedItem:
    """Item of a list, without anything that tells the model."""

    id: str
    title: str | None
    artist: str | None


@dataclass(frozen=True, slots=True)
class Lists:
    """Two lists of the same user, whose models are not named."""

    user: str
    left: list[ComparedItem]
    right: list[ComparedItem]


async def lists(http: Request, body: ListsRequest) -> Response:
    """Recommend to a user by two models, side by side without their names."""
    front = http.app.state.front
    request = RecommendRequest(user=body.user, k=body.k)
    request = front.hidden.exclude(request)
    replies: tuple[Reply, Reply] = await asyncio.gather(
        front.ask("recommend", request, body.user),
        front.ask("recommend", request, body.user, pool=_rival(front)),
    )
    first, second = (_items(reply) for reply in replies)
    models = (replies[0].version or "", replies[1].version or "")
    if is_swapped(body.user, models):
        first, second = second, first
    return _json(Lists(body.user, first, second))


async def choose(http: Request, body: ChoiceRequest) -> Response:
    """Store which list a user's is, and return the tally."""
    front = http.app.state.front
    models = _models(front)
    left, right = reversed(models) if is_swapped(body.user, models) else models
    preferred = {"left": left, "right": right, "neither": None}[body.choice]
    first, second = sorted(models)
    choice = Choice(body.user, first, second, preferred, time.time())
    await front.write(lambda transaction: transaction.add_choice(choice))
    return _json(await _tally(front, models))


@router.get("/v1/comparison", tags=["gallery"])
async def comparison(http: Request) -> Tally:
    """Return the tally of all choices between the two bundles."""
    front = http.app.state.front
    return await _tally(front, _models(front))


async def _tally(front: Any, models: tuple[str, str]) -> Tally:
    first, second = sorted(models)
    counts = await front.read(lambda store: store.choices(first, second))
    wins = (counts.get(models[0], 0), counts.get(models[1], 0))
    return tally(models, wins, counts.get(None, 0))


def _json(answer: Lists | Tally) -> Response:
    return JSONResponse(asdict(answer))


def _rival(front: Any) -> Any:
    if front.rival is None:
        raise ProblemError(
            404, "this server has one bundle: start it with a second one, compare=FOLDER"
        )
    return front.rival


def _models(front: Any) -> tuple[str, str]:
    """Return the versions of both bundles, the served one's first."""
    pools = (front.pool, _rival(front))
    if not all(pool.versions for pool in pools):
        raise busy("a bundle is being opened")
    return pools[0].versions[-1], pools[1].versions[-1]


def _items(reply: Reply) -> list[ComparedItem]:
    found = json.loads(reply.body)["items"]
    return [ComparedItem(**{name: item[name] for name in _SHOWN}) for item in found]
