"""Vocabularies: the ids of a column numbered by falling count, then id: equal input gives equal rows.

The tables of features are built here: a vocabulary, or the cuts of a numeric column, as tables of the
database and as the manifest's TableSpec. recsys/data/encode.py has the rules.
"""

import dataclasses
import math
from collections.abc import Container
from dataclasses import dataclass

from recsys.data import encode
from recsys.data.encode import exploded_sql, list_rows_sql, row_sql
from recsys.data.numbers import number_sql
from recsys.data.prepare.engine import Count, Engine, Table, count_rows
from recsys.data.prepare.growth import (
    KnownIds,
    KnownTable,
    create_vocabulary,
    grow_vocabulary,
    rare_ids,
    row_number_sql,
)
from recsys.data.prepare.quantiles import quantiles
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


@dataclass(frozen=True, kw_only=True)
class FeatureRows:
    """SQL of a feature's rows: from the texts of a column to rows of the feature's table."""

    spec: TableSpec
    relation: str
    """SQL of the columns `key` (the row the value belongs to) and `value` (a text, of an id_list a list
    of texts, or NULL: see `value_sql`)."""
    vocabulary: Table | None
    """(id, row, count); None where the spec's kind is not `vocab`."""

    @property
    def is_weighted(self) -> bool:
        """True where the ids of a list have weights."""
        return self.spec.weight_separator is not None

    @property
    def is_list(self) -> bool:
        """True where a row may have several ids."""
        return self.spec.is_list

    def single(self, value: str, alias: str) -> tuple[str, str]:
        """Return SQL of a join and of the row of one text, for a feature that is no list.

        Args:
            value: SQL of the text.
            alias: a name for the joined vocabulary, unique in the query.
        """
        return row_sql(self.spec, value, str(self.vocabulary), alias)

    def sql(self) -> str:
        """SQL of (key, value) by key: the row; of a list a line for each known id, in its order.

        Weighted lists have another column, `weight`.
        """
        if self.is_list:
            return list_rows_sql(self.spec, self.relation, str(self.vocabulary))
        join, row = self.single("r.value", "v")
        return f"SELECT r.key, {row} AS value FROM ({self.relation}) r {join} ORDER BY r.key"

    def exploded(self) -> str:
        """SQL of (key, position, id): one row per id of a list, blanks left out."""
        return exploded_sql(self.spec, self.relation)

    def ids(self) -> str:
        """SQL of one id per occurrence."""
        if self.is_list:
            return f"SELECT id FROM ({self.exploded()})"
        return f"SELECT value AS id FROM ({self.relation}) WHERE value IS NOT NULL"


class FeatureTable:
    """A feature's table being built: its vocabulary or buckets, and the rows of its values."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        feature: FeatureRecipe,
        relation: str,
        train_relation: str,
        *,
        known: KnownTable | None = None,
        fresh_relation: str | None = None,
        count: Count = count_rows,
    ):
        """Build the vocabulary or the buckets.

        Args:
            relation: SQL of all (key, value), as FeatureRows has it.
            train_relation: SQL of those the vocabulary may see: the training rows of an interaction
                feature, every row of a catalogue (which holds no labels).
            known: the table that is appended to: cuts stay, and new ids follow the known ones.
            fresh_relation: of an append, SQL of those whose ids were never counted; None: all.
            count: of the training rows.
        """
        self.engine = engine
        self.name = name
        self.feature = feature
        self._relation = relation
        self._count = count
        self._vocabulary: Table | None = None
        self.rare: str | None = None
        """SQL of (id, count) of the ids that have no row; None: none can be too rare."""
        self._spec = known.spec if known else feature_table(name, feature)
        if self._spec.kind == "bucket" and not known:
            cuts = self._spec.cuts or self._quantiles(train_relation)
            self._spec = dataclasses.replace(self._spec, num_rows=len(cuts) + 2, cuts=cuts)
        elif self._spec.kind == "vocab":
            self._vocabulary = self._numbered(
                self._ids(train_relation),
                known.ids if known else None,
                self._ids(fresh_relation) if fresh_relation else None,
            )
            num_ids = engine.count(self._vocabulary)
            self._spec = dataclasses.replace(self._spec, num_rows=num_ids + 1)

    @property
    def vocabulary(self) -> Table:
        """The table (id, row, count); asked for only where the spec's kind is `vocab`."""
        assert self._vocabulary is not None, f"{self.name}: a {self._spec.kind} has no vocabulary"
        return self._vocabulary

    def spec(self) -> TableSpec:
        """Return the table's entry in the manifest."""
        return self._spec

    @property
    def rows(self) -> FeatureRows:
        """Rows of the values."""
        return FeatureRows(spec=self._spec, relation=self._relation, vocabulary=self._vocabulary)

    def _ids(self, relation: str) -> str:
        """SQL of one id per occurrence of SQL of (key, value)."""
        return dataclasses.replace(self.rows, relation=relation).ids()

    def _numbered(self, ids: str, known: KnownIds | None, fresh: str | None) -> Table:
        """Return the vocabulary of SQL of one id per occurrence, and set `rare`."""
        min_count, key = self.feature.min_count, f"features.{self.name}.min_count"
        counted = self._count(ids)
        if known is None:
            # A feature may have any name, also one that SQL cannot read.
            vocabulary = build_vocabulary(self.engine, "vocab", counted, min_count, key)
            rare = rare_ids(counted, vocabulary)
        else:
            vocabulary, waiting = grow_vocabulary(
                self.engine,
                known,
                counted,
                min_count=min_count,
                key=key,
                fresh=self._count(fresh) if fresh else None,
            )
            rare = f"SELECT * FROM {waiting}"
        self.rare = rare if min_count > 1 else None
        return vocabulary

    def _quantiles(self, relation: str) -> tuple[float, ...]:
        """Upper bounds of buckets of about equal count, by the training values."""
        shares = [(i + 1) / self.feature.quantiles for i in range(self.feature.quantiles - 1)]
        numbers = f"SELECT {number_sql('value')} AS value FROM ({relation})"
        cuts = quantiles(self.engine, numbers, shares, self._count)
        return tuple(sorted({cut for cut in cuts if math.isfinite(cut)}))


def build_vocabulary(engine: Engine, name: str, counted: str, min_count: int, key: str) -> Table:
    """Return the table (id, row, count) of SQL of the different ids and their occurrences (id, n).

    Args:
        name: for people who look into the database.
        key: that sets `min_count`.

    Raises:
        UserError: there are more ids than rows can be numbered.
    """
    query = (
        f"SELECT id, {row_number_sql()} AS row, n AS count FROM ({counted}) WHERE n >= {min_count}"
    )
    return create_vocabulary(engine, name, query, key)
