"""The server under load: started on a free port, or already running; its processor time and memory.

Input: LoadTestConfig. Called by launch/loadtest.py. Linux: processes are read from /proc.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from recsys.errors import UserError
from recsys.overrides import override
from recsys.serving.load.client import Connection, get
from recsys.serving.load.config import LoadTestConfig

_PROGRAM = Path(__file__).resolve().parents[3] / "launch" / "serve.py"
_READY_SECONDS = 300.0
_STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Server:
    """Address of a server that is ready, and the process that it runs in, where we started it."""

    host: str
    port: int
    version: str
    """Of the bundle that it serves."""
    process: int | None = None
    """Id of its first process, which leads a session of its own; None: not started by us."""

    @property
    def address(self) -> str:
        """HOST:PORT, as a request's Host field says it."""
        return f"{self.host}:{self.port}"

    def cpu_seconds(self) -> float | None:
        """Return the processor time that all its processes have used, in seconds; None: not ours."""
        if self.process is None:
            return None
        return sum(_cpu_seconds(pid) for pid in session_processes(self.process))

    def memory_bytes(self) -> int | None:
        """Return the memory of all its processes in bytes, every shared page once; None: not ours."""
        if self.process is None:
            return None
        return sum(_pss_bytes(pid) for pid in session_processes(self.process))


@contextmanager
def server_under_load(config: LoadTestConfig, program: Path = _PROGRAM) -> Iterator[Server]:
    """Start a server of the bundle, or find the one at `url`; end it with SIGTERM afterwards.

    Args:
        program: that serves, started as `python PROGRAM bundle=... port=...`.

    Raises:
        UserError: it does not become ready; with the last lines it wrote.
    """
    if config.url is not None:
        parts = urlsplit(config.url)
        yield _ready(parts.hostname or "", parts.port or 80, None)
        return
    with tempfile.TemporaryDirectory() as folder, _own_cores_restored():
        arguments = [
            override("bundle", config.bundle or ""),
            f"workers={config.workers}",
            # Not the workspace's own events: nothing of a load test is kept.
            override("events", str(Path(folder) / "events.db")),
        ]
        log = Path(folder) / "log"
        with started_server(arguments, log, program=program, cores=config.server_cores) as server:
            yield server


@contextmanager
def started_server(
    arguments: Sequence[str],
    log: Path,
    *,
    program: Path = _PROGRAM,
    cores: list[int] | None = None,
) -> Iterator[Server]:
    """Start a server on a free port, and end it with SIGTERM afterwards.

    Args:
        arguments: of launch/serve.py, but the port.
        log: file that gets its output.
        cores: that it runs on, the other cores being left to this process; None: all.

    Raises:
        UserError: it does not become ready; with the last lines it wrote.
    """
    port = _free_port()
    with log.open("wb") as written, _bound_to(cores):
        process = subprocess.Popen(
            [sys.executable, str(program), *arguments, f"port={port}"],
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _ready("127.0.0.1", port, process, log)
    finally:
        _stop(process)


def session_processes(leader: int, proc: Path = Path("/proc")) -> list[int]:
    """Return the ids of the living processes of a session, by number."""
    found = []
    for entry in proc.iterdir():
        if entry.name.isdecimal():
            fields = _stat(int(entry.name), proc)
            if fields and int(fields[_SESSION]) == leader:
                found.append(int(entry.name))
    return sorted(found)


_SESSION, _USER_TICKS, _SYSTEM_TICKS = 3, 11, 12
"""Fields of /proc/<pid>/stat behind the command (proc(5): 6, 14 and 15)."""


def _stat(pid: int, proc: Path = Path("/proc")) -> list[str]:
    """Return the fields behind the command; none where the process has ended."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _cpu_seconds(pid: int) -> float:
    fields = _stat(pid)
    ticks = int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS]) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def _pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process: its pages, each over the processes that share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def _own_cores_restored() -> Iterator[None]:
    """Give this process back, after the block, the cores that it had before."""
    all_cores = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


@contextmanager
def _bound_to(cores: list[int] | None) -> Iterator[None]:
    """Start processes of the block on `cores`, and leave the other cores to this process afterwards."""
    if cores is None:
        yield
        return
    all_cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        raise UserError(f"server_cores={cores}: expected cores of {sorted(all_cores)}") from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores - set(cores))


def _ready(
    host: str, port: int, process: subprocess.Popen[bytes] | None, log: Path | None = None
) -> Server:
    """Wait until the server is ready; at `url`, ask once."""
    ends = time.monotonic() + _READY_SECONDS
    while True:
        version = asyncio.run(_ask_version(host, port))
        if version is not None:
            return Server(host, port, version, None if process is None else process.pid)
        if process is None or log is None:
            raise UserError(f"url=http://{host}:{port}: no server is ready there (GET /readyz)")
        if process.poll() is not None or time.monotonic() > ends:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            said = "\n".join([line for line in lines if '"event": "request"' not in line][-20:])
            raise UserError(f"the server did not become ready; it said:\n{said}")
        time.sleep(0.2)


async def _ask_version(host: str, port: int) -> str | None:
    """Return the version of the bundle that is served; None: the server is not ready."""
    async with Connection(host, port) as connection:
        try:
            status, _ = await connection.ask(get(f"{host}:{port}", "/readyz"))
            if status != 200:
                return None
            status, body = await connection.ask(get(f"{host}:{port}", "/v1/version"))
        except (OSError, EOFError):
            return None
    if status != 200:
        raise UserError(
            f"http://{host}:{port}/v1/version: HTTP {status}; expected a Tessera server"
        )
    version: str = json.loads(body)["version"]
    return version


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server in order; kill its session where it does not end."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
