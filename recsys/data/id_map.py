"""Id map: which ids of a vocabulary have a row of their own in a table of fixed capacity.

In: the ids that training looked up in a window of steps. Out: the table row of every vocabulary row; 0,
the unknown row, for an id that was not admitted or was forgotten. The rule is deterministic, so that
ranks which are given the same ids keep the same map. Called by recsys/sharding/id_maps.py.

A map takes 16 bytes for every row of the vocabulary (int32 table row, int32 count, int64 time) and 8 for
every row of the table, on every rank; a checkpoint has the 16.
Shapes: N rows of the vocabulary, unknown row included; K distinct ids; V looked-up ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recsys.errors import UserError

SECONDS_A_DAY = 86_400
_MOST_COUNTED = np.iinfo(np.int32).max
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True, kw_only=True)
class AdmitConfig:
    """Rule by which an id gets a row."""

    count: Annotated[int, Field(ge=1)] = 1
    """Training rows of the first pass in which the id has occurred, at least; 1: every id that occurs."""


@dataclass(frozen=True, kw_only=True)
class ForgetConfig:
    """Rule by which an id loses its row; without any key, it never does."""

    after_days: Annotated[float, Field(gt=0)] | None = None
    """Days of the log's time without a training row, up to the latest time seen; null: any number."""
    least_recent: bool = False
    """If the table is full, the ids whose last training row is the oldest give way to later ones; in a
    log without times, by windows of steps."""


@dataclass(frozen=True, kw_only=True)
class IdsConfig:
    """Ids that come and go: a table of fixed capacity, and who has a row in it."""

    capacity: Annotated[int, Field(ge=1)]
    """Rows of the table beside the unknown row 0: most ids that have one at a time."""
    admit: AdmitConfig = field(default_factory=AdmitConfig)
    """Until it is admitted, an id is looked up in row 0."""
    forget: ForgetConfig = field(default_factory=ForgetConfig)
    """The row of a forgotten id begins anew: initial weights, no optimizer state."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Distinct ids of some training rows, and how many lookups these made."""

    rows_K: NDArray[np.int64]
    """Rows of the vocabulary, ascending; 0 is not among them."""
    counts_K: NDArray[np.int64]
    """Training rows with the id."""
    last_K: NDArray[np.int64]
    """Time of the latest of them: seconds since 1970, or the number of the window."""
    num_lookups: int = 0
    """Lookups in the table, of all features."""
    num_unknown: int = 0
    """Those of them that read row 0."""

    @staticmethod
    def of(
        rows_V: NDArray[np.int64],
        times_V: NDArray[np.int64],
        *,
        is_counted: bool,
        num_lookups: int,
        num_unknown: int,
    ) -> "Seen":
        """Return the distinct ids of V occurrences.

        Args:
            is_counted: False: their times count, their number does not.
        """
        is_listed_V = rows_V > 0
        rows_V, times_V = rows_V[is_listed_V].astype(np.int64), times_V[is_listed_V]
        counts_V = np.full(len(rows_V), int(is_counted), np.int64)
        rows_K, counts_K, last_K = _distinct(rows_V, counts_V, times_V)
        return Seen(
            rows_K=rows_K,
            counts_K=counts_K,
            last_K=last_K,
            num_lookups=num_lookups,
            num_unknown=num_unknown,
        )


def merged(parts: Sequence[Seen]) -> Seen:
    """Return what several batches or ranks have seen together, in whatever order they are given."""
    rows_V, counts_V, last_V = (
        np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in parts)])
        for name in ("rows_K", "counts_K", "last_K")
    )
    rows_K, counts_K, last_K = _distinct(rows_V, counts_V, last_V)
    return Seen(
        rows_K=rows_K,
        counts_K=counts_K,
        last_K=last_K,
        num_lookups=sum(part.num_lookups for part in parts),
        num_unknown=sum(part.num_unknown for part in parts),
    )


