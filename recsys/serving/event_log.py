"""Log of events: what people did in a period, as a Parquet file that launch/prepare.py reads.

In: an event store. Out: one row for each pair of a user and an item, with the columns of the recipe
configs/data/events.yaml. Called by launch/events.py.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from recsys.errors import UserError
from recsys.files import new_file
from recsys.schema import local_path
from recsys.serving.store import Store

_EVENT = pa.schema([
    ("user_id", pa.string()),
    ("item_id", pa.string()),
    ("kind", pa.string()),
    ("time", pa.float64()),
    ("position", pa.int32()),
    ("propensity", pa.float64()),
])
LAST = 1e11
"""Seconds since 1970 that no event reaches."""


@dataclass(frozen=True, kw_only=True)
class EventLogConfig:
    """Period, event store and file of a log of events."""

    workspace: str
    """Folder whose bundles are served."""
    events: str | None = None
    """Event store, as the server's key `events`; null: events.db in the workspace."""
    since: str | None = None
    """First moment, such as 2026-11-01 or "2026-11-01 12:00" (UTC without a zone); null: the first."""
    until: str | None = None
    """Moment after the last one, written alike; null: no end."""
    out: str | None = None
    """Parquet file; null: raw/events.parquet in the workspace."""
    position_bias: Annotated[float, Field(ge=0)] | None = None
    """Exponent b of the position bias: place j of a list is looked at with probability j ** -b. The log
    then has a column `weight` for interactions.weight; null: none."""

    @property
    def place(self) -> str:
        """Place of the event store."""
        return self.events or str(local_path(self.workspace, "workspace") / "events.db")

    @property
    def path(self) -> Path:
        """File that is written."""
        if self.out is not None:
            return local_path(self.out, "out")
        return local_path(self.workspace, "workspace") / "raw" / "events.parquet"

    @property
    def start(self) -> float:
        """First moment in seconds since 1970."""
        return 0.0 if self.since is None else _seconds(self.since, "since")

    @property
    def end(self) -> float:
        """Moment after the last one, in seconds since 1970."""
        return LAST if self.until is None else _seconds(self.until, "until")

    def problems(self) -> list[str]:
        """Return a text for a moment that cannot be read, and for a period without length."""
        problems = []
        for key, given in (("since", self.since), ("until", self.until)):
            try:
                _seconds(given or "2026-01-01", key)
            except UserError as error:
                problems.append(str(error))
        if not problems and self.start >= self.end:
            problems.append(f"until={self.until}: expected a moment after since={self.since}")
        return problems


@dataclass(frozen=True, slots=True)
class Counts:
    """Sizes of a written log."""

    events: int
    rows: int
    likes: int


def write_event_log(
    store: Store, path: Path, *, since: float, until: float, position_bias: float | None = None
) -> Counts:
    """Write the events of a period [since, until) as a log.

    A pair's `label` is 1 where the item was liked, and its `timestamp` that of the first like, else of
    the first event. Memory grows with the events of the period, by about 150 bytes each.

    Args:
        since, until: seconds since 1970.
        position_bias: exponent of the position bias, by which rows are weighed; None: no weights.

    Raises:
        UserError: the period has no events.
    """
    batches = [
        pa.RecordBatch.from_pylist(
            [
                {
                    "user_id": event.user,
                    "item_id": event.item,
                    "kind": event.kind,
                    "time": event.time,
                    "position": event.position,
                    "propensity": event.propensity,
                }
                for event in page
            ],
            schema=_EVENT,
        )
        for page in store.events_between(since, until)
    ]
    events = pa.Table.from_batches(batches, schema=_EVENT)
    if not len(events):
        raise UserError(
            f"{store.name}: no event between {_shown(since)} and {_shown(until)}; expected another "
            f"period (since=, until=) or store (events=)"
        )
    log = _pairs(events)
    if position_bias is not None:
        log = log.append_column("weight", _examination_weights(log, position_bias))
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path, log.nbytes) as beside:
        pq.write_table(log, beside)
    return Counts(len(events), len(log), pc.sum(log["label"]).as_py())


def _pairs(events: pa.Table) -> pa.Table:
    """Return one row for each pair of a user and an item, by time, then user and item."""
    kind = events["kind"]
    for name in ("shown", "opened", "liked", "hidden"):
        events = events.append_column(name, pc.equal(kind, name))
    liked_time = pc.if_else(events["liked"], events["time"], pa.scalar(None, pa.float64()))
    events = events.append_column("liked_time", liked_time)
    pairs = events.group_by(["user_id", "item_id"], use_threads=False).aggregate([
        ("time", "min"),
        ("liked_time", "min"),
        ("position", "min"),
        ("propensity", "min"),
        *[(name, "max") for name in ("shown", "opened", "liked", "hidden")],
    ])
    seconds = pc.floor(pc.coalesce(pairs["liked_time_min"], pairs["time_min"]))
    log = pa.table({
        "user_id": pairs["user_id"],
        "item_id": pairs["item_id"],
        "timestamp": pc.cast(seconds, pa.int64()),
        "label": pc.cast(pairs["liked_max"], pa.uint8()),
        "shown": pairs["shown_max"],
        "opened": pairs["opened_max"],
        "hidden": pairs["hidden_max"],
        "position": pairs["position_min"],
        "propensity": pairs["propensity_min"],
    })
    order = [(name, "ascending") for name in ("timestamp", "user_id", "item_id")]
    return log.sort_by(order)


def _examination_weights(log: pa.Table, exponent: float) -> pa.Array:
    """Return the weight of every row: the probability that somebody looked at the item.

    It is 1 where the person did something with the item, or where no place is known. Any other row at
    place j is a negative with probability j ** -exponent. These are inverse propensity weights of clicks
    (Joachims, Swaminathan and Schnabel, WSDM 2017) times that probability: likes keep the weight 1.
    """
    did_something = pc.or_(pc.equal(log["label"], 1), pc.or_(log["opened"], log["hidden"]))
    looked = pc.power(pc.cast(log["position"], pa.float64()), -exponent)
    return pc.if_else(did_something, 1.0, pc.coalesce(looked, 1.0))


def _seconds(given: str, key: str) -> float:
    try:
        moment = datetime.fromisoformat(given)
    except ValueError as error:
        raise UserError(
            f'{key}={given!r}: expected a moment such as 2026-11-01 or "2026-11-01 12:00"'
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _shown(seconds: float) -> str:
    if seconds in (0.0, LAST):
        return "the first" if seconds == 0.0 else "the last"
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ")
