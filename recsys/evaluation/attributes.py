"""Segments by attributes of items and users: tags, artist, script of the text, features.

In: files of prepared data, this rank's rows, and in how many rows of all ranks each item or user is. Out:
named masks over the rows; the names are chosen by counts over all ranks, and so the same on each. Texts
and lists are read in pieces, a part of them by each rank. Called by segments.py.
Shapes: N scored rows of a rank, I rows of items or users, V values of an attribute, J entries of lists,
K values that are shown.
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
from recsys.runtime.ranks import ALONE, Ranks
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
    path: Path,
    item_row_N: NDArray[np.int64],
    rows_I: NDArray[np.int64],
    num_values: int,
    ranks: Ranks = ALONE,
) -> Iterator[Segment]:
    """Yield segments by tags, artist, and the script of the item's words.

    Each rank reads every W-th row group of the items, one at a time, once to count and once to mark.

    Args:
        rows_I: rows of all ranks by item.
    """
    for column, family in (("tags", "tag of the item"), ("artist", "artist of the item")):
        texts = _Texts(path, column, ranks)
        for name, has_bits in texts.most_frequent(rows_I, num_values):
            at = has_bits[item_row_N >> 3] >> (item_row_N & 7).astype(np.uint8)
            yield Segment(family, name, (at & 1).astype(bool))
    yield from _by_script(path, item_row_N, rows_I, ranks)


def _row_groups(path: Path, column: str, ranks: Ranks) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """Yield the first item and a column of every W-th row group of the items, those of this rank."""
    with reading(path, PREPARE_AGAIN):
        start, file = 0, pq.ParquetFile(path, memory_map=True)
        for group in range(file.num_row_groups):
            if group % ranks.size == ranks.rank:
                yield start, file.read_row_group(group, columns=[column]).column(0)
            start += file.metadata.row_group(group).num_rows


class _Texts:
    """Texts of the items in one column, one or a list each, told apart by their hashes."""

    def __init__(self, path: Path, column: str, ranks: Ranks):
        self.path = path
        self.column = column
        self.ranks = ranks

    def most_frequent(
        self, rows_I: NDArray[np.int64], num_values: int
    ) -> list[tuple[str, NDArray[np.uint8]]]:
        """Return the texts in the most rows, the first to appear among equals, and a bit by item each."""
        hashes_K = self._hashes(rows_I, num_values)
        place = {int(number): k for k, number in enumerate(hashes_K)}
        bits = np.zeros((len(place), len(rows_I) // 8 + 1), np.uint8)
        names: dict[int, str] = {}
        for codes_J, item_J, _, known, hashes_V in self._pieces():
            for value in np.flatnonzero(np.isin(hashes_V, hashes_K)):
                k = place[int(hashes_V[value])]
                names[k] = known[value]
                items = item_J[codes_J == value]
                np.bitwise_or.at(bits[k], items >> 3, (1 << (items & 7)).astype(np.uint8))
        names = {k: name for part in self.ranks.gather(names) for k, name in part.items()}
        # An item is in one row group, of one rank: a sum sets every bit once.
        return [(names[k], self.ranks.total(bits[k])) for k in range(len(place))]

    def _hashes(self, rows_I: NDArray[np.int64], num_values: int) -> NDArray[np.uint64]:
        """Return the hashes of the texts in the most rows of all ranks [K], K at most `num_values`."""
        parts: list[list[NDArray]] = [[np.zeros(0, np.uint64), np.zeros(0), np.zeros(0)]]
        for codes_J, item_J, place_J, known, hashes_V in self._pieces():
            first_V = np.unique(codes_J, return_index=True)[1]
            counts_V = np.bincount(codes_J, rows_I[item_J], len(known))
            parts.append([hashes_V, counts_V, (item_J << 20 | place_J)[first_V]])
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
        """Yield a row group's texts: code, item, place in the list [J]; texts and hashes [V]."""
        for start, column in _row_groups(self.path, self.column, self.ranks):
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


def _by_script(
    path: Path, item_row_N: NDArray[np.int64], rows_I: NDArray[np.int64], ranks: Ranks
) -> Iterator[Segment]:
    script_I = np.zeros(len(rows_I), np.uint8)
    for start, text in _row_groups(path, "text", ranks):
        own = script_I[start : start + len(text)]
        for number, pattern in enumerate(SCRIPTS.values(), 1):
            matches = pc.fill_null(pc.match_substring_regex(text, pattern), False).to_numpy()
            own[matches & (own == 0)] = number
    script_I = ranks.total(script_I)
    for number, name in enumerate(SCRIPTS, 1):
        if rows_I[script_I == number].any():
            yield Segment("script of the item's text", name, script_I[item_row_N] == number)


def by_feature(
    prepared: Path,
    manifest: Manifest,
    feature: FeatureSpec,
    rows_N: NDArray[np.int64],
    rows_I: NDArray[np.int64],
    num_values: int,
    ranks: Ranks = ALONE,
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
    yield from _by_list(family, codes, offsets, names, rows_N, rows_I, num_values, ranks)


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
    code_I: NDArray,
    names: _VocabularyNames,
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
    names: _VocabularyNames,
    rows_N: NDArray[np.int64],
    rows_I: NDArray[np.int64],
    num_values: int,
    ranks: Ranks,
) -> Iterator[Segment]:
    """The most frequent of several values an item or user; each rank looks at a part of the lists.

    Args:
        offsets: codes_J[offsets[i] : offsets[i + 1]] are those of row i [I + 1].
    """
    num_owners = len(offsets) - 1
    pieces = [
        slice(start, min(start + _PIECE_OWNERS, num_owners))
        for start in range(0, num_owners, _PIECE_OWNERS)
    ][ranks.rank :: ranks.size]
    counts_V = np.zeros(0, np.int64)
    for piece in pieces:
        codes, owners = _entries(codes_J, offsets, piece)
        own = np.bincount(codes, rows_I[owners], len(counts_V)).astype(np.int64)
        own[: len(counts_V)] += counts_V
        counts_V = own
    num_codes = max(ranks.gather(len(counts_V)))
    counts_V = ranks.total(np.pad(counts_V, (0, num_codes - len(counts_V))))
    for value, name in _most_frequent(counts_V, names, num_values):
        has_I = np.zeros(num_owners, np.uint8)
        for piece in pieces:
            codes, owners = _entries(codes_J, offsets, piece)
            has_I[owners[codes == value]] = 1
        yield Segment(family, name, ranks.total(has_I)[rows_N] > 0)


def _entries(
    codes_J: NDArray, offsets: NDArray[np.int64], piece: slice
) -> tuple[NDArray, NDArray[np.int64]]:
    """Return the values of some items or users end to end [J], and whose each is [J]."""
    bounds = np.asarray(offsets[piece.start : piece.stop + 1])
    owners = np.repeat(np.arange(piece.start, piece.stop), np.diff(bounds))
    return np.asarray(codes_J[bounds[0] : bounds[-1]]), owners
