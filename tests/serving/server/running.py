"""A server of the double, or of a real bundle, as a process of its own; and a small HTTP client."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.processes import REPOSITORY, kill_family

START = """
import json, sys
from recsys.serving.server.config import ServeConfig
from recsys.serving.server.process import serve
serve(ServeConfig(**json.loads(sys.argv[1])), sys.argv[2])
"""


class Server:
    """A running server; a context that kills what is left of it."""

    def __init__(self, bundle: Path, log: Path, *, opener: str, **keys: Any):
        keys = {"port": 0, "workers": 1, "events": str(log.parent / "events.db"), **keys}
        settings = json.dumps({"bundle": str(bundle), **keys})
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, settings, opener],
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.port = 0

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def wait(self, event: str = "serving", *, seconds: float = 60, count: int = 1) -> dict:
        """Wait for a line of the log, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.lines(event)
            if len(found) >= count:
                self.port = int(self.lines("listening")[0]["url"].rpartition(":")[2])
                return found[count - 1]
            assert self.process.poll() is None, f"it ended; {self.said()[-3000:]}"
            assert time.monotonic() < deadline, f"no {event!r}; {self.said()[-3000:]}"
            time.sleep(0.01)

    def lines(self, event: str) -> list[dict]:
        """Lines of the log about one kind of event; one that is being written is not yet there."""
        whole, _, _ = self.said().rpartition("\n")
        lines = [text for text in whole.splitlines() if text.startswith('{"time"')]
        return [line for text in lines if (line := json.loads(text))["event"] == event]

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def workers(self) -> list[int]:
        """Process ids of the workers that are ready, oldest first."""
        ended = {line["pid"] for line in self.lines("worker ended")}
        return [p["pid"] for p in self.lines("worker ready") if p["pid"] not in ended]

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """SIGKILL everything at once."""
        kill_family(self.process)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> "Answer":
        """Send one request on a connection of its own. `body`: bytes as they are, else JSON."""
        return ask(self.port, method, path, body, **headers)

    def post(self, path: str, body: Any, **headers: str) -> "Answer":
        return self.ask("POST", path, body, **headers)


class Answer:
    def __init__(self, response: http.client.HTTPResponse):
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = {"Content-Type": "application/json"} if body is not None else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        connection.request(method, path, content, sent)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def raw_request(port: int, method: str, path: str) -> Answer:
    """Send a request whose path is taken as it is."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        response = http.client.HTTPResponse(connection, method=method)
        response.begin()
        return Answer(response)
