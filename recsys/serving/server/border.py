"""Border: the outermost layer of the HTTP interface, which every request passes in and out.

In: ASGI requests. Out: the same with a request id, a log line and a measurement for
each, problems for errors of ours, HEAD answered as GET without a body, and `Connection: close` while
the server drains.
"""

import re
import time
import traceback
import uuid
from typing import Any

from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys.serving.server.log import log
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.problems import ProblemError, fault
from recsys.serving.server.session import Sessions, is_from_here

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_OPEN_PATHS = ("/livez", "/readyz", "/v1/session")
_SIGN_IN = "/gallery/signin.html"
_SIGN_IN_PATHS = (_SIGN_IN, "/gallery/signin.js", "/gallery/style.css", "/gallery/icon.svg")


class Border:
    """ASGI application around another one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, sessions: Sessions | None):
        """Wrap an application.

        Args:
            sessions: whose token is expected as `Authorization: Bearer TOKEN`, or a browser's session;
                not for /livez, /readyz and the page that asks for the token. None: nothing is expected.
        """
        self._app = app
        self._metrics = metrics
        self._sessions = sessions
        self.is_draining = False
        self.num_active = 0
        self.last_answer = 0.0
        """When a request was answered last, on the clock time.monotonic()."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request in and its answer out."""
        assert scope["type"] == "http", "lifespan and websockets are switched off"
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope["request_id"] = request_id.decode("ascii")
        # HEAD is answered as GET is; uvicorn, which has the scope itself, leaves the body out.
        method = scope["method"]
        scope = {**scope, "method": "GET"} if method == "HEAD" else scope
        exchange = _Exchange(self, send, request_id)
        self.num_active += 1
        try:
            await self._answer(scope, receive, exchange.send, headers)
        except Exception:
            log("error", request_id=scope["request_id"], traceback=traceback.format_exc())
            if exchange.status == 0:
                await fault().response(scope["request_id"])(scope, receive, exchange.send)
        finally:
            self.num_active -= 1
            self.last_answer = time.monotonic()
        seconds = time.perf_counter() - started
        route = getattr(scope.get("route"), "path", "other")
        self._metrics.answered(route, exchange.status, seconds)
        log(
            "request",
            request_id=scope["request_id"],
            method=method,
            path=scope["path"][:200],
            status=exchange.status,
            ms=round(1000 * seconds, 2),
            version=scope.get("bundle_version"),
        )

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, headers: dict[bytes, bytes]
    ) -> None:
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        """Return the answer to a request that is not let in; None: it is."""
        path, method = scope["path"], scope["method"]
        if self._sessions is None or path in (*_OPEN_PATHS, *_SIGN_IN_PATHS):
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind == b"Bearer" and self._sessions.is_token(given):
            return None
        if self._sessions.is_valid(headers, time.time()):
            if is_from_here(method, headers):
                return None
            detail = "Origin: another site's page sent this with the session of this one"
            return ProblemError(403, detail).response(scope["request_id"])
        if method == "GET" and path == "/":
            return RedirectResponse(_SIGN_IN, 303)
        expected = "expected the header `Authorization: Bearer TOKEN` with the server's token"
        error = ProblemError(401, expected, headers={"WWW-Authenticate": "Bearer"})
        return error.response(scope["request_id"])


class _Exchange:
    """One request's answer on its way out."""

    def __init__(self, border: Border, send: Send, request_id: bytes):
        self._border = border
        self._send = send
        self._request_id = request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            more: list[Any] = [(b"x-request-id", self._request_id)]
            if self._border.is_draining:
                more.append((b"connection", b"close"))
            message["headers"] = [*message["headers"], *more]
        await self._send(message)
