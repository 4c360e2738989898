"""Manifest entries of a recipe's tables and features, as far as the recipe alone tells them.

In: a recipe. Out: TableSpec and FeatureSpec records. Called by prepare, which counts
the rows, and by planned_manifest, which is told them.
"""

import dataclasses

from recsys.data.recipe import FeatureRecipe
from recsys.schema import DenseSpec, FeatureSpec, HistorySpec, TableSpec


def vocabulary_file(name: str) -> str:
    """Return the file of a table's vocabulary, below `prepared/`."""
    return f"vocab/{name}.parquet"


def id_table(side: str, num_rows: int = 1) -> TableSpec:
    """Return the table of the ids of users (side `user`) or items, which are taken as written."""
    name = f"{side}_id"
    file = vocabulary_file(name)
    return TableSpec(name=name, num_rows=num_rows, kind="vocab", vocabulary=file, trim=False)


def id_feature(side: str, column: str) -> FeatureSpec:
    """Return the feature that is the row's own user or item.

    Args:
        column: of the log.
    """
    name = f"{side}_id"
    return FeatureSpec(
        name=name, table=name, source=side, side=side, is_list=False, column=column, max_ids=1
    )


def feature_table(name: str, feature: FeatureRecipe) -> TableSpec:
    """Return a feature's table; 1 row where a vocabulary, and no bucket where quantiles decide."""
    rules = TableSpec(
        name=name,
        num_rows=1,
        kind="vocab",
        extract=feature.extract,
        separator=feature.separator if feature.kind == "id_list" else None,
        weight_separator=feature.weight_separator,
    )
    if feature.kind == "numeric":
        cuts = tuple(float(cut) for cut in feature.cuts)
        return dataclasses.replace(rules, kind="bucket", num_rows=len(cuts) + 2, cuts=cuts)
    if feature.hash_rows:
        return dataclasses.replace(rules, kind="hash", num_rows=feature.hash_rows)
    return dataclasses.replace(rules, vocabulary=vocabulary_file(name))


def feature_spec(name: str, feature: FeatureRecipe, *, source: str) -> FeatureSpec:
    """Return a feature of a column.

    Args:
        source: `item`, `user` or `interaction`: the file that the column is in.
    """
    is_list = feature.kind == "id_list"
    return FeatureSpec(
        name=name,
        table=name,
        source=source,
        side=_side(feature, source),
        is_list=is_list,
        is_weighted=feature.weight_separator is not None,
        column=feature.column or name,
        max_ids=None if is_list else 1,
    )


def dense_spec(name: str, feature: FeatureRecipe, *, source: str) -> DenseSpec:
    """Return a dense feature of a column, without the statistics of its training values.

    Args:
        source: `item`, `user` or `interaction`: the file that the column is in.
    """
    return DenseSpec(
        name=name,
        source=source,
        side=_side(feature, source),
        column=feature.column or name,
        scale=feature.scale,
        extract=feature.extract,
    )


def _side(feature: FeatureRecipe, source: str) -> str:
    return (feature.side or "context") if source == "interaction" else source


def history_features(history: HistorySpec) -> list[FeatureSpec]:
    """Return the features of the user's earlier items: positives, the most recent ones, negatives."""
    return [
        FeatureSpec(
            name=name, table="item_id", source="history", side="user", is_list=True, max_ids=length
        )
        for name, length in history.lengths.items()
        if length
    ]
