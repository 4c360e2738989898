"""Segments by attributes of items and users: tags, artist, script of the text, features.

In: files of prepared data, the items or users of this rank's rows, and in how many rows of all ranks
each is. Out: named masks over the rows; the names are chosen by counts over all ranks, and so the same on
each. A rank reads texts and lists of its range of the items or users (runtime/partition.py), in pieces.
Called by segments.py.
Shapes: N scored rows of a rank, I rows of items or users, R those of this rank's range, V values of an
attribute, J entries of lists, K values that are shown.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.codes import codes_of
from recsys.files import PREPARE_AGAIN, read_array, reading
from recsys.runtime.partition import Lookup
from recsys.runtime.ranks import Ranks
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
    path: Path, items: Lookup, rows_R: NDArray[np.int64], num_values: int
) -> Iterator[Segment]:
    """Yield segments by tags, artist, and the script of the item's words.

    A rank reads the row groups of its range of the items, one at a time, once to count, once to mark.

    Args:
        items: of this rank's rows.
        rows_R: rows of all ranks by item of this rank's range.
    """
    for column, family in (("tags", "tag of the item"), ("artist", "artist of the item")):
        texts = _Texts(path, column, items)
        for name, has_R in texts.most_frequent(rows_R, num_values):
            yield Segment(family, name, items.of(has_R))
    yield from _by_script(path, items, rows_R)


def _row_groups(path: Path, column: str, own: slice) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """Yield a column of a range of the items, a row group at a time, and the place of its first item in
    the range."""
    with reading(path, PREPARE_AGAIN):
        start, file = 0, pq.ParquetFile(path, memory_map=True)
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            low, high = max(start, own.start), min(stop, own.stop)
            if low < high:
                values = file.read_row_group(group, columns=[column]).column(0)
                yield low - own.start, values.slice(low - start, high - low)
            start = stop


class _Texts:
    """Texts of the items in one column, one or a list each, told apart by their hashes."""

    def __init__(self, path: Path, column: str, items: Lookup):
        self.path = path
        self.column = column
        self.range = items.range
        self.ranks = items.ranks

    def most_frequent(
        self, rows_R: NDArray[np.int64], num_values: int
    ) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield the texts in the most rows, the first to appear among equals, and which items have each.

        Items are those of this rank's range [R]; every text is yielded on every rank.
        """
        hashes_K = self._hashes(rows_R, num_values)
        place = {int(number): k for k, number in enumerate(hashes_K)}
        bits = np.zeros((len(place), len(rows_R) // 8 + 1), np.uint8)
        names: dict[int, str] = {}
        for codes_J, item_J, _, known, hashes_V in self._pieces():
            for value in np.flatnonzero(np.isin(hashes_V, hashes_K)):
                k = place[int(hashes_V[value])]
                names[k] = known[value]
                items = item_J[codes_J == value]
                np.bitwise_or.at(bits[k], items >> 3, (1 << (items & 7)).astype(np.uint8))
        names = {k: name for part in self.ranks.gather(names) for k, name in part.items()}
        for k in range(len(place)):
            yield names[k], np.unpackbits(bits[k], count=len(rows_R), bitorder="little").view(bool)

    def _hashes(self, rows_R: NDArray[np.int64], num_values: int) -> NDArray[np.uint64]:
        """Return the hashes of the texts in the most rows of all ranks [K], K at most `num_values`."""
        parts: list[list[NDArray]] = [[np.zeros(0, np.uint64), np.zeros(0), np.zeros(0)]]
        for codes_J, item_J, place_J, known, hashes_V in self._pieces():
            first_V = np.unique(codes_J, return_index=True)[1]
            counts_V = np.bincount(codes_J, rows_R[item_J], len(known))
            # The first to appear: by item, then by place in its list.
            firsts_V = (item_J[first_V] + self.range.start << 20) | place_J[first_V]
            parts.append([hashes_V, counts_V, firsts_V])
        hashes, rows, firsts = (np.concatenate(column) for column in zip(*parts, strict=True))
        columns = {"hash": hashes, "rows": rows.astype(np.int64), "first": firsts.astype(np.int64)}
        owner = (hashes % np.uint64(self.ranks.size)).astype(np.int64)
        columns = self.ranks.send(columns, owner)
        found_V, text_J = np.unique(columns["hash"], return_inverse=True)
        rows_V = np.bincount(text_J, columns["rows"], len(found_V)).astype(np.int64)
        first_V = np.full(len(found_V), np.iinfo(np.int64).max)
        np.minimum.at(first_V, text_J, columns["first"])
        best = np.lexsort((first_V, -rows_V))[:num_values]
        best = best[rows_V[best] > 0]
        tops = self.ranks.gather((found_V[best], rows_V[best], first_V[best]))
        found, rows, firsts = (np.concatenate(column) for column in zip(*tops, strict=True))
        return found[np.lexsort((firsts, -rows))[:num_values]]

    def _pieces(
        self,
    ) -> Iterator[
        tuple[NDArray, NDArray[np.int64], NDArray[np.int64], list[str], NDArray[np.uint64]]
    ]:
        """Yield a row group's texts: code, item of the range, place in the list [J]; texts and hashes
        [V]."""
        for start, column in _row_groups(self.path, self.column, self.range):
            items = np.arange(start, start + len(column))
            texts, item_J, place_J = column, items, np.zeros(len(column), np.int64)
            if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
                lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
                texts, item_J = pc.list_flatten(column), np.repeat(items, lengths)
                place_J = np.arange(len(item_J)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            codes_J, known = codes_of(texts)
            there = codes_J >= 0
            if known:
                hashes_V = np.array([_hash(text) for text in known], np.uint64)
                yield codes_J[there], item_J[there], place_J[there], known, hashes_V


def _hash(text: str) -> int:
    """Return 64 bits of a text's BLAKE2 digest, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


SCRIPTS = {
    "Japanese kana": r"[\x{3040}-\x{30ff}]",
    "Chinese characters, no kana": r"[\x{4e00}-\x{9fff}]",
    "Hangul": r"[\x{ac00}-\x{d7af}]",
    "Cyrillic": r"[\x{0400}-\x{04ff}]",
    "Latin": r"[A-Za-z]",
}
"""Told apart by the first of these that a text has (RE2 syntax): the language as far as it shows."""


def _by_script(path: Path, items: Lookup, rows_R: NDArray[np.int64]) -> Iterator[Segment]:
    script_R = np.zeros(len(rows_R), np.uint8)
    for start, text in _row_groups(path, "text", items.range):
        own = script_R[start : start + len(text)]
        for number, pattern in enumerate(SCRIPTS.values(), 1):
            matches = pc.fill_null(pc.match_substring_regex(text, pattern), False).to_numpy()
            own[matches & (own == 0)] = number
    script_N = items.of(script_R)
    for number, name in enumerate(SCRIPTS, 1):
        if items.ranks.any(bool(rows_R[script_R == number].any())):
            yield Segment("script of the item's text", name, script_N == number)


def by_feature(
    prepared: Path,
    manifest: Manifest,
    feature: FeatureSpec,
    owners: Lookup,
    rows_R: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """Yield segments by the most frequent values of a feature of items or users; none for an id itself.

    Args:
        owners: item or user of this rank's rows.
        rows_R: rows of all ranks by item or user of this rank's range.
    """
    table = manifest.table(feature.table)
    if table.kind != "vocab" or feature.name == f"{feature.source}_id":
        return
    family = f"{feature.name.replace('_', ' ')} of the {feature.source}"
    names = _VocabularyNames(prepared / "vocab" / f"{table.name}.parquet")
    base = prepared / f"{feature.source}s"
    codes = read_array(base / f"{feature.name}.values.npy", PREPARE_AGAIN, mmap=True)
    if not feature.is_list:
        yield from _by_code(family, codes[owners.range], names, owners, rows_R, num_values)
        return
    offsets = read_array(base / f"{feature.name}.offsets.npy", PREPARE_AGAIN, mmap=True)
    yield from _by_list(family, codes, offsets, names, owners, rows_R, num_values)


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
    counts_V: NDArray[np.int64], names: _VocabularyNames, num_values: int
) -> Iterator[tuple[int, str]]:
    """Yield the values in the most rows, that have a name: the most frequent first, then the smaller."""
    # One more, because the unknown has no name.
    values = np.argsort(-counts_V, kind="stable")[: num_values + 1]
    values = values[counts_V[values] > 0]
    known = names.of(values.tolist())
    named = [(int(value), known[int(value)]) for value in values if int(value) in known]
    yield from named[:num_values]


def _by_code(
    family: str,
    code_R: NDArray,
    names: _VocabularyNames,
    owners: Lookup,
    rows_R: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """The most frequent of one value an item or user; -1 is none."""
    counts_V = np.bincount(np.asarray(code_R) + 1, rows_R, minlength=1)[1:].astype(np.int64)
    code_N = owners.of(np.asarray(code_R))
    for value, name in _most_frequent(_summed(counts_V, owners.ranks), names, num_values):
        yield Segment(family, name, code_N == value)


def _by_list(
    family: str,
    codes_J: NDArray,
    offsets: NDArray[np.int64],
    names: _VocabularyNames,
    owners: Lookup,
    rows_R: NDArray[np.int64],
    num_values: int,
) -> Iterator[Segment]:
    """The most frequent of several values an item or user; each rank looks at its range of the lists.

    Args:
        offsets: codes_J[offsets[i] : offsets[i + 1]] are those of row i [I + 1].
    """
    own = owners.range
    pieces = [
        slice(start, min(start + _PIECE_OWNERS, own.stop))
        for start in range(own.start, own.stop, _PIECE_OWNERS)
    ]
    counts_V = np.zeros(0, np.int64)
    for piece in pieces:
        codes, rows = _entries(codes_J, offsets, piece)
        more = np.bincount(codes, rows_R[rows - own.start], len(counts_V)).astype(np.int64)
        more[: len(counts_V)] += counts_V
        counts_V = more
    for value, name in _most_frequent(_summed(counts_V, owners.ranks), names, num_values):
        has_R = np.zeros(len(rows_R), bool)
        for piece in pieces:
            codes, rows = _entries(codes_J, offsets, piece)
            has_R[rows[codes == value] - own.start] = True
        yield Segment(family, name, owners.of(has_R))


def _summed(counts_V: NDArray[np.int64], ranks: Ranks) -> NDArray[np.int64]:
    """Return the sum of the counts of all ranks, the last values of which some may lack."""
    num_codes = max(ranks.gather(len(counts_V)))
    summed_V: NDArray[np.int64] = ranks.total(np.pad(counts_V, (0, num_codes - len(counts_V))))
    return summed_V


def _entries(
    codes_J: NDArray, offsets: NDArray[np.int64], piece: slice
) -> tuple[NDArray, NDArray[np.int64]]:
    """Return the values of some items or users end to end [J], and whose each is [J]."""
    bounds = np.asarray(offsets[piece.start : piece.stop + 1])
    owners = np.repeat(np.arange(piece.start, piece.stop), np.diff(bounds))
    return np.asarray(codes_J[bounds[0] : bounds[-1]]), owners
