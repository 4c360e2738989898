"""Questions: the POST routes under /v1, whose bodies BodyReader checks, and the short way to them.

In: ASGI requests. Out: responses. FastAPI has these routes for its OpenAPI document; its layers and its
search for a route would take a fifth of the front process's time of a request. Made by app.py.
"""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from recsys.serving.requests import NewItem, RecommendRequest, SearchRequest
from recsys.serving.server.problems import ProblemError

_UPLOADS = (RecommendRequest, SearchRequest, NewItem)
"""Requests that may have pictures."""


class QuestionRoute(APIRoute):
    """Route whose body is read by BodyReader; FastAPI's own reading is slower and has no limits."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function of a request that answers it."""
        endpoint: Any = self.endpoint
        schema = inspect.signature(endpoint).parameters["body"].annotation
        may_upload = schema in _UPLOADS

        async def handle(request: Request) -> Response:
            front: Any = request.app.state.front
            body = await front.bodies.read(request, schema, may_upload=may_upload)
            return await endpoint(request, body)

        self.answer = handle
        return handle


class Questions:
    """ASGI application that answers questions itself, and gives every other request to another one."""

    def __init__(self, app: FastAPI, router: APIRouter):
        """Args: app: which has all routes; router: of the questions among them."""
        self._app = app
        self._routes = {r.path: r for r in router.routes if isinstance(r, QuestionRoute)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._routes.get(scope["path"]) if scope["method"] == "POST" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["app"], scope["route"] = self._app, route
        try:
            response = await route.answer(Request(scope, receive))
        except ProblemError as error:
            response = error.response(scope["request_id"])
        await response(scope, receive, send)
