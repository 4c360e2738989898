"""Events: the types of `POST /v1/events`, checked where they enter.

Called by the server; store.py keeps what they become.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from recsys.serving.requests import Id

MAX_EVENTS = 1000
LAST_SECOND = 4_102_444_800
"""Start of the year 2100: a greater time is in milliseconds, or a mistake."""

Kind = Literal["shown", "opened", "liked", "hidden"]
"""`liked` enters the history at once; a `hidden` item is not recommended to the user again, unless a
later `liked` takes it back; `shown` without `liked` is a negative of the next training."""


def _without_null(text: str) -> str:
    """Refuse the null character, which PostgreSQL does not store."""
    if "\0" in text:
        raise ValueError("expected text without the null character")
    return text


StoredId = Annotated[Id, AfterValidator(_without_null)]


class StoredRequest(BaseModel):
    """A request whose content goes to the event store."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Event(StoredRequest):
    """One thing that a user did with an item."""

    user: StoredId
    """User; a new id is as good as a known one."""
    item: StoredId
    """Item."""
    kind: Kind
    """Action of the user."""
    time: float | None = Field(default=None, ge=0, le=LAST_SECOND, allow_inf_nan=False)
    """Seconds since 1970; null: now."""
    request_id: StoredId | None = None
    """X-Request-ID of the answer that showed the item."""
    position: int | None = Field(default=None, ge=1, le=1_000_000)
    """Place of the item in that answer, from 1."""
    propensity: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    """Propensity of the item in that answer, for estimates of what another policy would have earned."""
    id: StoredId | None = None
    """Unique id; an event whose id is stored already is not stored again. null: the X-Request-ID of
    this request and the event's index, so that the same request sent again changes nothing."""


class EventsRequest(StoredRequest):
    """Store what users did; the answer comes when it is on the disk."""

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)
    """Events in any order."""


@dataclass(frozen=True, slots=True)
class EventsStored:
    """Answer to an EventsRequest."""

    stored: int
    """Events that are new, and durable."""
    known: int
    """Events whose id was stored before."""
