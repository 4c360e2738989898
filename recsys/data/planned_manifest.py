"""The manifest that prepared data would have: tables and features of a recipe, without any data.

What enters: a recipe, and the rows of its tables (from launch/plan.py). What leaves: a Manifest in
the order `prepare` writes it, or a prepared one with other row counts.
"""

import dataclasses
from collections.abc import Mapping

from recsys.data.recipe import FeatureRecipe, Recipe
from recsys.errors import UserError
from recsys.schema import FeatureSpec, HistorySpec, Manifest, TableSpec


def outline(recipe: Recipe, rows: Mapping[str, int]) -> Manifest:
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
    tables: list[tuple[str, str, int | None]] = []
    features: list[FeatureSpec] = []

    def side(name: str, key: str | None, given: Mapping[str, FeatureRecipe]) -> None:
        if key is None:
            return
        tables.append((f"{name}_id", "vocab", None))
        features.append(
            FeatureSpec(
                name=f"{name}_id", table=f"{name}_id", source=name, side=name, is_list=False
            )
        )
        for feature_name, feature in given.items():
            add(feature_name, feature, name, name)

    def add(name: str, feature: FeatureRecipe, source: str, of: str) -> None:
        tables.append((name, *_known_rows(feature)))
        is_list = feature.kind == "id_list"
        features.append(FeatureSpec(name=name, table=name, source=source, side=of, is_list=is_list))

    side("item", log.item_id, recipe.items.features if recipe.items else {})
    side("user", log.user_id, recipe.users.features if recipe.users else {})
    for name, feature in log.features.items():
        add(name, feature, "interaction", feature.side or "context")
    history = None
    if log.user_id and log.item_id and recipe.history.max_length:
        history = HistorySpec(**dataclasses.asdict(recipe.history))
        names = ["history"] + ["history_recent"] * bool(history.recent_length)
        features += [
            FeatureSpec(name=name, table="item_id", source="history", side="user", is_list=True)
            for name in names
        ]
    known = {name: count for name, _, count in tables if count is not None}
    missing = [name for name, _, _ in tables if name not in known and name not in rows]
    if missing:
        raise UserError(
            f"rows: recipe {recipe.name!r} is not prepared, and the rows of {', '.join(missing)} are "
            f"not known; give them (rows={{{missing[0]}: 1000000, ...}}), or workspace= with "
            f"prepared data"
        )
    bare = Manifest(
        name=recipe.name,
        tables=tuple(
            TableSpec(name=name, num_rows=known.get(name, 1), kind=kind) for name, kind, _ in tables
        ),
        features=tuple(features),
        splits={},
        num_user_rows=0,
        num_item_rows=0,
        history=history,
        has_images=bool(recipe.items and recipe.items.image),
        has_texts=bool(recipe.items and recipe.items.text),
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


def _known_rows(feature: FeatureRecipe) -> tuple[str, int | None]:
    """Kind of a table, and its rows where the recipe says them."""
    if feature.kind == "numeric":
        cuts = len(feature.cuts) or feature.quantiles - 1
        return "bucket", cuts + 2
    if feature.hash_rows:
        return "hash", feature.hash_rows
    return "vocab", None
