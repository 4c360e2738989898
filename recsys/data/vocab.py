"""Vocabularies: the ids of a column numbered by falling count, then id: equal input gives equal rows.

The tables of features are built here: a vocabulary, or the cuts of a numeric column, as DuckDB tables
and as the manifest's TableSpec. Called by prepare; recsys/data/encode.py has the rules.
"""

import dataclasses
import math
from collections.abc import Container

import duckdb

from recsys.data import encode
from recsys.data.encode import exploded_sql, list_rows_sql, number_sql, row_sql
from recsys.data.quantiles import quantiles
from recsys.data.recipe import FeatureRecipe
from recsys.data.specs import feature_table
from recsys.schema import TableSpec


def value_sql(feature: FeatureRecipe, name: str, lists: Container[str] = ()) -> str:
    """SQL of a feature's column as `encode.value_sql` cleans it: a text, or of an id_list its ids.

    Args:
        lists: columns of the file that hold lists.
    """
    column = feature.column or name
    return encode.value_sql(feature_table(name, feature), column, is_list_column=column in lists)


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
        vocabulary: str,
    ):
        """Build the vocabulary or the buckets.

        Args:
            relation: SQL of all (key, value).
            train_relation: SQL of those the vocabulary may see: the training rows of an interaction
                feature, every row of a catalogue (which holds no labels).
            vocabulary: name of the database table (id, row, count) that a vocabulary becomes.
        """
        self.connection = connection
        self.name = name
        self.feature = feature
        self.relation = relation
        self.vocabulary = vocabulary
        self._spec = feature_table(name, feature)
        if self._spec.kind == "bucket":
            cuts = self._spec.cuts or self._quantiles(train_relation)
            self._spec = dataclasses.replace(self._spec, num_rows=len(cuts) + 2, cuts=cuts)
        elif self._spec.kind == "vocab":
            num_ids = self._build_vocabulary(train_relation)
            self._spec = dataclasses.replace(self._spec, num_rows=num_ids + 1)

    @property
    def is_list(self) -> bool:
        """True where a row may have several ids."""
        return self._spec.is_list

    def spec(self) -> TableSpec:
        """Return the table's entry in the manifest."""
        return self._spec

    def single(self, value: str, alias: str) -> tuple[str, str]:
        """Return SQL of a join and of the row of one text, for a feature that is no list.

        Args:
            value: SQL of the text.
            alias: a name for the joined vocabulary, unique in the query.
        """
        return row_sql(self._spec, value, self.vocabulary, alias)

    def rows_sql(self) -> str:
        """SQL of (key, value) by key: the row; of a list a line for each known id, in its order."""
        if self.is_list:
            return list_rows_sql(self._spec, self.relation, self.vocabulary)
        join, row = self.single("r.value", "v")
        return f"SELECT r.key, {row} AS value FROM ({self.relation}) r {join} ORDER BY r.key"

    def exploded(self) -> str:
        """SQL of (key, position, id): one row per id of a list, blanks left out."""
        return exploded_sql(self.relation)

    def _build_vocabulary(self, relation: str) -> int:
        """Create the vocabulary's table; return how many ids it has."""
        ids = (
            f"SELECT id FROM ({exploded_sql(relation)})"
            if self.is_list
            else f"SELECT value AS id FROM ({relation}) WHERE value IS NOT NULL"
        )
        build_vocabulary(self.connection, self.vocabulary, ids, self.feature.min_count)
        query = f"SELECT count(*) FROM {self.vocabulary}"
        (count,) = self.connection.execute(query).fetchall()[0]
        return count

    def _quantiles(self, relation: str) -> tuple[float, ...]:
        """Upper bounds of buckets of about equal count, by the training values."""
        shares = [(i + 1) / self.feature.quantiles for i in range(self.feature.quantiles - 1)]
        numbers = f"SELECT {number_sql('value')} AS value FROM ({relation})"
        cuts = quantiles(self.connection, numbers, shares)
        return tuple(sorted({cut for cut in cuts if math.isfinite(cut)}))


def build_vocabulary(
    connection: duckdb.DuckDBPyConnection, table: str, ids: str, min_count: int
) -> None:
    """Create `table` (id, row, count) from SQL of one id per occurrence."""
    connection.execute(
        f"CREATE TABLE {table} AS SELECT id, CAST(row_number() OVER (ORDER BY count DESC, id) AS "
        f"INTEGER) AS row, count FROM (SELECT id, count(*) AS count FROM ({ids}) GROUP BY id "
        f"HAVING count(*) >= {min_count})"
    )
