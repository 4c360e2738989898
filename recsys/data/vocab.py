"""Vocabularies: ids of a column to rows of a table, row 0 unknown; hashing and buckets beside them.

All of it as SQL over DuckDB tables, called by prepare. A vocabulary is ordered by falling count, then
id, so that equal input gives equal rows.
"""

import math
from collections.abc import Container

import duckdb

from recsys.data.quantiles import quantiles
from recsys.data.recipe import FeatureRecipe
from recsys.data.sql import literal, quoted
from recsys.schema import TableSpec


def value_sql(feature: FeatureRecipe, name: str, lists: Container[str] = ()) -> str:
    """SQL of a feature's column, extraction applied: a text, blank as NULL; of an id_list its ids.

    Only a text is split at the separator: a column of lists says itself where an id ends, and
    extraction reads each element.

    Args:
        lists: columns of the file that hold lists.
    """
    column = feature.column or name
    if feature.kind == "id_list" and column in lists:
        if not feature.extract:
            return quoted(column)
        return f"list_transform({quoted(column)}, lambda x: {_extracted('trim(x)', feature)})"
    text = f"nullif({_extracted(f'trim({quoted(column)})', feature)}, '')"
    if feature.kind == "id_list":
        return f"string_split({text}, {literal(feature.separator)})"
    return text


def _extracted(text: str, feature: FeatureRecipe) -> str:
    return f"regexp_extract({text}, {literal(feature.extract)}, 1)" if feature.extract else text


def number_sql(value: str) -> str:
    """SQL of a text as a number: NULL where there is none."""
    return f"nullif(try_cast({value} AS DOUBLE), 'nan'::DOUBLE)"


def hash_row(value: str, num_rows: int) -> str:
    """SQL of the row of a hashed id: 1 .. num_rows - 1, row 0 stays unknown.

    The last eight bytes of the id's MD5, little-endian, modulo num_rows - 1: the same in every
    language and every version of the database.
    """
    return f"CAST(1 + md5_number_lower({value}) % {num_rows - 1} AS INTEGER)"


class FeatureTable:
    """A feature's table being built: from the texts of a column to rows.

    `relation` has the columns `key` (the row the value belongs to) and `value` (a text, of an id_list
    a list of texts, or NULL: see `value_sql`).
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        name: str,
        feature: FeatureRecipe,
        relation: str,
        train_relation: str,
    ):
        """Build the vocabulary or the buckets.

        Args:
            relation: SQL of all (key, value).
            train_relation: SQL of those the vocabulary may see: the training rows of an interaction
                feature, every row of a catalogue (which holds no labels).
        """
        self.connection = connection
        self.name = name
        self.feature = feature
        self.relation = relation
        self.vocabulary = f"vocab_{name}"
        if feature.kind == "numeric":
            self.cuts = self._cuts(train_relation)
        elif not feature.hash_rows:
            self._build_vocabulary(train_relation)

    @property
    def is_list(self) -> bool:
        """Whether a row may have several ids."""
        return self.feature.kind == "id_list"

    def spec(self) -> TableSpec:
        """Return the table's entry in the manifest."""
        if self.feature.kind == "numeric":
            return TableSpec(name=self.name, num_rows=len(self.cuts) + 2, kind="bucket")
        if self.feature.hash_rows:
            return TableSpec(name=self.name, num_rows=self.feature.hash_rows, kind="hash")
        query = f"SELECT count(*) FROM {self.vocabulary}"
        (count,) = self.connection.execute(query).fetchall()[0]
        return TableSpec(name=self.name, num_rows=count + 1, kind="vocab")

    def single(self, value: str, alias: str) -> tuple[str, str]:
        """Return SQL of a join and of the row of one text, for a feature that is no list.

        Args:
            value: SQL of the text.
            alias: a name for the joined vocabulary, unique in the query.
        """
        if self.feature.kind == "numeric":
            # Cuts as texts: SQL would read the digits as decimals, which are not the same numbers.
            cuts = "[" + ", ".join(literal(repr(c)) for c in self.cuts) + "]::DOUBLE[]"
            number = number_sql(value)
            bucket = f"1 + len(list_filter({cuts}, lambda c: c < {number}))"
            return "", f"CAST(CASE WHEN {number} IS NULL THEN 0 ELSE {bucket} END AS INTEGER)"
        if self.feature.hash_rows:
            row = hash_row(value, self.feature.hash_rows)
            return "", f"CASE WHEN {value} IS NULL THEN 0 ELSE {row} END"
        join = f"LEFT JOIN {self.vocabulary} {alias} ON {alias}.id = {value}"
        return join, f"coalesce({alias}.row, 0)"

    def rows_sql(self) -> str:
        """SQL of (key, value) by key: the row; of a list a line for each known id, in its order."""
        if not self.is_list:
            join, row = self.single("r.value", "v")
            return f"SELECT r.key, {row} AS value FROM ({self.relation}) r {join} ORDER BY r.key"
        if self.feature.hash_rows:
            found, row = f"({self.exploded()}) r", hash_row("r.id", self.feature.hash_rows)
        else:
            found, row = f"({self.exploded()}) r JOIN {self.vocabulary} v ON r.id = v.id", "v.row"
        return f"SELECT r.key, {row} AS value FROM {found} ORDER BY r.key, r.position"

    def exploded(self) -> str:
        """SQL of (key, position, id): one row per id of a list, blanks left out."""
        return self._exploded(self.relation)

    def _exploded(self, relation: str) -> str:
        return (
            f"SELECT key, position, trim(part) AS id FROM (SELECT key, unnest(value) AS part, "
            f"generate_subscripts(value, 1) AS position FROM ({relation})) WHERE trim(part) <> ''"
        )

    def _build_vocabulary(self, relation: str) -> None:
        ids = (
            f"SELECT id FROM ({self._exploded(relation)})"
            if self.is_list
            else f"SELECT value AS id FROM ({relation}) WHERE value IS NOT NULL"
        )
        build_vocabulary(self.connection, self.vocabulary, ids, self.feature.min_count)

    def _cuts(self, relation: str) -> list[float]:
        """Upper bounds of the buckets: as given, or quantiles of the training values."""
        if self.feature.cuts:
            return list(self.feature.cuts)
        shares = [(i + 1) / self.feature.quantiles for i in range(self.feature.quantiles - 1)]
        numbers = f"SELECT {number_sql('value')} AS value FROM ({relation})"
        cuts = quantiles(self.connection, numbers, shares)
        return sorted({cut for cut in cuts if math.isfinite(cut)})


def build_vocabulary(
    connection: duckdb.DuckDBPyConnection, table: str, ids: str, min_count: int
) -> None:
    """Create `table` (id, row, count) from SQL of one id per occurrence."""
    connection.execute(
        f"CREATE TABLE {table} AS SELECT id, CAST(row_number() OVER (ORDER BY count DESC, id) AS "
        f"INTEGER) AS row, count FROM (SELECT id, count(*) AS count FROM ({ids}) GROUP BY id "
        f"HAVING count(*) >= {min_count})"
    )
