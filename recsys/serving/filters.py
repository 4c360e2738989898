"""Filters: which items may be answered, by columns of the catalogue and by item features.

In: the conditions of a request. Out: a bitmap of item rows. Called by recommender.py; the route of
artists reads the same lists of rows.
Shapes: N item rows, those added at run time included, V values of all items, K rows found.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.items import FeatureRows
from recsys.errors import UserError
from recsys.schema import UNKNOWN_ROW
from recsys.serving.requests import Filters

FILTERED = ("artist", "tags", "content")
"""Columns of the catalogue that items are filtered by; features of the items file come beside them."""
_KEPT_BITMAPS = 64

Posting = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Item rows sorted by value code [V], and where each code begins [C + 1]."""


class Postings:
    """Inverted list of one column: the item rows of each value."""

    def __init__(self, posting: Posting, code_of: Callable[[str], int]):
        """Args: code_of: the code of a raw value; -1 for one that no item has."""
        self._rows, self._starts = posting
        self._code_of = code_of
        self._added: dict[int, list[int]] = {}
        self._added_codes: dict[int, list[int]] = {}

    def rows(self, value: str) -> NDArray[np.int64]:
        """Return the rows of the items that have a value [K]; none for a value that nobody has."""
        return self.rows_of(self._code_of(value))

    def rows_of(self, code: int) -> NDArray[np.int64]:
        """Return the rows of the items that have the value of a code [K]."""
        found = np.array(self._added.get(code, []), np.int64)
        if 0 <= code < len(self._starts) - 1:
            stored = self._rows[self._starts[code] : self._starts[code + 1]]
            found = np.concatenate([stored.astype(np.int64), found])
        return found

    def codes_of(self, row: int) -> list[int]:
        """Return the codes of an item's values."""
        if row in self._added_codes:
            return self._added_codes[row]
        codes, starts = self._by_row
        if row >= len(starts) - 1:
            return []
        return codes[starts[row] : starts[row + 1]].tolist()

    def add(self, row: int, codes: Sequence[int]) -> None:
        """Add an item that was added at run time."""
        self._added_codes[row] = list(codes)
        for code in codes:
            self._added.setdefault(code, []).append(row)

    @cached_property
    def _by_row(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Value codes sorted by item row [V], and where each row begins."""
        codes_V = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts))
        num_rows = int(self._rows.max(initial=-1)) + 1
        return _sorted(self._rows, codes_V.astype(np.int32), num_rows)


class ItemFilter:
    """Filters of one bundle; a column is read when it is first asked for."""

    def __init__(self, bundle: Bundle):
        """Args: bundle: opened."""
        self._bundle = bundle
        self._postings: dict[str, Postings] = {}
        self._codes: dict[str, dict[str, int]] = {}
        self._bitmaps: OrderedDict[tuple, NDArray[np.bool_]] = OrderedDict()

    @property
    def columns(self) -> list[str]:
        """Columns that items can be filtered by."""
        own = [name for name in FILTERED if name in self._bundle.catalogue.columns]
        features = self._bundle.items.features
        return own + [n for n, f in features.items() if n not in own and not f.is_dense]

    def postings(self, column: str) -> Postings:
        """Return the inverted list of a column.

        Raises:
            UserError: the bundle has no such column; names those it has.
        """
        if column not in self._postings:
            if column not in self.columns:
                known = ", ".join(self.columns) or "none"
                raise UserError(f"filters: column {column!r}; this bundle filters by {known}")
            if column in self._bundle.catalogue.columns:
                self._postings[column] = self._of_catalogue(column)
            else:
                self._postings[column] = self._of_feature(column)
            for row in range(self._bundle.items.num_stored, len(self._bundle.items)):
                self._add_to(column, row)
        return self._postings[column]

    def add(self, row: int) -> None:
        """Take an item into account that was added to the bundle."""
        for column in self._postings:
            self._add_to(column, row)
        self._bitmaps.clear()

    def allowed(self, filters: Filters) -> NDArray[np.bool_] | None:
        """Return which rows meet the conditions on columns [N]; None where there are no conditions.

        `exclude_items` is not among them: routes leave these out as they do seen items.

        Raises:
            UserError: a column that the bundle does not filter by.
        """
        if not filters.include and not filters.exclude:
            return None
        key = (_key(filters.include), _key(filters.exclude))
        if key in self._bitmaps:
            self._bitmaps.move_to_end(key)
            return self._bitmaps[key]
        allowed_N = np.ones(len(self._bundle.items), bool)
        allowed_N[UNKNOWN_ROW] = False
        for column, values in filters.include.items():
            has_one_N = np.zeros(len(allowed_N), bool)
            for value in values:
                has_one_N[self.postings(column).rows(value)] = True
            allowed_N &= has_one_N
        for column, values in filters.exclude.items():
            for value in values:
                allowed_N[self.postings(column).rows(value)] = False
        self._bitmaps[key] = allowed_N
        if len(self._bitmaps) > _KEPT_BITMAPS:
            self._bitmaps.popitem(last=False)
        return allowed_N

    def _of_catalogue(self, column: str) -> Postings:
        posting, values = _column_posting(self._bundle.catalogue.table[column])
        codes = self._codes[column] = {value: code for code, value in enumerate(values)}
        return Postings(posting, lambda value: codes.get(value, -1))

    def _of_feature(self, name: str) -> Postings:
        bundle = self._bundle
        posting = _feature_posting(bundle.items.features[name], bundle.items.num_stored)

        def code_of(value: str) -> int:
            rows, _ = bundle.encoder.encode(name, pa.array([value]))
            return int(rows[0]) if len(rows) and rows[0] != UNKNOWN_ROW else -1

        return Postings(posting, code_of)

    def _add_to(self, column: str, row: int) -> None:
        codes: list[int] = []
        if column in self._codes:
            known = self._codes[column]
            value = self._bundle.catalogue.card(row)[column]
            values = value if isinstance(value, list) else [value] * (value is not None)
            codes = [known.setdefault(value, len(known)) for value in values]
        else:
            codes = self._bundle.items.features[column].of(row).tolist()
        self._postings[column].add(row, codes)


def _column_posting(column: pa.ChunkedArray) -> tuple[Posting, list[str]]:
    """Return the inverted list of a column of texts or of lists of texts, and the values by code."""
    values = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    rows_V = np.arange(len(values), dtype=np.int32)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows_V = pc.list_parent_indices(values).to_numpy().astype(np.int32)
        values = pc.list_flatten(values)
    coded = values.dictionary_encode()
    codes_V = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    has_value_V = codes_V >= 0
    listed = coded.dictionary.to_pylist()
    return _sorted(codes_V[has_value_V], rows_V[has_value_V], len(listed)), listed


def _feature_posting(feature: FeatureRows, num_rows: int) -> Posting:
    codes, lengths, _ = feature.take(torch.arange(num_rows))
    rows_V = np.arange(num_rows, dtype=np.int32)
    if lengths is not None:
        rows_V = np.repeat(rows_V, lengths.numpy())
    codes_V = codes.numpy()
    return _sorted(codes_V, rows_V, int(codes_V.max(initial=0)) + 1)


def _sorted(codes_V: NDArray, rows_V: NDArray[np.int32], num_codes: int) -> Posting:
    order_V = np.argsort(codes_V, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes_V, minlength=num_codes))])
    return rows_V[order_V], starts.astype(np.int64)


def _key(conditions: Mapping[str, Sequence[str]]) -> tuple:
    return tuple((name, tuple(values)) for name, values in sorted(conditions.items()))
