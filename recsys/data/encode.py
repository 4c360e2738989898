"""Encoding: raw values to rows of embedding tables, as SQL for prepare and on Arrow arrays for a request.

In: raw columns of a log, users or items file. Out: rows of the tables that a manifest describes. Both
sides of a rule stand one after the other, and a test compares them. prepare uses the
SQL; a server uses `Encoder`, which needs no database. Shapes: N raw values, V ids of all of them.

The rules, in order:

1. Text. Values are compared as text: a number, a boolean or a time as the database writes it, for the
   type that the raw column has (raw_text.py).
2. Cleaning. Blanks around the text are left out, the first group of `extract` is taken, an empty text
   is a null. Nothing else changes: no case, no Unicode form (NFC and NFD are two ids).
3. Lists. A text is cut at the separator; each element is trimmed, empty ones are left out. An element of
   a weighted list is an id and its weight (weighted.py).
4. Row. A vocabulary's number, 1 + a hash, or 1 + the count of cuts below the number. A null, an id
   that the vocabulary lacks and a text that is no number have row 0; in a list they are left out.
"""

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.codes import codes_of
from recsys.data.dataset import as_array
from recsys.data.numbers import number_of, number_sql
from recsys.data.raw_text import as_written, single_texts, texts_of
from recsys.data.sql import literal, quoted
from recsys.data.weighted import parts_sql, split_elements
from recsys.errors import UserError
from recsys.files import PREPARE_AGAIN, reading
from recsys.schema import UNKNOWN_ROW, FeatureSpec, Manifest, TableSpec

BLANKS = "\u0020\u00a0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u202f\u205f\u3000"
"""What trim() takes away: Unicode's space separators, no tabs and no line ends."""


# 2. Cleaning, and 3. lists


def value_sql(table: TableSpec, column: str, *, is_list_column: bool = False) -> str:
    """SQL of the cleaned text of a column, blank as NULL; of a table of lists, of its texts.

    Only a text is cut at the separator: a column of lists says itself where an id ends, and
    extraction reads each element.

    Args:
        is_list_column: whether the file's column holds lists.
    """
    name = quoted(column)
    if table.is_list and is_list_column:
        if not table.extract:
            return name
        return f"list_transform({name}, lambda x: {_extracted_sql('trim(x)', table)})"
    text = _extracted_sql(f"trim({name})" if table.trim else name, table)
    text = f"nullif({text}, '')"
    if table.separator is None:
        return text
    return f"string_split({text}, {literal(table.separator)})"


def _extracted_sql(text: str, table: TableSpec) -> str:
    return f"regexp_extract({text}, {literal(table.extract)}, 1)" if table.extract else text


def exploded_sql(table: TableSpec, relation: str) -> str:
    """SQL of (key, position, id) of SQL of (key, list of texts): a line for each id that is not blank.

    A table of weighted lists has another column, `weight`.
    """
    exploded = (
        f"SELECT key, position, trim(part) AS id FROM (SELECT key, unnest(value) AS part, "
        f"generate_subscripts(value, 1) AS position FROM ({relation})) WHERE trim(part) <> ''"
    )
    if table.weight_separator is None:
        return exploded
    element, weight = parts_sql("id", table.weight_separator)
    return (
        f"SELECT * FROM (SELECT key, position, trim({element}) AS id, {weight} AS weight "
        f"FROM ({exploded})) WHERE id <> ''"
    )


def cleaned(table: TableSpec, texts: pa.Array) -> pa.Array:
    """Return the texts as `value_sql` cleans one that is no list [N]: blank ones are null."""
    if table.trim:
        texts = pc.utf8_trim(texts, characters=BLANKS)
    if table.extract:
        # The same engine as the database's, RE2: the text is replaced by the group of the first match.
        whole = rf"(?s:\A.*?)(?:{table.extract})(?s:.*\z)"
        group = pc.replace_substring_regex(texts, pattern=whole, replacement=r"\1")
        texts = pc.if_else(pc.match_substring_regex(texts, table.extract), group, None)
    return _without_blanks(texts)


