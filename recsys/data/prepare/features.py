"""Features of users, items and interactions: their tables, numbered, and the manifest's entries.

In: catalogues, or the log, with their vocabularies. Out: arrays by user or item row, vocabularies as
files, and for interactions the tables that `interactions` joins.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from recsys.data.prepare.dense import DenseColumn, with_statistics, write_dense
from recsys.data.prepare.engine import Count, Engine, Table, count_rows
from recsys.data.prepare.growth import KnownTable, write_waiting
from recsys.data.prepare.ids import id_column
from recsys.data.prepare.inputs import Catalogue, Inputs
from recsys.data.prepare.vocab import FeatureRows, FeatureTable, value_sql
from recsys.data.prepare.writing import write_array, write_lists, write_vocabulary
from recsys.data.raw_text import column_type
from recsys.data.recipe import FeatureRecipe, Recipe
from recsys.data.specs import dense_spec, feature_spec, id_feature, id_table
from recsys.data.sql import quoted
from recsys.schema import DenseSpec, FeatureSpec, TableSpec


@dataclass(frozen=True)
class Specs:
    """Entries of the manifest."""

    tables: tuple[TableSpec, ...] = ()
    features: tuple[FeatureSpec, ...] = ()
    dense: tuple[DenseSpec, ...] = ()

    def __add__(self, other: "Specs") -> "Specs":
        return Specs(
            self.tables + other.tables, self.features + other.features, self.dense + other.dense
        )

    def with_max_ids(self, longest: Mapping[str, int]) -> "Specs":
        """Return the entries with the most ids of a row; `longest`: by name of a feature of lists."""
        features = [
            dataclasses.replace(feature, max_ids=longest.get(feature.name, feature.max_ids))
            for feature in self.features
        ]
        return dataclasses.replace(self, features=tuple(features))

    def with_column_types(self, recipe: Recipe, inputs: Inputs) -> "Specs":
        """Return the entries with the types of the raw columns, by which requests are read."""

        def kinds(feature: FeatureSpec | DenseSpec) -> list[str]:
            table = feature.table if isinstance(feature, FeatureSpec) else None
            if table in ("user_id", "item_id"):  # ids are those of the log and of the catalogue
                side = table.removesuffix("_id")
                catalogue, column = inputs.catalogue(side), id_column(recipe, side)
                listed = [catalogue.source.kinds[catalogue.id_column]] if catalogue else []
                return listed + [source.kinds[str(column)] for source, _ in inputs.logs]
            sources = [source for source, _ in inputs.logs]
            if feature.source != "interaction" and (catalogue := inputs.catalogue(feature.source)):
                sources = [catalogue.source]
            return [source.kinds[str(feature.column)] for source in sources]

        replace = dataclasses.replace
        return replace(
            self,
            features=tuple(replace(f, column_type=column_type(kinds(f))) for f in self.features),
            dense=tuple(replace(f, column_type=column_type(kinds(f))) for f in self.dense),
        )


def write_ids(engine: Engine, side: str, column: str, vocabulary: Table, prepared: Path) -> Specs:
    """Write the vocabulary of users or items; return the entries of the feature `<side>_id`.

    Args:
        column: of the log.
    """
    table = id_table(side, engine.count(vocabulary) + 1)
    write_vocabulary(engine, vocabulary, table.name, prepared)
    return Specs((table,), (id_feature(side, column),))


def write_training_counts(
    engine: Engine,
    side: str,
    placed: Table,
    *,
    next_row_id: int,
    num_side_rows: int,
    folder: Path,
    count: Count = count_rows,
) -> None:
    """Write how many training rows each user or item has [num_side_rows], of an item also drawn ones.

    Args:
        placed: with row_id, split and `<side>_row`.
        next_row_id: row ids from here on are drawn negatives.
        folder: `users/` or `items/`.
        count: of the rows of `placed`.
    """
    for name, query in count_queries(side, placed, next_row_id, count).items():
        write_array(engine, query, folder / f"{name}.npy", num_side_rows, np.int64)


def count_queries(
    side: str, placed: Table, next_row_id: int, count: Count = count_rows
) -> dict[str, str]:
    """SQL of (key, value), the rows of split 0 by user or item row, of each array of counts."""
    placed.needs("row_id", "split", f"{side}_row")
    counted = {"train_count": "<"} | ({"drawn_count": ">="} if side == "item" else {})
    rows = f"SELECT {side}_row AS key FROM {placed} WHERE split = 0 AND row_id"
    return {
        name: f"SELECT key, n AS value FROM ({count(f'{rows} {which} {next_row_id}')}) ORDER BY key"
        for name, which in counted.items()
    }


def write_catalogue_features(
    engine: Engine, catalogue: Catalogue, vocabulary: Table, num_unknown: int, prepared: Path
) -> Specs:
    """Write the features of a catalogue as arrays by row; return the manifest's entries.

    Args:
        vocabulary: (id, row) of the ids of users or items.
        num_unknown: training rows whose user or item has the unknown row 0.
    """
    num_rows = engine.count(vocabulary) + 1
    folder = prepared / f"{catalogue.side}s"
    specs = Specs()
    for name, feature in catalogue.features.items():
        relation = values_sql(catalogue, name, feature, vocabulary)
        if feature.kind == "dense":
            dense = with_statistics(
                engine,
                dense_spec(name, feature, source=catalogue.side),
                relation,
                has_missing=num_unknown > 0 or _lacks_ids(engine, catalogue, vocabulary),
            )
            write_dense(engine, dense, relation, folder, num_rows)
            specs += Specs(dense=(dense,))
            continue
        table = FeatureTable(engine, name, feature, relation, relation)
        longest = {}
        values = folder / f"{name}.values.npy"
        if table.rows.is_list:
            offsets = folder / f"{name}.offsets.npy"
            weights = folder / f"{name}.weights.npy" if table.rows.is_weighted else None
            query = table.rows.sql()
            _, longest[name] = write_lists(engine, query, values, offsets, num_rows, weights)
        else:
            write_array(engine, table.rows.sql(), values, num_rows, np.int32)
        added = write_table(engine, table, source=catalogue.side, to=prepared)
        specs += added.with_max_ids(longest)
    return specs


def _lacks_ids(engine: Engine, catalogue: Catalogue, vocabulary: Table) -> bool:
    """Return whether the vocabulary has ids that the catalogue does not list."""
    vocabulary.needs("id")
    num_listed = (
        f"SELECT count(*) FROM {vocabulary} v JOIN {catalogue.source.view} s ON v.id = "
        + (f"s.{quoted(catalogue.id_column)}")
    )
    return bool(engine.one(num_listed)[0] < engine.count(vocabulary))


def values_sql(catalogue: Catalogue, name: str, feature: FeatureRecipe, vocabulary: Table) -> str:
    """SQL of (key, value): the raw value of a feature by the user or item row it belongs to."""
    vocabulary.needs("id", "row")
    value = value_sql(feature, name, catalogue.source.lists)
    # A query of its own for the file's columns: they may be called like ours.
    return (
        f"SELECT v.row AS key, s.value FROM (SELECT {quoted(catalogue.id_column)} AS id, "
        f"{value} AS value FROM {catalogue.source.view}) s JOIN {vocabulary} v ON s.id = v.id"
    )


def build_log_features(
    engine: Engine,
    features: dict[str, FeatureRecipe],
    placed: Table,
    next_row_id: int,
    prepared: Path,
    known: Mapping[str, KnownTable] = MappingProxyType({}),
    known_dense: Mapping[str, DenseSpec] = MappingProxyType({}),
    *,
    count: Count = count_rows,
) -> tuple[dict[str, FeatureRows | DenseColumn], Specs]:
    """Build the tables of interaction features from the training rows.

    Args:
        placed: with row_id, split and a column for each feature.
        next_row_id: row ids from here on are drawn negatives, which no vocabulary sees.
        known, known_dense: of an append, tables and dense features by name that it finds; its own rows
            are all of split 0.
        count: of the rows of `placed`.

    Returns:
        The columns by feature, which number the values of `placed`; and the manifest's entries,
        without the most ids of lists.
    """
    placed.needs("row_id", "split", *features)
    columns: dict[str, FeatureRows | DenseColumn] = {}
    specs = Specs()
    for name, feature in features.items():
        rows = f"SELECT row_id AS key, {quoted(name)} AS value FROM {placed}"
        train = f"{rows} WHERE split = 0 AND row_id < {next_row_id}"
        if feature.kind == "dense":
            dense = known_dense.get(name) or with_statistics(
                engine,
                dense_spec(name, feature, source="interaction"),
                train,
                has_missing=False,
                count=count,
            )
            columns[name] = DenseColumn(dense)
            specs += Specs(dense=(dense,))
            continue
        table = FeatureTable(engine, name, feature, rows, train, known=known.get(name), count=count)
        columns[name] = table.rows
        specs += write_table(engine, table, source="interaction", to=prepared)
    return columns, specs


def write_table(engine: Engine, table: FeatureTable, *, source: str, to: Path) -> Specs:
    """Write a feature's vocabulary, if it has one; return the manifest's entries."""
    spec = table.spec()
    if spec.kind == "vocab":
        write_vocabulary(engine, table.vocabulary, table.name, to)
    if table.rare:
        write_waiting(engine, table.name, table.rare, to)
    return Specs((spec,), (feature_spec(table.name, table.feature, source=source),))
