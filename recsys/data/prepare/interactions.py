"""Interactions: the rows of every split as Parquet files, in seeded random order.

In: `placed`, the ends of the rows' histories and the tables of interaction features. Out: the files of
interactions/ and the splits' entries of the manifest.
"""

from collections.abc import Sequence
from pathlib import Path

from recsys.data.prepare.dense import DenseColumn
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.split import order_hash
from recsys.data.prepare.vocab import FeatureTable
from recsys.data.prepare.writing import list_table, write_parts
from recsys.data.recipe import SPLITS, InteractionsRecipe, Recipe
from recsys.data.sql import quoted
from recsys.schema import SplitSpec, weights_column

UNKNOWN_USER_SQL = (
    "CASE WHEN p.user_row = 0 THEN md5_number_lower(p.user_id) ELSE 0::UBIGINT END AS unknown_user"
)
"""Tells the users of the unknown row apart, for evaluation: a hash of the id, 0 for known users."""


def write_interactions(
    engine: Engine,
    recipe: Recipe,
    placed: Table,
    ends: Table | None,
    features: dict[str, FeatureTable | DenseColumn],
    prepared: Path,
    names: Sequence[str] = SPLITS,
) -> tuple[dict[str, SplitSpec], dict[str, int]]:
    """Write the splits as Parquet parts; return their entries, and the longest list of each feature.

    Args:
        names: of the splits by their number in `placed`.
        placed: dropped as soon as it is no longer needed: it is as long as the log.
        ends: (row_id, history_end), if there are histories.
        features: tables and numbers of the interaction features, whose values `placed` holds.
    """
    log = recipe.interactions
    columns = _own_columns(log)
    joins = ""
    # Numbered before `placed` is replaced: the features' SQL reads it.
    lists = {
        name: list_table(engine, table.rows_sql())
        for name, table in features.items()
        if isinstance(table, FeatureTable) and table.is_list
    }
    longest = {
        name: engine.one(f"SELECT coalesce(max(len(value)), 0) FROM {rows}")[0]
        for name, rows in lists.items()
    }
    if ends:
        columns.append("p.history_end")
        added = "p.*, coalesce(j.history_end, 0) AS history_end"
        placed = _extended(engine, placed, added, ends, "row_id")
    for name, rows in lists.items():
        replaced = f"p.* REPLACE (coalesce(j.value, []::INTEGER[]) AS {quoted(name)})"
        if "weight" in rows.columns:
            weights = quoted(weights_column(name))
            replaced += f", coalesce(j.weight, []::FLOAT[]) AS {weights}"
            columns.append(f"p.{weights}")
        placed = _extended(engine, placed, replaced, rows, "key")
    for index, (name, table) in enumerate(features.items()):
        join, row = "", f"p.{quoted(name)}"
        if not table.is_list:
            # Joins the vocabulary, never the log with itself: memory would follow its length.
            join, row = table.single(f"p.{quoted(name)}", f"f{index}")
        columns.append(f"{row} AS {quoted(name)}")
        joins += f" {join}"
    order = f"{order_hash(recipe.split.seed, 'p.row_id')}, p.row_id"
    splits = {}
    for index, name in enumerate(names):
        query = (
            f"SELECT {', '.join(columns)} FROM {placed} p{joins} WHERE p.split = {index} "
            f"ORDER BY {order}"
        )
        files, file_rows = write_parts(engine, query, prepared, f"interactions/{name}")
        splits[name] = _split_spec(engine, placed, index, files, file_rows, bool(log.timestamp))
    return splits, longest


def _own_columns(log: InteractionsRecipe) -> list[str]:
    """Return SQL of the columns that a row has beside its history and its features."""
    columns = ["p.row_id", "p.label"]
    columns += ["p.user_row"] * bool(log.user_id) + ["p.item_row"] * bool(log.item_id)
    columns += [UNKNOWN_USER_SQL] * bool(log.user_id)
    columns += ["p.sample_weight"] * bool(log.weight)
    return columns + ["p.ts AS timestamp"] * bool(log.timestamp)


def _extended(engine: Engine, placed: Table, columns: str, other: Table, key: str) -> Table:
    """Return `placed` p with columns of a table j as long as the log, joined by row id; drop `placed`.

    One such join at a time: several side by side would need memory for each at once.
    """
    other.needs(key)
    extended = engine.create(
        "placed", f"SELECT {columns} FROM {placed} p LEFT JOIN {other} j ON j.{key} = p.row_id"
    )
    engine.drop(placed)
    return extended


def _split_spec(
    engine: Engine,
    placed: Table,
    split: int,
    files: list[str],
    file_rows: list[int],
    has_times: bool,
) -> SplitSpec:
    num_positives, low, high = engine.one(
        f"SELECT count(*) FILTER (WHERE label = 1), min(ts), max(ts) FROM {placed} "
        f"WHERE split = {split}"
    )
    return SplitSpec(
        num_rows=sum(file_rows),
        num_positives=num_positives,
        files=tuple(files),
        file_rows=tuple(file_rows),
        timestamp_min=low if has_times else None,
        timestamp_max=high if has_times else None,
    )
