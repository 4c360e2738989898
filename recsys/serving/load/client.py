"""Client of a load test: HTTP/1.1 over one kept connection, with as little work of its own as possible.

A library for people's programs takes 0.3 to 1 ms of a core a request, which would be a good part of
what is measured. Called by loops.py.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from recsys.errors import UserError


@dataclass(frozen=True)
class Request:
    """One request, as bytes that are sent as they are."""

    message: bytes
    num_items: int
    """Items that a right answer has; 0: not counted."""


def post(host: str, route: str, body: Mapping[str, Any], num_items: int = 0) -> Request:
    """Return a POST of a JSON body to /v1/<route>.

    Args:
        host: HOST:PORT.
        num_items: items that a right answer has; 0: not counted.
    """
    content = json.dumps(body, allow_nan=False).encode()
    head = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    start = f"POST /v1/{route} HTTP/1.1\r\nHost: {host}\r\n{head}{_authorization()}\r\n"
    return Request(start.encode() + content, num_items)


def get(host: str, path: str) -> Request:
    """Return a GET of a path."""
    return Request(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{_authorization()}\r\n".encode(), 0)


def _authorization() -> str:
    """Return the header with the token in TESSERA_TOKEN, which a server that we start reads too."""
    token = os.environ.get("TESSERA_TOKEN")
    return f"Authorization: Bearer {token}\r\n" if token else ""


class Connection:
    """One connection, opened when it is first needed and again after it broke."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def ask(self, request: Request) -> tuple[int, bytes]:
        """Return status and body of the answer.

        Raises:
            OSError: no connection, or it broke.
            EOFError: the answer is not whole.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        reader, writer = self._streams
        try:
            writer.write(request.message)
            head = await reader.readuntil(b"\r\n\r\n")
            status, length, stays = _read_head(head)
            body = await reader.readexactly(length)
        except BaseException:
            self.close()
            raise
        if not stays:
            self.close()
        return status, body


def _read_head(head: bytes) -> tuple[int, int, bool]:
    """Return status, length of the body in bytes, and whether the connection stays open."""
    lines = head.lower().split(b"\r\n")
    status = int(lines[0].split(b" ", 2)[1])
    fields = dict(line.partition(b":")[::2] for line in lines[1:] if line)
    if b"content-length" not in fields:
        raise UserError(
            "the server's answer has no Content-Length; is it Tessera's server that listens there?"
        )
    return (
        status,
        int(fields[b"content-length"]),
        fields.get(b"connection", b"").strip() != b"close",
    )
