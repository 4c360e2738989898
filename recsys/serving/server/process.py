"""Front process: the HTTP server, the event store's thread and the pool, from their start to their end.

In: ServeConfig. SIGTERM and SIGINT end it in order: no new connection, every request that has
begun is answered, events are stored, workers end. Called by launch/serve.py.
"""

import asyncio
import ctypes
import gc
import os
import socket
import struct
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy as sa
import uvicorn
import uvloop

from recsys.errors import UserError
from recsys.serving.server.app import Front, make_app
from recsys.serving.server.body import BodyReader
from recsys.serving.server.border import Border
from recsys.serving.server.config import ServeConfig, num_workers
from recsys.serving.server.connection import Connection
from recsys.serving.server.hidden import HiddenItems
from recsys.serving.server.likes import NewerLikes
from recsys.serving.server.log import log
from recsys.serving.server.metrics import Metrics
from recsys.serving.server.pool import Pool
from recsys.serving.server.session import Sessions
from recsys.serving.server.store_thread import StoreThread
from recsys.serving.server.target import find_target
from recsys.serving.store import AddedItem, Like

OPENER = "recsys.serving.recommender:Recommender"
TOKEN_VARIABLE = "TESSERA_TOKEN"
_QUIET_SECONDS = 0.5
"""A draining server ends when no request came for so long: idle connections may be about to send."""
_HANDSHAKE_SECONDS = 0.2
"""A draining server accepts connections for so long that were begun before: a round trip, or more."""

_SO_ATTACH_FILTER = 26
"""Of Linux (asm-generic/socket.h); Python's module does not name it."""


def serve(config: ServeConfig, opener: str = OPENER) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        opener: class whose `open(folder)` returns what workers call, as MODULE:CLASS.

    Raises:
        UserError: the bundle, the event store or the port cannot be used; names the key.
    """
    find_target(config.bundle)
    if config.compare is not None:
        if find_target(config.compare, key="compare") == find_target(config.bundle):
            raise UserError(f"compare={config.compare}: the bundle that is served already")
    with _listen(config) as listener:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(config, opener, listener))


def store_place(config: ServeConfig) -> str:
    """Return the place of the event store: the key `events`, else events.db in the bundle's workspace."""
    if config.events is not None:
        return config.events
    folder = Path(find_target(config.bundle).folder)
    is_in_workspace = folder.parent.name == "bundles"
    return str((folder.parent.parent if is_in_workspace else folder.parent) / "events.db")


def shown_place(config: ServeConfig) -> str:
    """Return the place of the event store as text for people, without a password."""
    place = store_place(config)
    return sa.make_url(place).render_as_string() if "://" in place else place


def _listen(config: ServeConfig) -> socket.socket:
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family, backlog=2048)
    except OSError as error:
        raise UserError(
            f"host={config.host} port={config.port}: cannot listen there ({error.strerror}); choose "
            f"another port, or 0 for any free one"
        ) from error


