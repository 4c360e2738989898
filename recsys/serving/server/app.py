"""HTTP interface: the routes under /v1, health, metrics, and the OpenAPI document made of their types.

In: JSON, checked by pydantic. Out: a worker's JSON as it is, or a problem. Made by
process.py.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from recsys.serving.choices import Tally
from recsys.serving.events import EventsRequest, EventsStored
from recsys.serving.requests import (
    ExplainRequest,
    Explanation,
    Explore,
    ItemCard,
    NewItem,
    Recommendations,
    RecommendRequest,
    ScoreRequest,
    Scores,
    SearchRequest,
    SimilarItems,
    SimilarRequest,
)
from recsys.serving.server import comparison
from recsys.serving.server.body import BodyReader
from recsys.serving.server.gallery import router as gallery
from recsys.serving.server.hidden import HiddenItems
from recsys.serving.server.log import log
from recsys.serving.server.map import router as catalogue_map
from recsys.serving.server.messages import NOT_FOUND, OK, Reply
from recsys.serving.server.metrics import CONTENT_TYPE, Metrics
from recsys.serving.server.pool import BusyError, Pool
from recsys.serving.server.problems import (
    Problem,
    ProblemError,
    busy,
    fault,
    invalid_parameters,
)
from recsys.serving.server.questions import QuestionRoute, Questions
from recsys.serving.server.session import Sessions, ended_cookie
from recsys.serving.server.store_thread import StoreThread
from recsys.serving.store import Store, StoredEvent, StoreError, Transaction

API_VERSION = "1"
_WRONG_TOKEN_SECONDS = 0.5
"""Time after which a wrong token is answered: guessing is slow."""


class SignIn(BaseModel):
    """Begin a session of a browser."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    token: str = Field(min_length=1, max_length=4096)
    """The server's token."""


@dataclass(frozen=True)
class Version:
    """Bundle that is served, and the state of the workers."""

    version: str
    """Bundle."""
    folder: str
    also: list[str]
    """Bundles that other workers still have open, during a change."""
    refused: dict[str, str]
    """The last bundle that could not be opened, with the reason."""
    workers: int
    """Workers that are ready."""


class Front:
    """Resources of the routes: workers, the event store, and limits."""

    def __init__(
        self,
        pools: Sequence[Pool],
        store: StoreThread,
        bodies: BodyReader,
        metrics: Metrics,
        hidden: HiddenItems,
        sessions: Sessions | None,
        explore: Explore | None = None,
    ):
        """Keep the resources.

        Args:
            pools: workers of the served bundle, then of the one that people compare with it.
            sessions: of browsers; None: no token is expected.
            explore: exploration of lists whose requests do not say how; None: none.
        """
        self.explore = explore
        self.pool = pools[0]
        self.rival = pools[1] if len(pools) > 1 else None
        self.sessions = sessions
        self.store = store
        self.bodies = bodies
        self.metrics = metrics
        self.hidden = hidden
        self.thumbnails: dict[str, bytes] = {}
        """Thumbnails (JPEG) of added items by id, for gallery.py."""
        self.is_draining = False

    async def ask(
        self, method: str, request: Any, user: str | None = None, *, pool: Pool | None = None
    ) -> Reply:
        """Return a worker's reply.

        Args:
            pool: whose worker; None: the served bundle's.

        Raises:
            ProblemError: the request is refused, failed, or found no worker in time.
        """
        try:
            reply = await (pool or self.pool).ask(method, request, user)
        except BusyError as error:
            raise busy(str(error)) from error
        if reply.status >= 500:
            log("worker fault", method=method, detail=reply.body)
            raise fault()
        if reply.status != OK:
            raise ProblemError(reply.status, reply.body)
        return reply

    async def answer(self, http: Request, method: str, body: Any) -> Response:
        """Return a worker's answer as a response."""
        reply = await self.ask(method, body, getattr(body, "user", None))
        http.scope["bundle_version"] = reply.version
        return Response(reply.body, media_type="application/json")

    async def knows(self, item: str) -> bool:
        """Return whether the bundle has an item, or it was added."""
        try:
            await self.ask("card", item)
        except ProblemError as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return True

    async def write(self, function: Callable[[Transaction], Any]) -> Any:
        """Return the result of a write that is durable.

        Raises:
            ProblemError: the store does not answer.
        """
        try:
            return await self.store.write(function)
        except StoreError as error:
            raise busy("the event store does not answer, and nothing was stored") from error

    async def read(self, function: Callable[[Store], Any]) -> Any:
        """Return the result of a reading function of the event store.

        Raises:
            ProblemError: the store does not answer.
        """
        try:
            return await self.store.read(function)
        except StoreError as error:
            raise busy("the event store does not answer") from error


