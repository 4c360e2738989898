"""Segments of a split: rows of unseen items, of new users, of one artist, of one month.

In: prepared data and this rank's rows that were scored. Out: named masks over these rows,
one at a time (all at once would be as large as the predictions); the same names on every rank, chosen by
the rows of all. Called by evaluate.py of this folder.
Shapes: N scored rows of a rank, I item rows, R items of this rank's range, U user rows.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from recsys.data.dataset import read_row_groups
from recsys.errors import UserError
from recsys.evaluation.attributes import Segment, by_feature, by_item_attributes
from recsys.files import PREPARE_AGAIN, reading
from recsys.runtime.distributed_sort import order_statistics
from recsys.runtime.partition import Lookup, range_of
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import Manifest, is_known


@dataclass(frozen=True, kw_only=True)
class SegmentsConfig:
    """Boundaries of the segments."""

    rare_rows: Annotated[int, Field(ge=1)] = 5
    """Items with so many training rows or fewer are rare (with none: unseen)."""
    popular_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the catalogue, by training rows, that is popular."""
    short_history: Annotated[int, Field(ge=1)] = 10
    """Users with so many earlier positives or fewer have a short history."""
    num_values: Annotated[int, Field(ge=1)] = 8
    """Segments of an attribute (tag, artist, a feature): its values with the most rows."""
    num_periods: Annotated[int, Field(ge=1)] = 4
    """Segments of the time, of equal rows."""
    age_days: list[Annotated[float, Field(gt=0)]] = field(
        default_factory=lambda: [7.0, 30.0, 365.0]
    )
    """Bounds of the segments of the item's age: days since its first interaction of the log."""
    min_rows: Annotated[int, Field(ge=1)] = 100
    """Segments with fewer rows get counts and no metrics."""
    min_of_each_class: Annotated[int, Field(ge=1)] = 10
    """The same for their positives and for their negatives: a metric of one class has no value."""


UNKNOWN = "unknown to the vocabulary"
"""Segment of the rows whose user or item is the unknown row 0: many ids, of which nothing is known."""


ROW_COLUMNS = ("history_end", "timestamp", "unknown_user")
"""Columns of a split that an evaluation reads beside what its predictions hold."""


