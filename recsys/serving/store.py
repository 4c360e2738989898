"""Event store: what people did with recommended items, and items added after training, kept durably.

SQLAlchemy Core over SQLite (write-ahead log, synced at every commit) or PostgreSQL. In: events
and added items. Out: the same, in the order of their sequence numbers. Called by the server,
which is the one writer of its host, by the Python API for added items, and by launch/events.py.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from recsys.errors import StorageError, UserError
from recsys.serving.events import Kind

KINDS = get_args(Kind)
_WRITE_LOCK = 7_267_710_351
"""Number of PostgreSQL's advisory lock of writers: sequence numbers follow the order of commits."""
_BUSY_SECONDS = 30
_PAGE_ROWS = 10_000

_metadata = sa.MetaData()
_Sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers INTEGER keys only
_events = sa.Table(
    "events",
    _metadata,
    sa.Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("item", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("time", sa.Double, nullable=False, index=True),
    sa.Column("request_id", sa.Text),
    sa.Column("position", sa.Integer),
    sa.Column("propensity", sa.Double),
    sqlite_autoincrement=True,
)
_is_hidden = _events.c.kind == "hidden"
_hidden = sa.Index(
    "events_hidden", _events.c.sequence, sqlite_where=_is_hidden, postgresql_where=_is_hidden
)
_items = sa.Table(
    "added_items",
    _metadata,
    sa.Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("encoded", sa.LargeBinary, nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

_choices = sa.Table(
    "choices",
    _metadata,
    sa.Column("user", sa.Text, primary_key=True),
    sa.Column("first", sa.Text, primary_key=True),
    sa.Column("second", sa.Text, primary_key=True),
    sa.Column("preferred", sa.Text),
    sa.Column("time", sa.Double, nullable=False),
)


class StoreError(StorageError):
    """The event store does not answer or refuses a write; says which store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One thing that a user did with an item."""

    id: str
    """Unique: an event whose id is stored already is not stored again."""
    user: str
    item: str
    kind: str
    """One of KINDS."""
    time: float
    """Seconds since 1970."""
    request_id: str | None = None
    """Request whose answer showed the item."""
    position: int | None = None
    """Place of the item in that answer, from 1."""
    propensity: float | None = None
    """Probability with which exploration put it there."""


@dataclass(frozen=True, slots=True)
class Like:
    """A stored like, as histories need it; or an item that was hidden."""

    sequence: int
    user: str
    item: str
    time: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class AddedItem:
    """An item that was added after training."""

    sequence: int
    id: str
    version: str
    """Bundle by which it was encoded."""
    request: bytes
    """NewItem as JSON, by which another bundle encodes it anew."""
    encoded: bytes
    """EncodedItem as bytes."""
    time: float
    """Seconds since 1970 when it was added."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A user's preference between the lists of two models."""

    user: str
    first: str
    """Bundle, by name; the pair is in ascending order."""
    second: str
    preferred: str | None
    """One of both; None: neither."""
    time: float
    """Seconds since 1970."""


class Store:
    """Event store of one database; its methods may be called from any thread."""

    def __init__(self, engine: sa.Engine):
        self._engine = engine
        self.is_postgres = engine.dialect.name == "postgresql"

    @classmethod
    def open(cls, place: str | Path) -> "Store":
        """Open a store, and make its tables where there are none.

        Args:
            place: path of an SQLite file, or URL of a database (postgresql://user@host/name).

        Raises:
            UserError: the URL cannot be read, or names another kind of database.
            StoreError: the database does not answer.
        """
        store = cls(_engine_of(str(place)))
        with store._named_errors():
            _metadata.create_all(store._engine)
            # Stores of earlier versions lack these.
            _hidden.create(store._engine, checkfirst=True)
            store._add_propensity()
        return store

    def _add_propensity(self) -> None:
        """Add the column to events of an earlier version, unless another process has just done it."""
        if self._has_propensity():
            return
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    sa.text("ALTER TABLE events ADD COLUMN propensity DOUBLE PRECISION")
                )
        except SQLAlchemyError:
            if not self._has_propensity():
                raise

    def _has_propensity(self) -> bool:
        return "propensity" in {c["name"] for c in sa.inspect(self._engine).get_columns("events")}

    @property
    def name(self) -> str:
        """Place of the store without a password."""
        return self._engine.url.render_as_string(hide_password=True)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()
            raise StoreError(f"events={self.name}: {cause[0] if cause else error!r}") from error

    # Writing

    @contextmanager
    def writing(self) -> Iterator["Transaction"]:
        """Yield a transaction; what it wrote is on the disk when the block ends, all or nothing.

        Raises:
            StoreError: the database does not answer or refuses; nothing was written.
        """
        with self._named_errors(), self._engine.begin() as connection:
            if self.is_postgres:
                # A reader that continues after the last number it saw must not miss a smaller one
                # that is committed later by another host.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITE_LOCK)))
            yield Transaction(connection, postgresql if self.is_postgres else sqlite)

    # Reading

    def likes_after(self, sequence: int, *, since: float = 0.0) -> list[Like]:
        """Return the likes with a greater sequence number, in its order.

        Args:
            since: time in seconds since 1970; earlier likes are left out.
        """
        e = _events.c
        query = sa.select(e.sequence, e.user, e.item, e.time).order_by(e.sequence)
        query = query.where(e.sequence > sequence, e.kind == "liked", e.time > since)
        with self._reading() as connection:
            return [Like(*row) for row in connection.execute(query)]

    def hidden_after(self, sequence: int) -> list[Like]:
        """Return the hidden items with a greater sequence number, in its order."""
        e = _events.c
        query = sa.select(e.sequence, e.user, e.item, e.time).order_by(e.sequence)
        with self._reading() as connection:
            found = connection.execute(query.where(e.sequence > sequence, e.kind == "hidden"))
            return [Like(*row) for row in found]

    def last_event(self) -> int:
        """Return the greatest sequence number of an event; 0 where there is none."""
        with self._reading() as connection:
            return connection.scalar(sa.select(sa.func.max(_events.c.sequence))) or 0

    def items_after(self, sequence: int = 0) -> list[AddedItem]:
        """Return the added items with a greater sequence number, in its order."""
        i = _items.c
        query = sa.select(i.sequence, i.id, i.version, i.request, i.encoded, i.time)
        with self._reading() as connection:
            rows = connection.execute(query.where(i.sequence > sequence).order_by(i.sequence))
            return [AddedItem(*row) for row in rows]

    def item(self, id: str) -> AddedItem | None:
        """Return an added item; None where none of its id is stored."""
        i = _items.c
        query = sa.select(i.sequence, i.id, i.version, i.request, i.encoded, i.time).where(
            i.id == id
        )
        with self._reading() as connection:
            row = connection.execute(query).first()
        return None if row is None else AddedItem(*row)

    def choices(self, first: str, second: str) -> dict[str | None, int]:
        """Return how many users prefer each of two models, in ascending order; None: neither."""
        c = _choices.c
        query = sa.select(c.preferred, sa.func.count()).group_by(c.preferred)
        with self._reading() as connection:
            rows = connection.execute(query.where(c.first == first, c.second == second)).all()
        return {preferred: count for preferred, count in rows}

    def events_between(self, since: float, until: float) -> Iterator[list[StoredEvent]]:
        """Yield the events of a period [since, until) by sequence, in pages of bounded size.

        Args:
            since, until: seconds since 1970.
        """
        names = [name for name in _events.c.keys() if name != "sequence"]
        columns = [_events.c[name] for name in names]
        last = 0
        while True:
            query = sa.select(_events.c.sequence, *columns).order_by(_events.c.sequence)
            query = query.where(_events.c.sequence > last)
            query = query.where(_events.c.time >= since, _events.c.time < until).limit(_PAGE_ROWS)
            with self._reading() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            yield [StoredEvent(**dict(zip(names, row[1:], strict=True))) for row in rows]
            last = rows[-1][0]

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._named_errors(), self._engine.connect() as connection:
            yield connection

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()


class Transaction:
    """Writes that become durable together."""

    def __init__(self, connection: sa.Connection, dialect: Any):
        self._connection = connection
        self._insert = dialect.insert

    def add_events(self, events: Sequence[StoredEvent]) -> int:
        """Store events, and return how many were new: the others' ids are stored already."""
        if not events:
            return 0
        return self._num_new(_events, [asdict(event) for event in events])

    def add_item(self, *, id: str, version: str, request: bytes, encoded: bytes) -> bool:
        """Store an added item; False where one of its id is stored already, which stays."""
        row = {"id": id, "version": version, "request": request, "encoded": encoded}
        return self._num_new(_items, [row | {"time": time.time()}]) == 1

    def add_choice(self, choice: Choice) -> None:
        """Store a user's choice, in the place of an earlier one between the same models."""
        row = asdict(choice)
        statement = self._insert(_choices).values(row)
        key = ("user", "first", "second")
        later = {name: value for name, value in row.items() if name not in key}
        self._connection.execute(
            statement.on_conflict_do_update(index_elements=list(key), set_=later)
        )

    def _num_new(self, table: sa.Table, rows: list[dict[str, Any]]) -> int:
        statement = self._insert(table).on_conflict_do_nothing(index_elements=["id"])
        # A driver's count of rows is not to be had for many at once; what they return is.
        return len(self._connection.execute(statement.returning(table.c.sequence), rows).all())


def _engine_of(place: str) -> sa.Engine:
    if "://" not in place:
        path = Path(place)
        if not path.parent.is_dir():
            raise UserError(f"events={place}: no folder {path.parent}")
        url = sa.URL.create("sqlite", database=str(path))
    else:
        try:
            url = sa.make_url(place)
        except ArgumentError as error:
            raise UserError("events: a URL that cannot be read; " + _EXPECTED) from error
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername == "postgresql+psycopg":
        return sa.create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": 5})
    if url.get_backend_name() != "sqlite":
        raise UserError(f"events={url.render_as_string()}: {_EXPECTED}")
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
    sa.event.listen(engine, "connect", _make_durable)
    return engine


_EXPECTED = "expected the path of an SQLite file, or postgresql://user@host/database"


def _make_durable(connection: Any, _: Any) -> None:
    """Sync SQLite's write-ahead log at every commit; readers do not wait for the writer."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
