"""Gallery: its pages at /, the thumbnails of items, and the users whom it can show.

The pages are files of recsys/serving/gallery, which load nothing from elsewhere. Everything here is
answered by the front process from memory-mapped files; app.py includes the router.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response

from recsys.errors import UserError
from recsys.serving.requests import MAX_CANDIDATES
from recsys.serving.server.log import log
from recsys.serving.server.problems import ProblemError, busy
from recsys.serving.server.target import Target
from recsys.serving.shown import MAX_HISTORY, Person, Shown, ShownItem, TrueItem
from recsys.serving.uploads import thumbnail_of

PAGES = FilePath(__file__).parents[1] / "gallery"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_PICTURE_SECONDS = 3600
MAX_THUMBNAILS = 2000
"""Thumbnails of added items that are kept in memory, of some 10 kB each."""

router = APIRouter()


@dataclass(frozen=True)
class People:
    """Users of the bundle."""

    version: str
    users: list[Person]


@dataclass(frozen=True)
class PersonCard:
    """User with the history that the next recommendation reads."""

    version: str
    id: str
    known: bool
    """Whether the bundle has the user; others are known by their events alone."""
    likes: list[ShownItem]
    """Liked items, latest first."""
    hidden: list[str]
    """Items that are not recommended to the user, oldest first."""


@dataclass(frozen=True)
class Likers:
    """Users whose history holds an item, later events included."""

    version: str
    item: str
    count: int
    """All of them."""
    users: list[str]
    """Some of them, those of the latest events first."""


@dataclass(frozen=True)
class Offer:
    """Content of the gallery, of which a bundle and a server may lack some."""

    version: str
    items: int
    map: bool
    """Whether the bundle has a map."""
    truth: bool
    """Whether the oracle's probabilities are known."""
    comparison: bool
    """Whether a second bundle is compared with the served one."""
    pictures: bool
    """Whether uploaded pictures can be searched by."""
    visitors: bool = True
    """Whether a model answers new visitors; a gallery that is a folder has none."""
    session: bool = False
    """Whether the server expects a token, so that a browser's session can be ended."""


@dataclass(frozen=True)
class ItemPage:
    """Items in the order of the catalogue."""

    version: str
    total: int
    items: list[ShownItem]


@dataclass(frozen=True)
class TruthOfUser:
    """The oracle's probability of the items that are not in a user's history."""

    version: str
    user: str
    items: list[TrueItem]


@router.get("/v1/gallery", tags=["gallery"])
async def offer(http: Request) -> Offer:
    """Say what the gallery can show."""
    shown = shown_of(http)
    front = http.app.state.front
    return Offer(
        shown.version,
        shown.num_items,
        bool(shown.map.layouts),
        shown.has_truth,
        front.rival is not None,
        shown.takes_pictures,
        session=front.sessions is not None,
    )