def elements(
    table: TableSpec, raw: pa.Array, written: str | None = None
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Return the ids of lists end to end [V], and for each the number of its raw value [V].

    Args:
        raw: lists, or texts that the table's separator cuts [N].
        written: type of the column that prepare read ids from (`as_written`).

    Raises:
        UserError: the values are no lists, and the table has no separator.
    """
    if _holds_lists(raw):
        lists, texts = raw, as_written(texts_of(pc.list_flatten(raw)), written)
        if table.extract:
            texts = cleaned(table, texts)
    elif table.separator is not None:
        lists = pc.split_pattern(cleaned(table, single_texts(raw)), table.separator)
        texts = as_written(pc.list_flatten(lists), written)
    else:
        raise UserError(f"{table.name}: values of type {raw.type}, expected lists of ids")
    if table.trim:
        texts = pc.utf8_trim(texts, characters=BLANKS)
    texts = _without_blanks(texts)
    is_id = pc.is_valid(texts)
    parents_V = as_array(pc.filter(pc.list_parent_indices(lists), is_id).cast(pa.int64()))
    return pc.filter(texts, is_id), parents_V


def weighted_elements(
    table: TableSpec, raw: pa.Array, written: str | None = None
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.float32]]:
    """Return the ids of lists, the numbers of their raw values, and their weights, each [V].

    The weights are 1 where the table's lists have none. Arguments and errors are those of `elements`.

    Raises:
        UserError: a weight is no number of 0 or more.
    """
    texts, parents_V = elements(table, raw, written)
    if table.weight_separator is None:
        return texts, parents_V, np.ones(len(texts), np.float32)
    ids, weights_V = split_elements(table.name, texts.to_pylist(), table.weight_separator)
    texts = pc.utf8_trim(pa.array(ids, pa.large_string()), characters=BLANKS)
    is_id = pc.not_equal(texts, "")
    kept_V = np.flatnonzero(is_id.to_numpy(zero_copy_only=False))
    return pc.filter(texts, is_id), parents_V[kept_V], weights_V[kept_V]


def _holds_lists(raw: pa.Array) -> bool:
    return pa.types.is_list(raw.type) or pa.types.is_large_list(raw.type)


def _without_blanks(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)


# 4. Row


def row_sql(table: TableSpec, value: str, vocabulary: str, alias: str) -> tuple[str, str]:
    """Return SQL of a join and of the row of one cleaned text, for a table that is no list's.

    Args:
        value: SQL of the text.
        vocabulary: database table (id, row) of the vocabulary; only read where there is one.
        alias: a name for the joined vocabulary, unique in the query.
    """
    if table.kind == "bucket":
        # Cuts as texts: SQL would read the digits as decimals, which are not the same numbers.
        cuts = "[" + ", ".join(literal(repr(c)) for c in table.cuts) + "]::DOUBLE[]"
        number = number_sql(value)
        bucket = f"1 + len(list_filter({cuts}, lambda c: c < {number}))"
        return "", f"CAST(CASE WHEN {number} IS NULL THEN 0 ELSE {bucket} END AS INTEGER)"
    if table.kind == "hash":
        row = hash_sql(value, table.num_rows)
        return "", f"CASE WHEN {value} IS NULL THEN 0 ELSE {row} END"
    join = f"LEFT JOIN {vocabulary} {alias} ON {alias}.id = {value}"
    return join, f"coalesce({alias}.row, 0)"


def list_rows_sql(table: TableSpec, relation: str, vocabulary: str) -> str:
    """SQL of (key, value) by key of SQL of (key, list of texts): a row for each known id, in order.

    A table of weighted lists has another column, `weight`.

    Args:
        vocabulary: database table (id, row) of the vocabulary; only read where there is one.
    """
    exploded = f"({exploded_sql(table, relation)}) r"
    weight = ", r.weight" if table.weight_separator is not None else ""
    if table.kind == "hash":
        found, row = exploded, hash_sql("r.id", table.num_rows)
    else:
        found, row = f"{exploded} JOIN {vocabulary} v ON r.id = v.id", "v.row"
    return f"SELECT r.key, {row} AS value{weight} FROM {found} ORDER BY r.key, r.position"


class Vocabulary(Protocol):
    """Rows of the ids of one table: in memory (ListedIds), or in the files of a bundle."""

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of ids [K], which are all different; 0 for those that are not listed."""
        ...


class ListedIds:
    """Vocabulary in memory: a dictionary of every id."""

    def __init__(self, row_by_id: Mapping[str, int]):
        self._row_by_id = row_by_id

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of ids [K]; 0 for those that are not listed."""
        return np.array([self._row_by_id.get(i, UNKNOWN_ROW) for i in ids], dtype=np.int64)


def read_vocabulary(path: Path) -> ListedIds:
    """Return the vocabulary of a file that prepare wrote.

    Raises:
        DamagedFileError: it is missing or broken.
    """
    with reading(path, PREPARE_AGAIN):
        listed = pq.read_table(path, columns=["id", "row"])
        ids, rows = (listed.column(name).to_pylist() for name in ("id", "row"))
    return ListedIds(dict(zip(ids, rows, strict=True)))


def rows_of(
    table: TableSpec, texts: pa.Array, vocabulary: Vocabulary | None = None
) -> NDArray[np.int64]:
    """Return the row of every cleaned text [N].

    Args:
        vocabulary: of the table's ids; None where it has none.
    """
    codes_N, known = codes_of(pa.chunked_array([texts]))
    if table.kind == "bucket":
        rows = np.array([bucket_of(text, table.cuts) for text in known], dtype=np.int64)
    elif table.kind == "hash":
        rows = np.array([hashed_row(text, table.num_rows) for text in known], dtype=np.int64)
    else:
        assert vocabulary is not None, f"{table.name}: ids are listed in a vocabulary"
        rows = vocabulary.rows_of(known)
    # A null has code -1: the last entry.
    return np.append(rows, UNKNOWN_ROW)[codes_N]


def hash_sql(value: str, num_rows: int) -> str:
    """SQL of the row of a hashed id: 1 .. num_rows - 1, row 0 stays unknown.

    The last eight bytes of the id's MD5, little-endian, modulo num_rows - 1: the same in every
    language and every version of the database.
    """
    return f"CAST(1 + md5_number_lower({value}) % {num_rows - 1} AS INTEGER)"


def hashed_row(text: str, num_rows: int) -> int:
    """Return the row of a hashed id, as `hash_sql` does."""
    digest = hashlib.md5(text.encode(), usedforsecurity=False).digest()
    return 1 + int.from_bytes(digest[8:], "little") % (num_rows - 1)


def bucket_of(text: str, cuts: tuple[float, ...]) -> int:
    """Return the row of a number written as text: 1 + the cuts below it, 0 where it is no number."""
    number = number_of(text)
    return UNKNOWN_ROW if number is None else 1 + bisect.bisect_left(cuts, number)


class Encoder:
    """Raw values of a request to the rows that prepare would have written."""

    def __init__(
        self,
        prepared: Path,
        manifest: Manifest,
        vocabularies: Mapping[str, Vocabulary] | None = None,
    ):
        """Take the rules of a manifest; vocabularies are read when first needed.

        Args:
            vocabularies: by table, where they need not be read from `prepared`.

        Raises:
            UserError: the data was prepared by a version that kept no rules.
        """
        if manifest.version < 2:
            raise UserError(
                f"{prepared}: prepared by an earlier version, whose manifest (version "
                f"{manifest.version}, expected 2) has no rules to encode raw values; {PREPARE_AGAIN}"
            )
        self._prepared = prepared
        self._tables = {table.name: table for table in manifest.tables}
        self._features = {feature.name: feature for feature in manifest.features}
        self._vocabularies = dict(vocabularies or {})

    def encode(
        self, name: str, raw: pa.Array | pa.ChunkedArray
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Return a feature's rows of all values end to end [V], and how many each value has [N].

        A feature that is no list has one row for each value. A longer list than any prepared one is
        cut to the first `max_ids` of its known ids; a history (item ids, oldest first) to the last.

        Args:
            raw: a column of the raw file, or of JSON values (`json_array`) [N]; for a history, lists
                of item ids.

        Raises:
            UserError: no such feature; a type that cannot be read; a list where one value belongs.
        """
        feature = self._feature(name)
        table = self._tables[feature.table]
        values = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
        if feature.is_list:
            rows_V, lengths_N, _ = self.encode_weighted(name, values)
            return rows_V, lengths_N
        if _holds_lists(values):
            raise UserError(f"{name}: values of type {values.type}, expected one value each")
        texts = cleaned(table, single_texts(values, feature.column_type))
        return rows_of(table, texts, self._vocabulary(table)), np.ones(len(values), dtype=np.int32)

    def encode_weighted(
        self, name: str, raw: pa.Array
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """Return the rows of a feature of lists [V], as `encode`, the lengths [N] and the weights [V].

        Raises:
            UserError: as `encode`; a weight is no number of 0 or more.
        """
        feature = self._feature(name)
        table = self._tables[feature.table]
        texts, parents_V, weights_V = weighted_elements(table, raw, feature.column_type)
        rows_V = rows_of(table, texts, self._vocabulary(table))
        kept_V, lengths_N = _kept(feature, rows_V, parents_V, len(raw))
        return rows_V[kept_V], lengths_N, weights_V[kept_V]

    def _feature(self, name: str) -> FeatureSpec:
        if name not in self._features:
            known = ", ".join(self._features)
            raise UserError(f"feature {name!r}: not in the manifest, which has {known}")
        return self._features[name]

    def _vocabulary(self, table: TableSpec) -> Vocabulary | None:
        if table.vocabulary is not None and table.name not in self._vocabularies:
            self._vocabularies[table.name] = read_vocabulary(self._prepared / table.vocabulary)
        return self._vocabularies.get(table.name)


def _kept(
    feature: FeatureSpec, rows_V: NDArray[np.int64], parents_V: NDArray[np.int64], num_values: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return places of the known rows of lists, cut to the feature's longest; lengths [num_values]."""
    kept_V = np.flatnonzero(rows_V != UNKNOWN_ROW)
    parents_V = parents_V[kept_V]
    lengths_N = np.bincount(parents_V, minlength=num_values)
    if feature.max_ids is not None:
        place_V = np.arange(len(kept_V)) - (np.cumsum(lengths_N) - lengths_N)[parents_V]
        if feature.source == "history":
            place_V = lengths_N[parents_V] - 1 - place_V
        kept_V = kept_V[place_V < feature.max_ids]
        lengths_N = np.minimum(lengths_N, feature.max_ids)
    return kept_V, lengths_N.astype(np.int32)