@dataclass(frozen=True, kw_only=True)
class ItemCounts:
    """Training counts of every item."""

    train_count_I: NDArray[np.int64]
    """Interactions."""
    drawn_count_I: NDArray[np.int64]
    """Drawn negatives, which are no interactions but train the item's embedding."""

    def kinds(self, item_row_N: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
        """Return the rows by what training holds of their item; every row has one kind."""
        known_N = is_known(item_row_N)
        trained_N = known_N & (self.train_count_I[item_row_N] > 0)
        drawn_N = known_N & ~trained_N & (self.drawn_count_I[item_row_N] > 0)
        return {
            "seen_in_training": trained_N,
            "unseen_in_training": known_N & ~trained_N & ~drawn_N,
            "only_drawn_as_negatives": drawn_N,
            "unknown_to_the_vocabulary": ~known_N,
        }


def segments(
    *,
    prepared: Path,
    manifest: Manifest,
    row_values: Mapping[str, NDArray],
    user_row_N: NDArray[np.int64],
    item_row_N: NDArray[np.int64],
    item_counts: ItemCounts | None,
    has_vector: Mapping[str, NDArray[np.bool_]],
    config: SegmentsConfig,
    user_train_count_U: NDArray[np.int64] | None = None,
    first_time_R: NDArray[np.int64] | None = None,
    id_maps: Mapping[str, NDArray[np.int32]] = MappingProxyType({}),
    ranks: Ranks = ALONE,
) -> Iterator[Segment]:
    """Yield the segments that the data can tell, family by family; some may be empty.

    Args:
        row_values: columns of this rank's rows [N], of ROW_COLUMNS, as `read_by_row_id` returns them.
        item_counts: None where there are no items.
        has_vector: by modality, whether each item of this rank's range has a vector [R].
        user_train_count_U: interactions of every user before the split, which stand in for histories;
            None where there are no users.
        first_time_R: of the first interaction of each item of this rank's range; None where there are no
            items or no times.
        id_maps: table row of every item [I] or user [U], by table, of tables with a fixed capacity.
    """
    if item_counts is not None:
        yield from _by_popularity(item_counts, item_row_N, config, ranks)
    items = Lookup(item_row_N, manifest.num_item_rows, ranks)
    if first_time_R is not None and "timestamp" in row_values:
        age_N = row_values["timestamp"] - items.of(first_time_R)
        yield from _by_age(age_N, item_row_N, config, ranks)
    for table, of, rows_N in (
        ("item_id", "item", item_row_N),
        ("user_id", "user", user_row_N),
    ):
        if table in id_maps:
            family = f"table row of the {of}"
            yield from _by_own_row(family, id_maps[table][rows_N], rows_N, ranks)
    known_N = is_known(user_row_N)
    if "history_end" in row_values:
        yield from _by_history(row_values["history_end"], known_N, config, ranks)
    elif user_train_count_U is not None:
        of = "training rows of the user"
        yield from _by_history(user_train_count_U[user_row_N], known_N, config, ranks, of=of)
    yield from _by_missing(has_vector, items, is_known(item_row_N))
    yield from _by_attributes(prepared, manifest, items, user_row_N, config.num_values)
    if "timestamp" in row_values:
        yield from _by_time(row_values["timestamp"], config.num_periods, ranks)


def _by_attributes(
    prepared: Path,
    manifest: Manifest,
    items: Lookup,
    user_row_N: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """Attributes are counted by item or user: in how many rows of all ranks each is."""
    owners = {"item": items} if manifest.num_item_rows else {}
    # Numbers by user are many, and only features of users ask for them.
    if any(f.source == "user" and f.name != "user_id" for f in manifest.features):
        owners["user"] = Lookup(user_row_N, manifest.num_user_rows, items.ranks)
    rows_R = {source: lookup.times_asked() for source, lookup in owners.items()}
    if "item" in owners:
        yield from by_item_attributes(prepared / "items.parquet", items, rows_R["item"], num_values)
    for feature in manifest.features:
        source = feature.source
        if source in owners:
            yield from by_feature(
                prepared, manifest, feature, owners[source], rows_R[source], num_values
            )


def read_by_row_id(
    prepared: Path,
    manifest: Manifest,
    split: str,
    row_id_N: NDArray[np.int64],
    columns: Iterable[str],
    ranks: Ranks = ALONE,
) -> dict[str, NDArray]:
    """Return columns [N] of a split's rows, as many of `columns` as it has, in the order of `row_id_N`.

    Each rank reads every W-th row group, one at a time, and sends its rows to the rank that the row id
    modulo W chooses, which is asked for them.

    Args:
        row_id_N: of this rank's rows.

    Raises:
        UserError: a row id is not in the split: the predictions are of another data set.
    """
    types = _column_types(prepared, manifest, split)
    wanted = {name: types[name] for name in columns if name in types}
    owner_N = row_id_N % ranks.size
    counts_W = np.bincount(owner_N, minlength=ranks.size)
    # Rows [M] that all ranks ask this one for, those of rank 0 first.
    asked_counts_W = np.stack(ranks.gather(counts_W))[:, ranks.rank]
    asked_M = ranks.send({"row_id": row_id_N}, owner_N)["row_id"]
    values = _read_asked(prepared, manifest, split, asked_M, wanted, ranks)
    del asked_M
    answered = ranks.exchange(values, asked_counts_W)
    place_N = np.argsort(owner_N, kind="stable")
    found: dict[str, NDArray] = {}
    for name in list(answered):
        answer_N = answered.pop(name)
        found[name] = np.empty_like(answer_N)
        found[name][place_N] = answer_N
    return found


def _column_types(prepared: Path, manifest: Manifest, split: str) -> dict[str, np.dtype]:
    """Return the types of a split's columns of numbers; none of a split without files."""
    for name in manifest.splits[split].files[:1]:
        with reading(prepared / name, PREPARE_AGAIN):
            schema = pq.read_schema(prepared / name)
        return {
            field.name: np.dtype(field.type.to_pandas_dtype())
            for field in schema
            if pa.types.is_integer(field.type)
        }
    return {}


def _read_asked(
    prepared: Path,
    manifest: Manifest,
    split: str,
    asked_M: NDArray[np.int64],
    wanted: Mapping[str, np.dtype],
    ranks: Ranks,
) -> dict[str, NDArray]:
    """Return columns [M] of the rows that this rank is asked for, out of what all ranks read."""
    order_M = np.argsort(asked_M, kind="stable")
    sorted_M = asked_M[order_M]
    is_found_M = np.zeros(len(asked_M), bool)
    values = {name: np.zeros(len(asked_M), kind) for name, kind in wanted.items()}
    names = ["row_id", *wanted]
    groups = read_row_groups(
        prepared, manifest, split, names, part=ranks.rank, num_parts=ranks.size
    )
    nothing = {"row_id": np.zeros(0, np.int64)} | {n: np.zeros(0, k) for n, k in wanted.items()}
    while True:
        group = next(groups, None)
        if not ranks.any(group is not None):
            break
        rows = dict(nothing) if group is None else _numbers(group[1], names)
        rows = ranks.send(rows, rows["row_id"] % ranks.size)
        ids = rows.pop("row_id")
        at = np.minimum(np.searchsorted(sorted_M, ids), max(len(sorted_M) - 1, 0))
        own = np.flatnonzero(sorted_M[at] == ids) if len(sorted_M) else at[:0]
        places = order_M[at[own]]
        is_found_M[places] = True
        for name, column in rows.items():
            values[name][places] = column[own]
    if not is_found_M.all():
        # No count: it would be that of one rank.
        raise UserError(
            f"row {asked_M[~is_found_M][0]} was scored and is not in the split {split!r} of "
            f"{manifest.name!r}: the predictions are of another data set"
        )
    return values


def _numbers(rows: pa.Table, names: list[str]) -> dict[str, NDArray]:
    """Return columns [N] of a row group."""
    return {name: rows.column(name).to_numpy() for name in names}


def _by_popularity(
    item_counts: ItemCounts, item_row_N: NDArray[np.int64], config: SegmentsConfig, ranks: Ranks
) -> Iterator[Segment]:
    counts_I = item_counts.train_count_I
    bound = max(_least_popular(counts_I, config.popular_share, ranks), config.rare_rows + 1)
    counts_N = counts_I[item_row_N]
    kinds_N = item_counts.kinds(item_row_N)
    family = "training rows of the item"
    yield from _unknown(family, ~kinds_N["unknown_to_the_vocabulary"], ranks)
    yield Segment(family, "unseen (0)", kinds_N["unseen_in_training"])
    if item_counts.drawn_count_I.any():
        yield Segment(family, "only drawn as negatives (0)", kinds_N["only_drawn_as_negatives"])
    bounds = {
        f"rare (1 to {config.rare_rows})": (1, config.rare_rows),
        f"common ({config.rare_rows + 1} to {bound - 1})": (config.rare_rows + 1, bound - 1),
        f"popular ({bound} or more)": (bound, np.inf),
    }
    for name, (low, high) in bounds.items():
        if low <= high:
            within_N = (counts_N >= low) & (counts_N <= high)
            yield Segment(family, name, kinds_N["seen_in_training"] & within_N)


def _least_popular(counts_I: NDArray[np.int64], share: float, ranks: Ranks) -> int:
    """Return the training rows of the last item of the popular share; row 0 is no item."""
    num_items = len(counts_I) - 1
    if not num_items:
        return 0
    own = range_of(num_items, ranks)
    place = num_items - max(1, round(share * num_items))
    sorted_R = np.sort(np.asarray(counts_I[own.start + 1 : own.stop + 1]))
    return int(order_statistics(sorted_R, np.array([place]), ranks)[0])


def _by_age(
    age_N: NDArray[np.int64],
    item_row_N: NDArray[np.int64],
    config: SegmentsConfig,
    ranks: Ranks,
) -> Iterator[Segment]:
    """Rows by the age in seconds that their item has at their time."""
    family, known_N = "age of the item", is_known(item_row_N)
    yield from _unknown(family, known_N, ranks)
    bounds = sorted(config.age_days)
    seconds = np.array(bounds) * 86_400
    place_N = np.searchsorted(seconds, age_N, side="right")
    names = [f"{low:g} to {high:g} days" for low, high in itertools.pairwise(bounds)]
    names = [f"under {bounds[0]:g} days", *names, f"{bounds[-1]:g} days or more"] if bounds else []
    for place, name in enumerate(names):
        yield Segment(family, name, known_N & (place_N == place))


def _by_own_row(
    family: str, table_row_N: NDArray[np.int32], rows_N: NDArray[np.int64], ranks: Ranks
) -> Iterator[Segment]:
    """Rows whose id has a row of its own in a table of fixed capacity, and those that read row 0."""
    known_N, has_row_N = is_known(rows_N), is_known(table_row_N)
    yield from _unknown(family, known_N, ranks)
    yield Segment(family, "its own", known_N & has_row_N)
    yield Segment(family, "row 0: not admitted, or forgotten", known_N & ~has_row_N)


def _unknown(family: str, known_N: NDArray[np.bool_], ranks: Ranks) -> Iterator[Segment]:
    """The rows of ids that the vocabulary lacks, where there are any."""
    if ranks.any(not known_N.all()):
        yield Segment(family, UNKNOWN, ~known_N)


def _by_history(
    lengths_N: NDArray,
    known_N: NDArray[np.bool_],
    config: SegmentsConfig,
    ranks: Ranks,
    of: str = "earlier positives of the user",
) -> Iterator[Segment]:
    short = config.short_history
    yield from _unknown(of, known_N, ranks)
    yield Segment(of, "none", known_N & (lengths_N == 0))
    is_short_N = (lengths_N > 0) & (lengths_N <= short)
    yield Segment(of, f"short (1 to {short})", known_N & is_short_N)
    yield Segment(of, f"long ({short + 1} or more)", known_N & (lengths_N > short))


def _by_missing(
    has_vector: Mapping[str, NDArray[np.bool_]], items: Lookup, known_N: NDArray[np.bool_]
) -> Iterator[Segment]:
    """Rows [N] by the modalities of which their item has a vector."""
    if not has_vector:
        return
    family = "modalities of the item"
    yield from _unknown(family, known_N, items.ranks)
    has_all_R = np.logical_and.reduce(list(has_vector.values()))
    yield Segment(family, "all there", known_N & items.of(has_all_R))
    for name, has_R in has_vector.items():
        yield Segment(family, f"no {name}", known_N & ~items.of(has_R))


def _by_time(timestamp_N: NDArray[np.int64], num_periods: int, ranks: Ranks) -> Iterator[Segment]:
    """Periods of about equal rows; their names are a number and their first and last day."""
    num_rows = ranks.total(timestamp_N.size)
    if not num_rows:
        return
    places = np.floor(np.arange(1, num_periods) / num_periods * (num_rows - 1)).astype(np.int64)
    cuts = np.unique(order_statistics(np.sort(timestamp_N), places, ranks))
    period_N = np.searchsorted(cuts, timestamp_N, side="right")
    for period in range(len(cuts) + 1):
        mask_N = period_N == period
        own = timestamp_N[mask_N]
        ends = [e for e in ranks.gather((own.min(), own.max()) if own.size else ()) if e]
        if ends:
            days = [_day(min(low for low, _ in ends)), _day(max(high for _, high in ends))]
            yield Segment("time", f"{period + 1}: {' to '.join(dict.fromkeys(days))}", mask_N)


def _day(seconds: int) -> str:
    """Return the day of a time in seconds; the number itself where it is no such time."""
    if not 0 <= seconds < 1 << 33:
        return str(seconds)
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))
