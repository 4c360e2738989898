"""Settings of a load test."""

from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

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
    """A server that runs, http://HOST:PORT; null: one is started with `bundle`. Its token, where it has
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

    def problems(self) -> list[str]:
        """Return a text for nothing to measure, a server elsewhere, and keys that do not go together."""
        found = [
            f"{key}=[]: expected at least one"
            for key in ("routes", "candidates", "loops")
            if not getattr(self, key)
        ]
        if self.bundle is None and self.url is None:
            found.append(
                "nothing to measure: give bundle=W/bundles/current, or url=http://HOST:PORT"
            )
        if self.url is not None:
            found += self._problems_of_url(self.url)
        if self.rate is None and self.loops == ["open"]:
            found.append("loops=[open]: give rate=, requests a second, or add the closed loop")
        num_cores = usable_cores()
        if self.server_cores is not None and not 0 < len(set(self.server_cores)) < num_cores:
            found.append(
                f"server_cores={self.server_cores}: expected at least one core, and one left for the "
                f"load, of the {num_cores} that may be used"
            )
        return found

    def _problems_of_url(self, url: str) -> list[str]:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            return [f"url={url}: expected http://HOST:PORT"]
        if parts.hostname not in _LOOPBACK and not self.remote:
            return [
                f"url={url}: a load test overloads its server; add remote=true for another machine"
            ]
        if self.server_cores is not None:
            return ["server_cores: the server at url= runs already; start one with bundle="]
        return []
