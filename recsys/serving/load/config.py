"""Settings of a load test."""

from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from recsys.errors import UserError
from recsys.runtime.limits import usable_cores

Route = Literal["score", "recommend"]
Loop = Literal["closed", "open"]

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class LoadTestConfig:
    """Which server is measured, and how it is asked."""

    bundle: str | None = None
    """Folder of a bundle, or `W/bundles/current`: a server of it is started on a free port, and its users
    and items are asked for. Null: `url` is given, and visitors ask for what the server recommends."""
    url: str | None = None
    """A server that runs, http://HOST:PORT; null: one is started with `bundle`. Its token, where it asks for
    one, is read from TESSERA_TOKEN."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Workers of the server that is started."""
    server_cores: list[int] | None = None
    """Cores that the server is bound to, while the load is made on the others; null: all for both."""
    routes: list[Route] = field(default_factory=lambda: ["score", "recommend"])
    """Routes asked for, each by itself: `score` (given items) and `recommend` (retrieval and ranking)."""
    candidates: list[Annotated[int, Field(ge=1, le=5000)]] = field(
        default_factory=lambda: [100, 500]
    )
    """Items that one request has scored, each number by itself."""
    k: Annotated[int, Field(ge=1, le=500)] = 20
    """Items that `recommend` answers; no more than the candidates."""
    loops: list[Loop] = field(default_factory=lambda: ["closed", "open"])
    """`closed`: every connection asks again when it has its answer, which finds the greatest rate.
    `open`: requests arrive as a Poisson process, whether or not earlier ones are answered, which finds
    the latency at a rate."""
    connections: Annotated[int, Field(ge=1, le=256)] = 4
    """Connections of the closed loop; the open one uses up to 256."""
    rate: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Requests a second of the open loop; null: 0.7 of the rate that the closed loop found."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Length of one measurement."""
    warmup_seconds: Annotated[float, Field(ge=0, le=600)] = 2.0
    """Time before a measurement in which requests are not counted."""
    visitors: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of requests by visitors who name five items; the others name a user of the bundle."""
    seed: int = 0
    """Of users, items and arrival times."""
    out: str | None = None
    """File of the results, JSON; null: W/loadtest/<version>.json in the workspace of `bundle`, and none
    with `url` alone."""
    remote: bool = False
    """Allow a `url` on another machine."""


def check_load_test(config: LoadTestConfig) -> None:
    """Check what the keys say together.

    Raises:
        UserError: nothing to measure, a server elsewhere, an open loop without a rate, or cores that
            this process may not use; names the key.
    """
    if config.bundle is None and config.url is None:
        raise UserError(
            "nothing to measure: give bundle=W/bundles/current, or url=http://HOST:PORT"
        )
    if config.url is not None:
        _check_url(config)
    for key in ("routes", "candidates", "loops"):
        if not getattr(config, key):
            raise UserError(f"{key}=[]: expected at least one")
    if config.rate is None and "closed" not in config.loops:
        raise UserError("loops=[open]: give rate=, requests a second, or add the closed loop")
    if config.server_cores is not None:
        if config.url is not None:
            raise UserError("server_cores: the server at url= runs already; start one with bundle=")
        if not 0 < len(set(config.server_cores)) < usable_cores():
            raise UserError(
                f"server_cores={config.server_cores}: expected at least one core, and one left for the "
                f"load, of the {usable_cores()} that may be used"
            )


def _check_url(config: LoadTestConfig) -> None:
    parts = urlsplit(config.url or "")
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise UserError(f"url={config.url}: expected http://HOST:PORT")
    if parts.hostname not in _LOOPBACK and not config.remote:
        raise UserError(
            f"url={config.url}: a load test overloads its server; add remote=true to load another machine"
        )
