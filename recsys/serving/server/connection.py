"""HTTP connection: uvicorn's, with bounds on a request's headers and on a body that nobody reads.

A body that is refused is read to its end all the same, within bounds: the kernel would reset a
connection that is closed before, and the client would never see why.
"""

from asyncio import TimerHandle
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from recsys.serving.server.problems import MEDIA_TYPE, problem_json

MAX_HEADER_BYTES = 64 << 10
MAX_UNREAD_BYTES = 256 << 20


class _AnswerInOne:
    """Transport of one answer, whose head is written together with the start of its body.

    One packet instead of two: each costs the kernel, and the client, as much as a small body does.
    """

    def __init__(self, cycle: Any):
        """Take the place of the transport of uvicorn's cycle of request and answer."""
        self._cycle, self._transport, self._on_response = cycle, cycle.transport, cycle.on_response
        self._head: bytes | None = None
        cycle.transport, cycle.on_response = self, self._complete

    def write(self, data: bytes) -> None:
        if not self._cycle.response_started:  # "100 Continue"
            self._transport.write(data)
        elif self._head is None:
            self._head = data
        else:
            self._transport.write(self._head + data)
            self._head = b""

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        is_closing: bool = self._transport.is_closing()
        return is_closing

    def _flush(self) -> None:
        if self._head:  # of an answer without a body
            self._transport.write(self._head)
            self._head = b""

    def _complete(self) -> None:
        self._flush()
        self._on_response()


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    header_seconds = 10.0
    """Time within which headers have to arrive, also those of a new connection's first request."""

    _num_header_bytes = 0
    _num_unread_bytes = 0
    _in_headers = True
    _header_timer: TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Expect the headers of a first request."""
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._headers_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of headers, and parse."""
        super().data_received(data)
        self._num_header_bytes += len(data)
        if self._in_headers and self._num_header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"more than {MAX_HEADER_BYTES:,} bytes of headers")

    def on_message_begin(self) -> None:
        """Expect headers."""
        super().on_message_begin()
        self._expect_headers()

    def on_headers_complete(self) -> None:
        """Stop waiting, and start the request."""
        self._headers_done()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            _AnswerInOne(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Drop what comes after the answer, and close where it does not end."""
        super().on_body(body)
        if self.cycle.response_complete:
            self._num_unread_bytes += len(body)
            if self._num_unread_bytes > MAX_UNREAD_BYTES:
                self.transport.close()

    def on_response_complete(self) -> None:
        """Wait for the rest of an unread body as long as for headers."""
        super().on_response_complete()
        if self.cycle.more_body:
            self._headers_done()
            self._header_timer = self.loop.call_later(self.header_seconds, self.transport.close)

    def on_message_complete(self) -> None:
        """Expect the next request where this one's answer came before its end."""
        super().on_message_complete()
        if self.cycle.response_complete:
            self._expect_headers()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, "this is not a request of HTTP/1.1")

    def _expect_headers(self) -> None:
        self._headers_done()
        self._in_headers = True
        self._num_header_bytes = self._num_unread_bytes = 0
        self._header_timer = self.loop.call_later(self.header_seconds, self._too_late)

    def _headers_done(self) -> None:
        self._in_headers = False
        if self._header_timer is not None:
            self._header_timer.cancel()

    def _too_late(self) -> None:
        if self._num_header_bytes:
            self._refuse(408, f"the headers did not arrive within {self.header_seconds:g} s")
        else:
            self.transport.close()

    def _refuse(self, status: int, detail: str) -> None:
        if self.transport.is_closing():
            return
        body = problem_json(status, detail, None)
        head = f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode("ascii") + b"\r\n" + body)
        self.transport.close()
