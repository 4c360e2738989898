"""Segments by attributes of items and users: tags, artist, script of the text, features.

In: files of prepared data, this rank's rows, and in how many rows of all ranks each item or user is. Out:
named masks over the rows; the names are chosen by counts over all ranks, and so the same on each. Lists
are read in pieces. Called by segments.py.
Shapes: N scored rows of a rank, I rows of items or users, V values of an attribute, J entries of lists.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.codes import codes_of
from recsys.files import PREPARE_AGAIN, read_array, reading
from recsys.schema import FeatureSpec, Manifest

_PIECE_OWNERS = 1 << 20
"""Items or users whose lists are read at a time."""


class Segment(NamedTuple):
    """Some of the scored rows."""

    family: str
    """What is asked: "training rows of the item"."""
    name: str
    """The answer these rows share: "unseen"."""
    mask_N: NDArray[np.bool_]


def by_item_attributes(
    path: Path, item_row_N: NDArray[np.int64], rows_I: NDArray[np.int64], num_values: int
) -> Iterator[Segment]:
    """Yield segments by tags, artist, and the script of the item's words.

    Args:
        rows_I: rows of all ranks by item.
    """
    with reading(path, PREPARE_AGAIN):
        attributes = pq.read_table(path, columns=["tags", "artist", "text"])
    tags = attributes.column("tags")
    if tags.null_count < len(tags):
        codes, values = codes_of(pc.list_flatten(tags))
        lengths_I = pc.fill_null(pc.list_value_length(tags), 0).to_numpy()
        offsets = np.concatenate([[0], np.cumsum(lengths_I, dtype=np.int64)])
        names = dict(enumerate(values))
        yield from _by_list(
            "tag of the item", codes, offsets, names, item_row_N, rows_I, num_values
        )
    artist = attributes.column("artist")
    if artist.null_count < len(artist):
        codes_I, values = codes_of(artist)
        names = dict(enumerate(values))
        yield from _by_code("artist of the item", codes_I, names, item_row_N, rows_I, num_values)
    text = attributes.column("text")
    if text.null_count < len(text):
        yield from _by_script(text, item_row_N, rows_I)


SCRIPTS = {
    "Japanese kana": r"[\x{3040}-\x{30ff}]",
    "Chinese characters, no kana": r"[\x{4e00}-\x{9fff}]",
    "Hangul": r"[\x{ac00}-\x{d7af}]",
    "Cyrillic": r"[\x{0400}-\x{04ff}]",
    "Latin": r"[A-Za-z]",
}
"""Told apart by the first of these that a text has (RE2 syntax): the language as far as it shows."""


def _by_script(
    text: pa.ChunkedArray, item_row_N: NDArray[np.int64], rows_I: NDArray[np.int64]
) -> Iterator[Segment]:
    left_I = np.ones(len(text), dtype=bool)
    for name, pattern in SCRIPTS.items():
        matches = pc.fill_null(pc.match_substring_regex(text, pattern), False).to_numpy()
        has_I = matches & left_I
        left_I &= ~matches
        if rows_I[has_I].any():
            yield Segment("script of the item's text", name, has_I[item_row_N])


def by_feature(
    prepared: Path,
    manifest: Manifest,
    feature: FeatureSpec,
    rows_N: NDArray[np.int64],
    rows_I: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """Yield segments by the most frequent values of a feature of items or users; none for an id itself.

    Args:
        rows_N: item or user of every row.
        rows_I: rows of all ranks by item or user.
    """
    table = manifest.table(feature.table)
    if table.kind != "vocab" or feature.name == f"{feature.source}_id":
        return
    family = f"{feature.name.replace('_', ' ')} of the {feature.source}"
    names = _VocabularyNames(prepared / "vocab" / f"{table.name}.parquet")
    base = prepared / f"{feature.source}s"
    codes = read_array(base / f"{feature.name}.values.npy", PREPARE_AGAIN, mmap=True)
    if not feature.is_list:
        yield from _by_code(family, codes, names, rows_N, rows_I, num_values)
        return
    offsets = read_array(base / f"{feature.name}.offsets.npy", PREPARE_AGAIN, mmap=True)
    yield from _by_list(family, codes, offsets, names, rows_N, rows_I, num_values)


class _VocabularyNames:
    """Ids of a vocabulary's rows, of which a few are read at a time; the unknown row has none."""

    def __init__(self, file: Path):
        self.file = file

    def of(self, rows: Sequence[int]) -> dict[int, str]:
        """Return the ids of the rows that have one."""
        with reading(self.file, PREPARE_AGAIN):
            found = pq.read_table(
                self.file, columns=["row", "id"], filters=[("row", "in", [int(r) for r in rows])]
            )
        return dict(zip(*(found.column(i).to_pylist() for i in range(2)), strict=True))


def _most_frequent(
    counts_V: NDArray[np.int64], names: Mapping[int, str] | _VocabularyNames, num_values: int
) -> Iterator[tuple[int, str]]:
    """Yield the values in the most rows, that have a name: the most frequent first, then the smaller."""
    # One more, because the unknown has no name.
    values = np.argsort(-counts_V, kind="stable")[: num_values + 1]
    values = values[counts_V[values] > 0]
    known = names if isinstance(names, Mapping) else names.of(values.tolist())
    named = [(int(value), known[int(value)]) for value in values if int(value) in known]
    yield from named[:num_values]


def _by_code(
    family: str,
    code_I: NDArray,
    names: Mapping[int, str] | _VocabularyNames,
    rows_N: NDArray[np.int64],
    rows_I: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """The most frequent of one value an item or user; -1 is none."""
    counts_V = np.bincount(np.asarray(code_I) + 1, rows_I, minlength=1)[1:].astype(np.int64)
    for value, name in _most_frequent(counts_V, names, num_values):
        yield Segment(family, name, code_I[rows_N] == value)


def _by_list(
    family: str,
    codes_J: NDArray,
    offsets: NDArray[np.int64],
    names: Mapping[int, str] | _VocabularyNames,
    rows_N: NDArray[np.int64],
    rows_I: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """The most frequent of several values an item or user.

    Args:
        offsets: codes_J[offsets[i] : offsets[i + 1]] are those of row i [I + 1].
    """
    num_owners = len(offsets) - 1
    pieces = [
        slice(start, min(start + _PIECE_OWNERS, num_owners))
        for start in range(0, num_owners, _PIECE_OWNERS)
    ]
    counts_V = np.zeros(0, np.int64)
    for piece in pieces:
        codes, owners = _entries(codes_J, offsets, piece)
        own = np.bincount(codes, rows_I[owners], len(counts_V)).astype(np.int64)
        own[: len(counts_V)] += counts_V
        counts_V = own
    for value, name in _most_frequent(counts_V, names, num_values):
        has_I = np.zeros(num_owners, dtype=bool)
        for piece in pieces:
            codes, owners = _entries(codes_J, offsets, piece)
            has_I[owners[codes == value]] = True
        yield Segment(family, name, has_I[rows_N])


def _entries(
    codes_J: NDArray, offsets: NDArray[np.int64], piece: slice
) -> tuple[NDArray, NDArray[np.int64]]:
    """Return the values of some items or users end to end [J], and whose each is [J]."""
    bounds = np.asarray(offsets[piece.start : piece.stop + 1])
    owners = np.repeat(np.arange(piece.start, piece.stop), np.diff(bounds))
    return np.asarray(codes_J[bounds[0] : bounds[-1]]), owners