questions = APIRouter(prefix="/v1", route_class=QuestionRoute, tags=["recommender"])
others = APIRouter()


@questions.post("/recommend", response_model=Recommendations)
async def recommend(http: Request, body: RecommendRequest) -> Response:
    """Recommend items to a user, to a visitor who names liked items, or to nobody in particular."""
    front: Front = http.app.state.front
    if body.explore is None and front.explore is not None:
        body = body.model_copy(update={"explore": front.explore})
    return await front.answer(http, "recommend", front.hidden.exclude(body))


@questions.post("/score", response_model=Scores)
async def score(http: Request, body: ScoreRequest) -> Response:
    """Score given items for a user."""
    return await http.app.state.front.answer(http, "score", body)


@questions.post("/similar", response_model=SimilarItems)
async def similar(http: Request, body: SimilarRequest) -> Response:
    """Find the items nearest to an item."""
    return await http.app.state.front.answer(http, "similar", body)


@questions.post("/search", response_model=SimilarItems)
async def search(http: Request, body: SearchRequest) -> Response:
    """Search the catalogue by words or by a picture."""
    return await http.app.state.front.answer(http, "search", body)


@questions.post("/explain", response_model=Explanation)
async def explain(http: Request, body: ExplainRequest) -> Response:
    """Explain the score of an item for a user."""
    return await http.app.state.front.answer(http, "explain", body)


@questions.post("/events", response_model=EventsStored)
async def events(http: Request, body: EventsRequest) -> Response:
    """Store what users did; likes enter histories at once, hidden items are not recommended again."""
    front: Front = http.app.state.front
    request_id, now = http.scope["request_id"], time.time()
    rows = [
        StoredEvent(
            id=event.id or f"{request_id}/{index}",
            user=event.user,
            item=event.item,
            kind=event.kind,
            time=now if event.time is None else event.time,
            request_id=event.request_id,
            position=event.position,
            propensity=event.propensity,
        )
        for index, event in enumerate(body.events)
    ]
    num_new = await front.write(lambda transaction: transaction.add_events(rows))
    front.metrics.events.inc(num_new)
    return JSONResponse({"stored": num_new, "known": len(rows) - num_new})


@questions.post("/items", response_model=ItemCard, status_code=201)
async def add_item(http: Request, body: NewItem) -> Response:
    """Add an item that the model was not trained with; it is recommended at once."""
    front: Front = http.app.state.front
    if await front.knows(body.id):
        raise ProblemError(409, f"id: {body.id!r} given; an item of this id is there already")
    encoded = await front.ask("encode", body)
    is_new = await front.write(
        lambda transaction: transaction.add_item(
            id=body.id,
            version=encoded.version or "",
            request=body.model_dump_json().encode(),
            encoded=encoded.body,
        )
    )
    if not is_new:
        raise ProblemError(409, f"id: {body.id!r} given; another host has just added it")
    card = await front.ask("card", body.id)
    return Response(card.body, 201, media_type="application/json")