def _distinct(
    rows_V: NDArray[np.int64], counts_V: NDArray[np.int64], last_V: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return every row once [K], ascending, with the sum of its counts and the latest of its times."""
    if not len(rows_V):
        return rows_V, counts_V, last_V
    order_V = np.argsort(rows_V, kind="stable")
    rows_V = rows_V[order_V]
    starts_K = np.flatnonzero(np.diff(rows_V, prepend=rows_V[0] - 1))
    return (
        rows_V[starts_K],
        np.add.reduceat(counts_V[order_V], starts_K),
        np.maximum.reduceat(last_V[order_V], starts_K),
    )


@dataclass
class IdTotals:
    """Numbers of a map since training began."""

    now: int = _NEVER
    """Latest time seen."""
    windows: int = 0
    """Windows that the map was updated by."""
    admitted: int = 0
    """Rows given to ids; an id that comes back counts again."""
    forgotten: int = 0
    """Rows taken from ids."""
    turned_away: int = 0
    """Ids of the last window that have the count, and found no row."""
    lookups: int = 0
    """Lookups in the table up to the last window."""
    unknown: int = 0
    """Those of them that read row 0."""


class IdMap:
    """Table rows of the ids of one vocabulary."""

    def __init__(self, table: str, config: IdsConfig, num_rows: int):
        """Begin without any id.

        Args:
            table: name, for messages.
            num_rows: N of the vocabulary.
        """
        self.table = table
        self.config = config
        self.table_row_N = np.zeros(num_rows, np.int32)
        """Row of the table by row of the vocabulary; 0: none."""
        self.count_N = np.zeros(num_rows, np.int32)
        """Training rows with the id; at most 2,147,483,647."""
        self.last_N = np.full(num_rows, _NEVER, np.int64)
        """Time of the latest of them."""
        self.totals = IdTotals()
        self._holder = np.zeros(config.capacity + 1, np.int64)
        """Vocabulary row by row of the table; 0: free, as row 0 always is."""

    @property
    def num_used(self) -> int:
        """Rows of the table that ids have, row 0 left out."""
        return int(np.count_nonzero(self._holder))

    def update(self, seen: Seen) -> NDArray[np.int64]:
        """Apply the rule to the ids of a window; return the rows of the table that must begin anew.

        1. Ids whose last training row is older than forget.after_days lose their rows.
        2. The window's ids without a row that have the count, and are not as old, are admitted. If there
           are too few free rows, the later, the more frequent, the lower id goes first; with
           forget.least_recent the table keeps those that are first among them and the ids that it has.

        Returns rows of ids that were forgotten or admitted, ascending [K].

        Raises:
            UserError: more ids of the window have a right to a row than the table has rows.
        """
        self._note(seen)
        oldest = self._oldest_kept()
        entitled_K = seen.rows_K[
            (self.count_N[seen.rows_K] >= self.config.admit.count)
            & (self.last_N[seen.rows_K] >= oldest)
        ]
        self._check_capacity(len(entitled_K))
        held = self._holder[self._holder > 0]
        leaving = held[self.last_N[held] < oldest]
        staying = held[self.last_N[held] >= oldest]
        coming = entitled_K[self.table_row_N[entitled_K] == 0]
        num_free = self.config.capacity - len(staying)
        if len(coming) > num_free:
            if self.config.forget.least_recent:
                kept = self._first(np.concatenate([staying, coming]), self.config.capacity)
                leaving = np.concatenate([leaving, np.setdiff1d(staying, kept)])
                admitted = np.intersect1d(coming, kept)
            else:
                admitted = self._first(coming, num_free)
        else:
            admitted = coming
        freed = np.sort(self.table_row_N[leaving]).astype(np.int64)
        self._holder[freed] = 0
        self.table_row_N[leaving] = 0
        free = np.flatnonzero(self._holder[1:] == 0)[: len(admitted)] + 1
        self._holder[free] = np.sort(admitted)
        self.table_row_N[self._holder[free]] = free
        self.totals.admitted += len(admitted)
        self.totals.forgotten += len(leaving)
        self.totals.turned_away = len(coming) - len(admitted)
        return np.union1d(freed, free)

    def _note(self, seen: Seen) -> None:
        """Add counts and times of a window."""
        rows_K, totals = seen.rows_K, self.totals
        counts_K = self.count_N[rows_K] + seen.counts_K
        self.count_N[rows_K] = np.minimum(counts_K, _MOST_COUNTED)
        self.last_N[rows_K] = np.maximum(self.last_N[rows_K], seen.last_K)
        totals.now = max(totals.now, int(seen.last_K.max(initial=_NEVER)))
        totals.windows += 1
        totals.lookups += seen.num_lookups
        totals.unknown += seen.num_unknown

    def _oldest_kept(self) -> int:
        """Return the time before which an id is forgotten by its age."""
        days = self.config.forget.after_days
        if days is None or self.totals.now == _NEVER:
            return _NEVER
        return self.totals.now - round(days * SECONDS_A_DAY)

    def _check_capacity(self, needed: int) -> None:
        """Raise UserError where one window alone needs more rows than the table has."""
        capacity = self.config.capacity
        if needed > capacity:
            raise UserError(
                f"tables.{self.table}.ids.capacity={capacity:,}: the training rows between two exchanges "
                f"have {needed:,} ids with a right to a row, expected at most as many as the table has; "
                f"set it to {needed:,} or more, or lower train.exchange_ids_every_steps, or raise "
                f"tables.{self.table}.ids.admit.count"
            )

    def _first(self, rows_K: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        """Return the latest of some ids; of one time the most frequent, then the lowest."""
        order_K = np.lexsort((rows_K, -self.count_N[rows_K].astype(np.int64), -self.last_N[rows_K]))
        return rows_K[order_K[:number]]

    def arrays(self) -> dict[str, NDArray]:
        """Return copies of everything that a checkpoint keeps, by name: three arrays [N], and totals."""
        return {
            "table_row": self.table_row_N.copy(),
            "count": self.count_N.copy(),
            "last": self.last_N.copy(),
            "totals": np.array(list(vars(self.totals).values()), np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray]) -> None:
        """Set what `arrays` returned, of the same N or fewer; ids that came since have no row.

        Args:
            arrays: three arrays [N] and the totals, by name.

        Raises:
            UserError: the arrays are of a longer vocabulary or of a table of more rows.
        """
        num_stored, num_rows = len(arrays["table_row"]), len(self.table_row_N)
        most = int(arrays["table_row"].max(initial=0))
        if num_stored > num_rows or most > self.config.capacity:
            raise UserError(
                f"holds an id map of table {self.table!r} with {num_stored:,} ids and rows up to "
                f"{most:,}; the data has {num_rows:,} and tables.{self.table}.ids.capacity is "
                f"{self.config.capacity:,}; use the data and the configuration of the run"
            )
        self.table_row_N[:num_stored] = arrays["table_row"]
        self.count_N[:num_stored] = arrays["count"]
        self.last_N[:num_stored] = arrays["last"]
        self.totals = IdTotals(*arrays["totals"].tolist())
        rows = np.flatnonzero(self.table_row_N)
        self._holder[:] = 0
        self._holder[self.table_row_N[rows]] = rows
