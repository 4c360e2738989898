"""Segments of a split: rows of unseen items, of new users, of one artist, of one month.

In: prepared data and the rows that were scored. Out: named masks over these rows,
one at a time (all at once would be as large as the predictions). Called by launch/evaluate.py.
Shapes: N scored rows, I item rows, U user rows, F values of an attribute.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from recsys.data.codes import codes_of
from recsys.errors import UserError
from recsys.files import PREPARE_AGAIN, read_array, reading
from recsys.schema import FeatureSpec, Manifest, is_known


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


class Segment(NamedTuple):
    """Some of the scored rows."""

    family: str
    """What is asked: "training rows of the item"."""
    name: str
    """The answer these rows share: "unseen"."""
    mask_N: NDArray[np.bool_]


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
    first_time_I: NDArray[np.int64] | None = None,
    id_maps: Mapping[str, NDArray[np.int32]] = MappingProxyType({}),
) -> Iterator[Segment]:
    """Yield the segments that the data can tell, family by family; some may be empty.

    Args:
        row_values: columns of the scored rows [N], of ROW_COLUMNS, as `read_by_row_id` returns them.
        item_counts: None where there are no items.
        has_vector: by modality, whether each item row has a vector [I].
        user_train_count_U: interactions of every user before the split, which stand in for histories;
            None where there are no users.
        first_time_I: of every item's first interaction; None where there are no items or no times.
        id_maps: table row of every item [I] or user [U], by table, of tables with a fixed capacity.
    """
    if item_counts is not None:
        yield from _by_popularity(item_counts, item_row_N, config)
    if first_time_I is not None and "timestamp" in row_values:
        yield from _by_age(first_time_I[item_row_N], row_values["timestamp"], item_row_N, config)
    for table, of, rows_N in (
        ("item_id", "item", item_row_N),
        ("user_id", "user", user_row_N),
    ):
        if table in id_maps:
            yield from _by_own_row(f"table row of the {of}", id_maps[table][rows_N], rows_N)
    known_N = is_known(user_row_N)
    if "history_end" in row_values:
        yield from _by_history(row_values["history_end"], known_N, config)
    elif user_train_count_U is not None:
        of = "training rows of the user"
        yield from _by_history(user_train_count_U[user_row_N], known_N, config, of=of)
    yield from _by_missing(has_vector, item_row_N)
    if manifest.num_item_rows:
        yield from _by_item_attributes(prepared / "items.parquet", item_row_N, config.num_values)
    for feature in manifest.features:
        if feature.source in ("item", "user"):
            rows_N = item_row_N if feature.source == "item" else user_row_N
            yield from _by_feature(prepared, manifest, feature, rows_N, config.num_values)
    if "timestamp" in row_values:
        yield from _by_time(row_values["timestamp"], config.num_periods)


def read_by_row_id(
    prepared: Path,
    manifest: Manifest,
    split: str,
    row_id_N: NDArray[np.int64],
    columns: Iterable[str],
) -> dict[str, NDArray]:
    """Return columns [N] of a split's rows, as many of `columns` as it has, in the order of `row_id_N`.

    Raises:
        UserError: a row id is not in the split: the predictions are of another data set.
    """
    files = [prepared / name for name in manifest.splits[split].files]
    tables, wanted = [], ["row_id"]
    for file in files:
        with reading(file, PREPARE_AGAIN):
            known = pq.read_schema(file).names
            wanted = ["row_id", *(name for name in columns if name in known)]
            tables.append(pq.read_table(file, columns=wanted))
    table = pa.concat_tables(tables)
    ids = table.column("row_id").to_numpy()
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids, row_id_N, sorter=order), len(ids) - 1)
    places = order[at]
    num_strange = np.count_nonzero(ids[places] != row_id_N)
    if num_strange:
        raise UserError(
            f"{num_strange:,} of {len(row_id_N):,} scored rows are not in the split {split!r} of "
            f"{manifest.name!r}: the predictions are of another data set"
        )
    return {name: table.column(name).to_numpy()[places] for name in wanted[1:]}


def _by_popularity(
    item_counts: ItemCounts, item_row_N: NDArray[np.int64], config: SegmentsConfig
) -> Iterator[Segment]:
    counts_I = item_counts.train_count_I
    num_popular = max(1, round(config.popular_share * (len(counts_I) - 1)))
    bound = np.partition(counts_I[1:], -num_popular)[-num_popular] if len(counts_I) > 1 else 0
    bound = max(int(bound), config.rare_rows + 1)
    counts_N = counts_I[item_row_N]
    kinds_N = item_counts.kinds(item_row_N)
    family = "training rows of the item"
    yield from _unknown(family, ~kinds_N["unknown_to_the_vocabulary"])
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


def _by_age(
    first_time_N: NDArray[np.int64],
    time_N: NDArray[np.int64],
    item_row_N: NDArray[np.int64],
    config: SegmentsConfig,
) -> Iterator[Segment]:
    """Rows by the age that their item has at their time."""
    family, known_N = "age of the item", is_known(item_row_N)
    yield from _unknown(family, known_N)
    bounds = sorted(config.age_days)
    seconds = np.array(bounds) * 86_400
    place_N = np.searchsorted(seconds, time_N - first_time_N, side="right")
    names = [f"{low:g} to {high:g} days" for low, high in itertools.pairwise(bounds)]
    names = [f"under {bounds[0]:g} days", *names, f"{bounds[-1]:g} days or more"] if bounds else []
    for place, name in enumerate(names):
        yield Segment(family, name, known_N & (place_N == place))


def _by_own_row(
    family: str, table_row_N: NDArray[np.int32], rows_N: NDArray[np.int64]
) -> Iterator[Segment]:
    """Rows whose id has a row of its own in a table of fixed capacity, and those that read row 0."""
    known_N, has_row_N = is_known(rows_N), is_known(table_row_N)
    yield from _unknown(family, known_N)
    yield Segment(family, "its own", known_N & has_row_N)
    yield Segment(family, "row 0: not admitted, or forgotten", known_N & ~has_row_N)


def _unknown(family: str, known_N: NDArray[np.bool_]) -> Iterator[Segment]:
    """The rows of ids that the vocabulary lacks, where there are any."""
    if not known_N.all():
        yield Segment(family, UNKNOWN, ~known_N)


def _by_history(
    lengths_N: NDArray,
    known_N: NDArray[np.bool_],
    config: SegmentsConfig,
    of: str = "earlier positives of the user",
) -> Iterator[Segment]:
    short = config.short_history
    yield from _unknown(of, known_N)
    yield Segment(of, "none", known_N & (lengths_N == 0))
    is_short_N = (lengths_N > 0) & (lengths_N <= short)
    yield Segment(of, f"short (1 to {short})", known_N & is_short_N)
    yield Segment(of, f"long ({short + 1} or more)", known_N & (lengths_N > short))


def _by_missing(
    has_vector: Mapping[str, NDArray[np.bool_]], item_row_N: NDArray[np.int64]
) -> Iterator[Segment]:
    if not has_vector:
        return
    family = "modalities of the item"
    known_N = is_known(item_row_N)
    has_all_I = np.logical_and.reduce(list(has_vector.values()))
    yield from _unknown(family, known_N)
    yield Segment(family, "all there", known_N & has_all_I[item_row_N])
    for name, has_I in has_vector.items():
        yield Segment(family, f"no {name}", known_N & ~has_I[item_row_N])


def _by_item_attributes(
    path: Path, item_row_N: NDArray[np.int64], num_values: int
) -> Iterator[Segment]:
    """Tags, artist, and the script of the item's words."""
    with reading(path, PREPARE_AGAIN):
        attributes = pq.read_table(path, columns=["tags", "artist", "text"])
    tags = attributes.column("tags")
    if tags.null_count < len(tags):
        codes, values = codes_of(pc.list_flatten(tags))
        lengths_I = pc.fill_null(pc.list_value_length(tags), 0).to_numpy()
        items = np.repeat(np.arange(len(tags)), lengths_I)
        names = dict(enumerate(values))
        yield from _by_list("tag of the item", codes, items, names, item_row_N, num_values)
    artist = attributes.column("artist")
    if artist.null_count < len(artist):
        codes_I, values = codes_of(artist)
        names = dict(enumerate(values))
        yield from _by_code("artist of the item", codes_I[item_row_N], names, num_values)
    text = attributes.column("text")
    if text.null_count < len(text):
        yield from _by_script(text, item_row_N)


