"""Map of the catalogue: its points, its groups, items by row, and what a person thinks of all of them.

Arrays are sent as they are in memory, little-endian, one entry for each item from row 1 on. Their
addresses name the bundle, so that browsers keep them for good. app.py includes the router.
Shapes: N items.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from recsys.bundle.map import Group
from recsys.serving.requests import VisitorRequest
from recsys.serving.server.gallery import shown_of
from recsys.serving.server.problems import ProblemError
from recsys.serving.shown import Shown, ShownItem

MAX_ROWS = 200
_ROW = re.compile("[0-9]{1,9}")
_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable"}
_BYTES = "application/octet-stream"

router = APIRouter(prefix="/v1/map", tags=["gallery"])
_BINARY: dict[int | str, dict] = {200: {"content": {_BYTES: {}}}}


@dataclass(frozen=True)
class MapCard:
    """Layouts and groups of a bundle's map."""

    version: str
    """Bundle; the other addresses begin with it."""
    items: int
    """Items N of every array."""
    layouts: list[str]
    """Modalities by which the catalogue is laid out; none: the bundle has no map."""
    groups: dict[str, list[Group]]
    """Groups by `artist` and `tags`, largest first; group i is bit i."""


@dataclass(frozen=True)
class MapItems:
    """Items of some rows, in the order asked."""

    version: str
    items: list[ShownItem]


@router.get("")
async def map_card(http: Request) -> MapCard:
    """Return which layouts and groups the map has."""
    shown = shown_of(http)
    return MapCard(shown.version, shown.num_items, shown.map.layouts, shown.map.groups)


@router.get("/{version}/layouts/{name}", response_class=Response, responses=_BINARY)
async def layout(http: Request, version: str, name: str) -> Response:
    """Return the points of a layout, uint16 [N, 2]: 0 to 65,534 in both directions.

    65,535 twice is no point: the item has no vector.
    """
    shown = _of_version(http, version)
    if name not in shown.map.layouts:
        raise ProblemError(404, f"layout: {name!r} given; expected one of {shown.map.layouts}")
    return await _array(shown.map.places, name)


@router.get("/{version}/groups/{name}", response_class=Response, responses=_BINARY)
async def groups(http: Request, version: str, name: str) -> Response:
    """Return the groups of every item, uint16 [N], a bit for each group."""
    shown = _of_version(http, version)
    if name not in shown.map.groups:
        raise ProblemError(404, f"groups: {name!r} given; expected one of {list(shown.map.groups)}")
    return await _array(shown.map.members, name)


@router.get("/{version}/items")
async def items(
    http: Request,
    response: Response,
    version: str,
    rows: Annotated[str, Query(max_length=10 * MAX_ROWS)],
) -> MapItems:
    """Return the items of some rows, from 1, separated by commas; 200 at most."""
    shown = _of_version(http, version)
    asked = [int(row) if _ROW.fullmatch(row) else 0 for row in rows.split(",")]
    if len(asked) > MAX_ROWS or not all(1 <= row <= shown.num_items for row in asked):
        raise ProblemError(
            422,
            f"rows: {rows[:100]!r} given; expected numbers from 1 to {shown.num_items}, separated by "
            f"commas, {MAX_ROWS} at most",
        )
    response.headers.update(_FOR_GOOD)
    return MapItems(shown.version, [shown.at(row) for row in asked])


@router.get("/{version}/taste", response_class=Response, responses=_BINARY)
async def taste(
    http: Request, version: str, user: Annotated[str, Query(min_length=1, max_length=512)]
) -> Response:
    """Return a user's score of every item, float32 [N]; likes that came after the export count.

    The header X-Taste-By says `full` (probabilities by the full model, up to 20,000 items) or `direct`
    (the direct term of the log-odds).
    """
    _of_version(http, version)
    front = http.app.state.front
    reply = await front.ask("taste", VisitorRequest(user=user), user)
    http.scope["bundle_version"] = reply.version
    if reply.version != version:
        raise _another(version, reply.version)
    content = reply.body.scores_N.astype("<f4").tobytes()
    headers = {"X-Taste-By": reply.body.by, "Cache-Control": "no-store"}
    return Response(content, media_type=_BYTES, headers=headers)


def _of_version(http: Request, version: str) -> Shown:
    shown = shown_of(http)
    if version != shown.version:
        raise _another(version, shown.version)
    return shown


def _another(given: str, served: str) -> ProblemError:
    return ProblemError(
        404, f"version: {given!r} given; {served!r} is served now, load the map again"
    )


async def _array(read: Callable[[str], NDArray], name: str) -> Response:
    content = await asyncio.to_thread(lambda: np.ascontiguousarray(read(name)).tobytes())
    return Response(content, media_type=_BYTES, headers=_FOR_GOOD)
