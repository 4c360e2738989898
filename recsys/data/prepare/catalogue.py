"""Users and items as tables of their own: users.parquet and items.parquet, by row.

In: the vocabularies and the items file. Out: the files that embedding, evaluation and reports read;
row 0 is the unknown.
"""

import hashlib
from pathlib import Path

from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.features import values_sql
from recsys.data.prepare.growth import KnownIds, KnownTable
from recsys.data.prepare.inputs import Catalogue
from recsys.data.prepare.pictures import image_sql
from recsys.data.prepare.sources import Source
from recsys.data.prepare.vocab import FeatureTable
from recsys.data.prepare.writing import list_table, write_by_row, write_parquet
from recsys.data.recipe import ItemsRecipe
from recsys.data.specs import feature_table
from recsys.data.sql import quoted

TEXTS = ("image", "text", "title", "artist", "content")
"""Columns of items.parquet between the id and the tags."""
COLUMNS = ("item_row", "item_id", *TEXTS, "tags")
"""Columns of items.parquet."""


def write_users(engine: Engine, vocabulary: Table, prepared: Path) -> None:
    """Write users.parquet: user_row, user_id."""
    write_parquet(
        engine,
        f"SELECT 0 AS user_row, NULL AS user_id UNION ALL "
        f"(SELECT row, id FROM {vocabulary} ORDER BY row)",
        prepared / "users.parquet",
    )


def write_items(
    engine: Engine,
    vocabulary: Table,
    items: ItemsRecipe | None,
    catalogue: Catalogue | None,
    prepared: Path,
) -> None:
    """Write items.parquet: what embed and reports need to know of an item.

    Args:
        items, catalogue: the items file, if there is one.
    """
    nothing = ", ".join("NULL" for _ in range(len(COLUMNS) - 1))
    query = items_sql(engine, vocabulary, items, catalogue)
    count = engine.count(vocabulary) + 1
    with engine.joins_as_written():
        write_by_row(
            engine,
            f"SELECT 0 AS item_row, {nothing} UNION ALL {query}",
            prepared / "items.parquet",
            key="item_row",
            names=list(COLUMNS),
            count=count,
        )


def items_sql(
    engine: Engine,
    vocabulary: Table,
    items: ItemsRecipe | None,
    catalogue: Catalogue | None,
    known_tags: Table | None = None,
) -> str:
    """SQL of the columns of items.parquet of the items of a vocabulary.

    Args:
        items, catalogue: the items file, if there is one.
        known_tags: of an append, the tags of earlier items (id, row, count), which stay tags.
    """
    source = f"{vocabulary} v"
    columns = {name: "NULL" for name in TEXTS}
    tags = None
    if items and catalogue:
        # A query of its own for the file's columns: they may be called like ours.
        named = ", ".join(f"{sql} AS {n}" for n, sql in _texts_sql(items, catalogue.source).items())
        # The texts come first, to be streamed past the ids (Engine.joins_as_written).
        source = (
            f"(SELECT {quoted(items.item_id)} AS id, {named} FROM {catalogue.source.view}) s "
            f"RIGHT JOIN {vocabulary} v ON s.id = v.id"
        )
        columns = {name: f"s.{name}" for name in TEXTS}
        if items.tags:
            tags = list_table(engine, _tags_sql(engine, items, catalogue, vocabulary, known_tags))
            source += f" LEFT JOIN {tags} t ON t.key = v.row"
    shown_tags = "t.value" if tags else "CAST(NULL AS VARCHAR[])"
    texts = ", ".join(f"CAST({sql} AS VARCHAR) AS {name}" for name, sql in columns.items())
    return f"SELECT v.row AS item_row, v.id AS item_id, {texts}, {shown_tags} AS tags FROM {source}"


def _texts_sql(items: ItemsRecipe, source: Source) -> dict[str, str]:
    """Return SQL of each text of an item, NULL where the recipe names none."""
    columns = {name: "NULL" for name in TEXTS}
    if items.image:
        columns["image"] = image_sql(items.image)
    if items.text:
        parts = ", ".join(_text_sql(column, source) for column in items.text)
        columns["text"] = f"nullif(concat_ws('. ', {parts}), '')"
    for name in ("title", "artist", "content"):
        if column := getattr(items, name):
            columns[name] = f"nullif(trim({quoted(column)}), '')"
    return columns


def _text_sql(column: str, source: Source) -> str:
    """SQL of one column of items.text: the elements of a list joined by ", ", blank as NULL."""
    text = f"trim({quoted(column)})"
    if column in source.lists:
        elements = f"list_transform({quoted(column)}, lambda x: nullif(trim(x), ''))"
        text = f"array_to_string({elements}, ', ')"
    return f"nullif({text}, '')"


def _tags_sql(
    engine: Engine,
    items: ItemsRecipe,
    catalogue: Catalogue,
    vocabulary: Table,
    known_tags: Table | None,
) -> str:
    """SQL of (key, value) by key: the distinct tags of every item, over all tag columns."""
    parts = []
    for name, feature in items.tags.items():
        relation = values_sql(catalogue, name, feature, vocabulary)
        known = None
        if known_tags:
            spec, ids = feature_table(name, feature), KnownIds(vocabulary=known_tags)
            known = KnownTable(spec=spec, ids=ids)
        table = FeatureTable(engine, name, feature, relation, relation, known=known)
        listed = (
            table.rows.exploded()
            if table.rows.is_list
            else f"SELECT key, value AS id FROM ({relation})"
        )
        parts.append(
            f"SELECT e.key, e.id FROM ({listed}) e JOIN {table.vocabulary} v ON e.id = v.id"
        )
    return (
        f"SELECT DISTINCT key, id AS value FROM ({' UNION ALL '.join(parts)}) ORDER BY key, value"
    )


def items_checksum(engine: Engine, vocabulary: Table) -> str:
    """Return sha256 over the item ids in row order."""
    digest = hashlib.sha256()
    for batch in engine.batches(f"SELECT id FROM {vocabulary} ORDER BY row"):
        for item_id in batch.column("id").to_pylist():
            digest.update(item_id.encode() + b"\0")
    return digest.hexdigest()