async def _run(config: ServeConfig, opener: str, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    log("listening", url=f"http://{host}:{port}")
    metrics, likes, hidden = Metrics(), NewerLikes(), HiddenItems()
    pools: list[Pool] = []
    shares = _shares(config)
    histories = [likes, *(NewerLikes() for _ in shares[1:])]

    def take_news(new_likes: list[Like], items: list[AddedItem], newly_hidden: list[Like]) -> None:
        hidden.add(newly_hidden, new_likes)
        for pool, history in zip(pools, histories, strict=True):
            history.add(new_likes)
            if items:
                pool.add_items(items)

    thread = StoreThread(store_place(config), metrics, take_news)
    for place, (share, history) in enumerate(zip(shares, histories, strict=True)):
        # The metrics are the served bundle's.
        pools.append(Pool(share, opener, thread, history, metrics if place == 0 else Metrics()))
    token = os.environ.get(TOKEN_VARIABLE)
    sessions = None if token is None else Sessions(token)
    front = Front(
        pools, thread, BodyReader(config), metrics, hidden, sessions, config.explore.default
    )
    server = _Server(config, front, listener)
    # A collection of everything there is would take 50 ms, in which no request is answered.
    gc.collect()
    gc.freeze()
    keepers = [
        asyncio.create_task(run) for pool in pools for run in (pool.run(), pool.deltas.run())
    ]
    opening = [asyncio.create_task(_say_ready(pool)) for pool in pools]
    try:
        await _first_of(server.serve([listener]), opening, keepers)
    finally:
        for keeper in keepers:
            keeper.cancel()
        await thread.close()
        for pool in pools:
            await pool.close()
        log("ended")


def _shares(config: ServeConfig) -> list[ServeConfig]:
    """Return the settings of each bundle's pool: two share the workers."""
    if config.compare is None:
        return [config]
    num = num_workers(config)
    return [
        replace(config, workers=max(1, num - num // 2)),
        replace(config, workers=max(1, num // 2), bundle=config.compare),
    ]


async def _first_of(
    serving: Coroutine[Any, Any, None],
    opening: "list[asyncio.Task[None]]",
    keepers: "list[asyncio.Task[None]]",
) -> None:
    """Serve until a signal comes, or until a first bundle is refused or a keeper fails."""
    server = asyncio.create_task(serving)
    waiting: set[asyncio.Task[None]] = {server, *opening, *keepers}
    while not server.done():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is not None:
                server.cancel()
            task.result()
    for first in opening:
        first.cancel()


async def _say_ready(pool: Pool) -> None:
    link = await pool.first_ready
    assert link.ready is not None
    log("serving", version=link.ready.version)


class _Server(uvicorn.Server):
    """uvicorn's server, which drains before it ends and leaves the exit code to the job."""

    def __init__(self, config: ServeConfig, front: Front, listener: socket.socket):
        self._front = front
        self._drain_seconds = config.drain_seconds
        self._border = Border(make_app(front), front.metrics, front.sessions)
        self._listener = listener
        protocol = type("Connection", (Connection,), {"header_seconds": config.body_seconds})
        super().__init__(
            uvicorn.Config(
                self._border,
                http=protocol,
                ws="none",
                lifespan="off",
                loop="none",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=int(config.keep_alive_seconds),
                timeout_graceful_shutdown=5,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends at once."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no connection, answer what comes on those that are open, and close them."""
        log("draining", active=self._border.num_active)
        self._front.is_draining = self._border.is_draining = True
        await self._stop_accepting()
        started = time.monotonic()
        while not self.force_exit and time.monotonic() - started < self._drain_seconds:
            quiet_since = max(started, self._border.last_answer)
            is_quiet = time.monotonic() - quiet_since > _QUIET_SECONDS
            if self._border.num_active == 0 and is_quiet:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    async def _stop_accepting(self) -> None:
        """Close the listening socket when every connection that has begun is taken in.

        The kernel resets a connection that it has made and nobody has accepted; its request would
        be lost.
        """
        loop = asyncio.get_running_loop()
        with self._listener.dup() as rest:
            _drop_new_connections(rest)
            await asyncio.sleep(_HANDSHAKE_SECONDS)
            for server in self.servers:
                server.close()
            await asyncio.sleep(0)
            rest.setblocking(False)
            accepted = []
            try:
                while True:
                    accepted.append(rest.accept()[0])
            except BlockingIOError:
                rest.close()
        for connection in accepted:
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        return kind(config=self.config, server_state=self.server_state, app_state={})


def _drop_new_connections(listener: socket.socket) -> None:
    """Let the kernel pass over the first packet (SYN) of new connections; those begun go on.

    A client sends it again after a second, and is then refused or answered by a server that took
    the port over. Without this a connection can be made between the last `accept` and `close`, and
    is reset. Linux alone: other systems keep that gap.
    """
    if sys.platform != "linux":
        return
    # Classic BPF (linux/filter.h), as code, jump if true, jump if false, value. A packet starts at
    # its TCP header here, whose byte 13 holds the flags.
    program = [
        (0x30, 0, 0, 13),  # load the byte
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, 0),  # then drop it
        (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    filters = struct.pack("HP", len(program), ctypes.addressof(code))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filters)
    except OSError as error:
        log("new connections not dropped", reason=str(error))