SCRIPTS = {
    "Japanese kana": r"[\x{3040}-\x{30ff}]",
    "Chinese characters, no kana": r"[\x{4e00}-\x{9fff}]",
    "Hangul": r"[\x{ac00}-\x{d7af}]",
    "Cyrillic": r"[\x{0400}-\x{04ff}]",
    "Latin": r"[A-Za-z]",
}
"""Told apart by the first of these that a text has (RE2 syntax): the language as far as it shows."""


def _by_script(text: pa.ChunkedArray, item_row_N: NDArray[np.int64]) -> Iterator[Segment]:
    left_I = np.ones(len(text), dtype=bool)
    for name, pattern in SCRIPTS.items():
        matches = pc.fill_null(pc.match_substring_regex(text, pattern), False).to_numpy()
        mask_N = (matches & left_I)[item_row_N]
        left_I &= ~matches
        if mask_N.any():
            yield Segment("script of the item's text", name, mask_N)


def _by_feature(
    prepared: Path,
    manifest: Manifest,
    feature: FeatureSpec,
    rows_N: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """A feature with a vocabulary; ids of users and items themselves are no segments."""
    table = manifest.table(feature.table)
    if table.kind != "vocab" or feature.name == f"{feature.source}_id":
        return
    file = prepared / "vocab" / f"{table.name}.parquet"
    with reading(file, PREPARE_AGAIN):
        vocab = pq.read_table(file, columns=["row", "id"])
    names = dict(zip(*(vocab.column(i).to_pylist() for i in range(2)), strict=True))
    family = f"{feature.name.replace('_', ' ')} of the {feature.source}"
    base = prepared / f"{feature.source}s"
    codes = read_array(base / f"{feature.name}.values.npy", PREPARE_AGAIN, mmap=True)
    if not feature.is_list:
        yield from _by_code(family, codes[rows_N], names, num_values)
        return
    offsets = read_array(base / f"{feature.name}.offsets.npy", PREPARE_AGAIN, mmap=True)
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    yield from _by_list(family, np.asarray(codes), owners, names, rows_N, num_values)


def _by_code(
    family: str, codes_N: NDArray, names: Mapping[int, str], num_values: int
) -> Iterator[Segment]:
    """The most frequent of one value a row."""
    values, counts = np.unique(codes_N, return_counts=True)
    for value in values[np.argsort(-counts, kind="stable")][: num_values + 1]:
        if int(value) in names and num_values:
            num_values -= 1
            yield Segment(family, names[int(value)], codes_N == value)


def _by_list(
    family: str,
    codes: NDArray,
    owners: NDArray[np.int64],
    names: Mapping[int, str],
    rows_N: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """The most frequent of several values a row, in arrays of entries [J].

    Entry j says that owner j has value j.
    """
    if not codes.size:
        return
    rows_of_owner = np.bincount(rows_N, minlength=int(owners.max()) + 1)
    counts = np.bincount(codes, weights=rows_of_owner[owners])
    for value in np.argsort(-counts, kind="stable")[: num_values + 1]:
        if int(value) in names and num_values and counts[value]:
            num_values -= 1
            has_I = np.zeros(len(rows_of_owner), dtype=bool)
            has_I[owners[codes == value]] = True
            yield Segment(family, names[int(value)], has_I[rows_N])


def _by_time(timestamp_N: NDArray[np.int64], num_periods: int) -> Iterator[Segment]:
    """Periods of about equal rows; their names are a number and their first and last day."""
    if not timestamp_N.size:
        return
    shares = np.arange(1, num_periods) / num_periods
    cuts = np.unique(np.quantile(timestamp_N, shares, method="lower"))
    period_N = np.searchsorted(cuts, timestamp_N, side="right")
    for period in np.unique(period_N):
        mask_N = period_N == period
        of_period = timestamp_N[mask_N]
        days = [_day(of_period.min()), _day(of_period.max())]
        yield Segment("time", f"{period + 1}: {' to '.join(dict.fromkeys(days))}", mask_N)


def _day(seconds: int) -> str:
    """Return the day of a time in seconds; the number itself where it is no such time."""
    if not 0 <= seconds < 1 << 33:
        return str(seconds)
    return str(np.datetime64(int(seconds), "s").astype("datetime64[D]"))
