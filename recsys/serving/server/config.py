"""Settings of the server."""

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from recsys.errors import UserError
from recsys.runtime.limits import usable_cores
from recsys.serving.requests import Explore


@dataclass(frozen=True, kw_only=True)
class ExploreConfig:
    """Exploration of lists whose requests do not say how they explore."""

    epsilon: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a place of a list gets a candidate drawn evenly from those left; 0: none."""
    thompson: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Factor of the standard deviation of the model's weights in Thompson sampling; 0: none, 1: the
    posterior that the export estimated (recsys/serving/exploration.py)."""

    @property
    def default(self) -> Explore | None:
        """Exploration of such a request; None: none."""
        if not (self.epsilon or self.thompson):
            return None
        return Explore(epsilon=self.epsilon, thompson=self.thompson)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Bundle, address and limits of a server."""

    bundle: str
    """Folder of a bundle, or `W/bundles/current`, which is looked at twice a second for a newer one, as
    `W/bundles/deltas` is for the delta that follows it."""
    compare: str | None = None
    """A second bundle, given alike: the gallery shows lists of both side by side without their names, and
    counts which one people prefer; half of the workers are its own. null: none."""
    verify: Literal["sha256", "sizes"] = "sha256"
    """Check of a bundle before it is served: `sha256`: every byte is compared with files.json, once for
    all workers; `sizes`: every file is there in full length."""
    keep: Annotated[int, Field(ge=0)] = 2
    """Versions made of deltas that stay beside the current bundle; older ones that nothing has open are
    removed when the next one has been made."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: every network, in which case set TESSERA_TOKEN."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port to listen on; 0: any free one, which the log names."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    """Worker processes; null: WEB_CONCURRENCY, else one for each core that the server may use."""
    events: str | None = None
    """Event store: path of an SQLite file, or URL of a PostgreSQL database (its password by PGPASSWORD
    or a passfile); null: events.db in the workspace of the bundle."""
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    """Exploration, without which the model never learns about items that it does not show."""
    max_batch: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests that a worker answers together, where so many wait."""
    max_queue: Annotated[int, Field(ge=1)] = 1000
    """Requests that may wait for a worker; a further one is answered 503 at once."""
    request_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time after which a request that waits or is computed is answered 503."""
    body_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time within which a request's headers, and then its body, have to arrive."""
    keep_alive_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Time after which an idle connection is closed."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Time that SIGTERM leaves for requests that have begun."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Greatest body of a request without pictures."""
    max_upload_bytes: Annotated[int, Field(ge=1024)] = 28 << 20
    """Greatest body of a request that may have pictures (in base64, a third longer than the files)."""
    max_uploads: Annotated[int, Field(ge=1)] = 4
    """Bodies beyond max_body_bytes that are read at a time; a further one is answered 503 at once."""


def num_workers(config: ServeConfig) -> int:
    """Return the number of worker processes.

    Raises:
        UserError: WEB_CONCURRENCY is no whole number of 1 or more.
    """
    if config.workers is not None:
        return config.workers
    given = os.environ.get("WEB_CONCURRENCY", "")
    if not given:
        return usable_cores()
    if not given.isdecimal() or not 1 <= int(given) <= 256:
        raise UserError(f"WEB_CONCURRENCY={given!r}: expected a whole number of 1 to 256, or unset")
    return int(given)
