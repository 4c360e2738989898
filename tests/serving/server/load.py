"""Load on a server: clients that keep their connections, and note every request without an answer."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any


class Load(threading.Thread):
    """Clients in a thread of their own, each with one request at a time."""

    def __init__(
        self,
        port: int,
        body: Callable[[int], Any],
        *,
        path: str = "/v1/recommend",
        num_requests: int = 10**9,
        num_clients: int = 8,
    ):
        """Prepare; `start()` begins.

        Args:
            body: of the request with a number.
            num_requests: of all clients together; they also end when the server accepts no more.
        """
        super().__init__(daemon=True)
        self.port = port
        self.body = body
        self.path = path
        self.num_requests = num_requests
        self.num_clients = num_clients
        self.num_sent = 0
        self.answers: list[tuple[int, dict]] = []
        """Number and content of every answer with status 200."""
        self.failures: list[str] = []
        self.is_stopped = False

    @property
    def versions(self) -> Counter[str]:
        return Counter(answer["version"] for _, answer in self.answers)

    def run(self) -> None:
        asyncio.run(self._run())

    def finish(self, seconds: float = 120) -> None:
        """Wait for the end."""
        self.join(seconds)
        assert not self.is_alive(), f"{self.num_sent} requests sent, {len(self.answers)} answered"

    def stop(self) -> None:
        self.is_stopped = True
        self.finish()

    async def _run(self) -> None:
        await asyncio.gather(*[self._client() for _ in range(self.num_clients)])

    async def _client(self) -> None:
        streams = None
        while not self.is_stopped and self.num_sent < self.num_requests:
            if streams is None:
                try:
                    streams = await asyncio.open_connection("127.0.0.1", self.port)
                except ConnectionRefusedError:
                    return  # it accepts no more
                except ConnectionResetError:
                    self.failures.append(
                        "the server ended with a connection that it had not accepted"
                    )
                    return
            number, self.num_sent = self.num_sent, self.num_sent + 1
            try:
                is_open = await self._ask(number, *streams)
            except (OSError, EOFError) as error:
                self.failures.append(f"request {number}: {error!r}")
                is_open = False
            if not is_open:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def _ask(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send a request and read its answer; False where the server closes the connection."""
        content = json.dumps(self.body(number)).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(answered.split("content-length: ")[1].split("\r\n")[0])
        body = await reader.readexactly(length)
        if answered.startswith("http/1.1 200"):
            self.answers.append((number, json.loads(body)))
        else:
            self.failures.append(f"request {number}: {body.decode()}")
        return "connection: close" not in answered