@router.get("/v1/items", tags=["gallery"])
async def items(
    http: Request,
    start: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> ItemPage:
    """List the items of the catalogue from a place on."""
    shown = shown_of(http)
    found = await asyncio.to_thread(shown.items, start, limit)
    return ItemPage(shown.version, shown.num_items, found)


@router.get("/v1/users/{user:path}/truth", tags=["gallery"])
async def truth(
    http: Request,
    user: Annotated[str, Path(max_length=512)],
    limit: Annotated[int, Query(ge=1, le=MAX_CANDIDATES)] = MAX_CANDIDATES,
) -> TruthOfUser:
    """Return the true probabilities of a user of the drawn world."""
    shown = shown_of(http)
    if not shown.has_truth:
        raise ProblemError(404, "this bundle has no truth: only the drawn world's is known")
    if not shown.knows_user(user):
        raise ProblemError(404, f"user: {user!r} given; the drawn world has no user of this id")
    found = await asyncio.to_thread(shown.truth, user, limit)
    return TruthOfUser(shown.version, user, found)


@router.get("/v1/users", tags=["gallery"])
async def users(
    http: Request,
    prefix: Annotated[str, Query(max_length=512)] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["row", "chance"] = "row",
) -> People:
    """List users whose ids begin with a prefix, or some by chance."""
    shown = shown_of(http)
    if order == "chance":
        return People(shown.version, shown.anybody(limit))
    return People(shown.version, await asyncio.to_thread(shown.people, prefix, limit))


@router.get("/v1/users/{user:path}", tags=["gallery"])
async def user_card(http: Request, user: Annotated[str, Path(max_length=512)]) -> PersonCard:
    """Return a user's history, later events included."""
    shown = shown_of(http)
    later = [like.item for like in http.app.state.front.pool.newer_likes(user)]
    hidden = http.app.state.front.hidden.of(user)
    if not later and not hidden and not shown.knows_user(user):
        raise ProblemError(404, f"user: {user!r} given; neither the bundle nor an event has it")
    latest_first = list(dict.fromkeys(reversed([*shown.history(user), *later])))
    items = [shown.item(item) for item in latest_first[:MAX_HISTORY]]
    return PersonCard(shown.version, user, shown.knows_user(user), items, hidden)


@router.get("/v1/items/{item:path}/likers", tags=["gallery"])
async def likers(
    http: Request,
    item: Annotated[str, Path(max_length=512)],
    limit: Annotated[int, Query(ge=1, le=100)] = 12,
) -> Likers:
    """Return who likes an item: a count, and some ids."""
    shown = shown_of(http)
    front = http.app.state.front
    if not (shown.knows_item(item) or await front.knows(item)):
        raise ProblemError(404, f"item: {item!r} given; no item of this id is known")
    later = reversed(front.pool.newer_likers(item))
    users = list(dict.fromkeys([*later, *await asyncio.to_thread(shown.likers, item)]))
    return Likers(shown.version, item, len(users), users[:limit])


@router.get(
    "/v1/items/{item:path}/picture",
    tags=["gallery"],
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}, "image/svg+xml": {}}}},
)
async def picture(http: Request, item: Annotated[str, Path(max_length=512)]) -> Response:
    """Return an item's thumbnail; a drawn placeholder where its picture is masked or missing."""
    content = shown_of(http).picture(item)
    front = http.app.state.front
    if content is None:
        content = await _added_thumbnail(front, item)
    if content is not None:
        return _file(http, content, "image/jpeg", f"public, max-age={_PICTURE_SECONDS}")
    if not await front.knows(item):
        raise ProblemError(404, f"item: {item!r} given; no item of this id is known")
    masked = _pages()["masked.svg"]
    return _file(http, masked, MEDIA_TYPES[".svg"], "no-cache")


async def _added_thumbnail(front: Any, item: str) -> bytes | None:
    """Return the thumbnail of an added item, which is decoded once; None where it has no picture."""
    kept = front.thumbnails
    if item in kept:
        return kept[item]
    added = await front.read(lambda store: store.item(item))
    content = added and await asyncio.to_thread(thumbnail_of, added.request)
    if content is not None:
        if len(kept) == MAX_THUMBNAILS:
            del kept[next(iter(kept))]  # the oldest
        kept[item] = content
    return content


@router.get("/", include_in_schema=False)
async def index(http: Request) -> Response:
    """Return the gallery."""
    return _page(http, "index.html")


@router.get("/gallery/{name}", include_in_schema=False)
async def file(http: Request, name: Annotated[str, Path(max_length=100)]) -> Response:
    """Return a file of the gallery."""
    return _page(http, name)


def _page(http: Request, name: str) -> Response:
    content = _pages().get(name)
    if content is None:
        raise ProblemError(404, f"/gallery/{name}: the gallery has no such file")
    answer = _file(http, content, MEDIA_TYPES[FilePath(name).suffix], "no-cache")
    answer.headers.update(PAGE_HEADERS)
    return answer


def _file(http: Request, content: bytes, media_type: str, caching: str) -> Response:
    """Return a file with its ETag, or 304 where the client has it."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": caching, "X-Content-Type-Options": "nosniff"}
    given: Sequence[str] = http.headers.get("if-none-match", "").split(",")
    if tag in (text.strip().removeprefix("W/") for text in given):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


@cache
def _pages() -> dict[str, bytes]:
    """Return the gallery's files by name."""
    return {p.name: p.read_bytes() for p in sorted(PAGES.iterdir()) if p.suffix in MEDIA_TYPES}


@lru_cache(maxsize=2)
def _opened(target: Target) -> Shown:
    return Shown(FilePath(target.folder))


def shown_of(http: Request) -> Shown:
    """Return the catalogue and users of the bundle that is served."""
    target = http.app.state.front.pool.target
    if target is None:
        raise busy("the bundle is being opened")
    try:
        return _opened(target)
    except UserError as error:
        log("bundle unreadable", detail=str(error))
        raise busy("the catalogue of the bundle cannot be read; the log says why") from error
