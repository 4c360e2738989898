"""The manifest that prepared data would have: tables and features of a recipe, without any data.

In: a recipe, and the rows of its tables (from launch/plan.py). Out: a Manifest in
the order `prepare` writes it, or a prepared one with other row counts.
"""

import dataclasses
from collections.abc import Mapping

from recsys.data.recipe import FeatureRecipe, Recipe
from recsys.data.specs import (
    dense_spec,
    feature_spec,
    feature_table,
    history_features,
    id_feature,
    id_table,
)
from recsys.errors import UserError
from recsys.schema import DenseSpec, FeatureSpec, HistorySpec, Manifest, TableSpec


def planned_manifest(recipe: Recipe, rows: Mapping[str, int]) -> Manifest:
    """Return the manifest of a data set that need not exist.

    Args:
        recipe: names the tables and features.
        rows: rows by table name, the unknown row included. Hashed tables and buckets whose cuts
            are given know theirs.

    Raises:
        UserError: rows of tables that the recipe does not have, fewer than 1 row, or tables
            without rows; all at once.
    """
    log = recipe.interactions
    tables: list[TableSpec] = []
    features: list[FeatureSpec] = []
    dense: list[DenseSpec] = []

    def add(source: str, given: Mapping[str, FeatureRecipe]) -> None:
        for name, feature in given.items():
            if feature.kind == "dense":
                dense.append(dense_spec(name, feature, source=source))
                continue
            tables.append(_with_known_rows(feature_table(name, feature), feature))
            features.append(feature_spec(name, feature, source=source))

    for side, key, catalogue in (
        ("item", log.item_id, recipe.items),
        ("user", log.user_id, recipe.users),
    ):
        if key is not None:
            tables.append(id_table(side))
            features.append(id_feature(side, key))
            add(side, catalogue.features if catalogue else {})
    add("interaction", log.features)
    history = None
    if log.user_id and log.item_id and recipe.history.max_length:
        history = HistorySpec(**dataclasses.asdict(recipe.history))
        features += history_features(history)
    missing = [t.name for t in tables if t.kind == "vocab" and t.name not in rows]
    if missing:
        raise UserError(
            f"rows: recipe {recipe.name!r} is not prepared, and the rows of {', '.join(missing)} are "
            f"not known; give them (rows={{{missing[0]}: 1000000, ...}}), or workspace= with "
            f"prepared data"
        )
    bare = Manifest(
        name=recipe.name,
        tables=tuple(tables),
        features=tuple(features),
        dense=tuple(dense),
        splits={},
        num_user_rows=0,
        num_item_rows=0,
        history=history,
        has_images=bool(recipe.items and recipe.items.image),
        has_texts=bool(recipe.items and recipe.items.text),
        vectors=dict.fromkeys(recipe.items.vectors, "") if recipe.items else {},
    )
    return with_rows(bare, rows)


def with_rows(manifest: Manifest, rows: Mapping[str, int]) -> Manifest:
    """Return the manifest with other row counts; users and items follow their tables.

    Raises:
        UserError: a table that is not there, or fewer than 1 row; all at once.
    """
    names = [table.name for table in manifest.tables]
    problems = [
        f"rows.{name}: no such table; the data has {', '.join(names)}"
        for name in rows
        if name not in names
    ]
    problems += [
        f"rows.{name}={count}: expected 1 or more (row 0, the unknown, included)"
        for name, count in rows.items()
        if count < 1
    ]
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
    tables = tuple(
        dataclasses.replace(table, num_rows=rows.get(table.name, table.num_rows))
        for table in manifest.tables
    )
    counts = {table.name: table.num_rows for table in tables}
    return dataclasses.replace(
        manifest,
        tables=tables,
        num_user_rows=counts.get("user_id", manifest.num_user_rows),
        num_item_rows=counts.get("item_id", manifest.num_item_rows),
    )


def _with_known_rows(table: TableSpec, feature: FeatureRecipe) -> TableSpec:
    """Return a table with the buckets that quantiles would give it."""
    if table.kind != "bucket" or table.cuts:
        return table
    return dataclasses.replace(table, num_rows=feature.quantiles + 1)