@questions.post("/session", response_model=None, status_code=204)
async def begin_session(http: Request, body: SignIn) -> Response:
    """Let a browser in, given the server's token: the answer has a session cookie."""
    sessions = http.app.state.front.sessions
    if sessions is None:
        raise ProblemError(404, "this server expects no token")
    if not sessions.is_token(body.token.encode()):
        await asyncio.sleep(_WRONG_TOKEN_SECONDS)
        raise ProblemError(401, "token: not the token of this server (TESSERA_TOKEN)")
    is_secure = "https" in (http.url.scheme, http.headers.get("x-forwarded-proto"))
    cookie = sessions.cookie(time.time(), is_secure=is_secure)
    return Response(status_code=204, headers={"Set-Cookie": cookie})


@others.delete("/v1/session", status_code=204, tags=["server"], response_class=Response)
async def end_session() -> Response:
    """Sign a browser out."""
    return Response(status_code=204, headers={"Set-Cookie": ended_cookie()})


for path, endpoint, model in (
    ("/comparison/lists", comparison.lists, comparison.Lists),
    ("/comparison/choices", comparison.choose, Tally),
):
    questions.add_api_route(path, endpoint, methods=["POST"], response_model=model)


@others.get("/v1/items/{item:path}", response_model=ItemCard, tags=["recommender"])
async def item_card(http: Request, item: Annotated[str, Path(max_length=512)]) -> Response:
    """Return what the catalogue says of an item."""
    return await http.app.state.front.answer(http, "card", item)


@others.get("/v1/version", tags=["server"])
async def version(http: Request) -> Version:
    """Return which bundle is served, and which one was refused."""
    pool: Pool = http.app.state.front.pool
    if pool.target is None:
        raise busy("the bundle is being opened")
    *also, served = pool.versions or [""]
    refused = dict(pool.deltas.refused)
    if pool.refused is not None:
        refused[pool.refused[0].folder] = pool.refused[1]
    return Version(served, pool.target.folder, also, refused, pool.num_ready)


@others.get("/livez", tags=["server"])
async def livez() -> dict[str, str]:
    """Say that the process runs; it needs no worker."""
    return {"status": "alive"}


@others.get("/readyz", tags=["server"])
async def readyz(http: Request) -> dict[str, str]:
    """Say whether requests are answered: a worker is ready, and the server is not shutting down."""
    front: Front = http.app.state.front
    if front.is_draining:
        raise busy("the server is shutting down")
    if not front.pool.num_ready:
        raise busy("no worker is ready")
    return {"status": "ready"}


@others.get("/metrics", tags=["server"])
async def metrics(http: Request) -> Response:
    """Return metrics in Prometheus's text format."""
    return Response(http.app.state.front.metrics.text(), media_type=CONTENT_TYPE)


def make_app(front: Front) -> Questions:
    """Return the ASGI application; its OpenAPI document is at /openapi.json."""
    problem: dict[int | str, dict[str, Any]] = {
        "4XX": {"model": Problem, "description": "The request is refused; says why"},
        503: {"model": Problem, "description": "No time now; Retry-After says when"},
    }
    # No page of documentation: FastAPI's loads its scripts from another site.
    app = FastAPI(
        title="Tessera",
        version=API_VERSION,
        docs_url=None,
        redoc_url=None,
        responses=problem,
    )
    app.state.front = front
    app.include_router(questions)
    app.include_router(catalogue_map)
    app.include_router(gallery)  # before the card of an item, whose id may hold a slash
    app.include_router(comparison.router)
    app.include_router(others)
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _parameter_error)
    app.add_exception_handler(Exception, _fault)
    app.openapi()  # kept: it takes 0.1 s, in which no request would be answered
    return Questions(app, questions)


async def _problem(request: Request, error: Any) -> Response:
    return error.response(request.scope["request_id"])


async def _http_error(request: Request, error: Any) -> Response:
    detail = f"{request.method} {request.scope['path'][:200]}: {error.detail}; see /openapi.json"
    problem = ProblemError(error.status_code, detail, headers=dict(error.headers or {}))
    return problem.response(request.scope["request_id"])


async def _parameter_error(request: Request, error: Any) -> Response:
    return invalid_parameters(error.errors()).response(request.scope["request_id"])


async def _fault(request: Request, _: Exception) -> Response:
    return fault().response(request.scope["request_id"])
