"""The short way of questions, which passes FastAPI's own handling of errors by."""

import asyncio
import json
from types import SimpleNamespace

from fastapi import APIRouter, FastAPI, Request, Response

from recsys.serving.requests import ScoreRequest
from recsys.serving.server.body import BodyReader
from recsys.serving.server.border import Border
from recsys.serving.server.config import ServeConfig
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.questions import QuestionRoute, Questions


async def broken(http: Request, body: ScoreRequest) -> Response:
    """Raise what nobody expects, in the front process."""
    raise RuntimeError(f"a fault while {body.user} asks")


def test_a_fault_of_the_front_process_is_500_with_the_id_of_its_request(capsys):
    router, app = APIRouter(route_class=QuestionRoute), FastAPI()
    router.add_api_route("/broken", broken, methods=["POST"])
    app.state.front = SimpleNamespace(bodies=BodyReader(ServeConfig(bundle="none")))
    head = [(b"content-type", b"application/json"), (b"x-request-id", b"mine-3")]
    scope = {"type": "http", "method": "POST", "path": "/broken", "headers": head}
    content = json.dumps({"user": "u1", "items": ["i1"]}).encode()
    sent = []

    async def receive():
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(Border(Questions(app, router), Metrics(), None)(scope, receive, send))
    start, body = sent
    assert start["status"] == 500
    assert (b"x-request-id", b"mine-3") in start["headers"]
    assert json.loads(body["body"])["request_id"] == "mine-3" and b"u1" not in body["body"]
    assert "a fault while u1 asks" in capsys.readouterr().out, "the log says it"
