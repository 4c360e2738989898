"""Interactions: the rows of every split as Parquet files, in seeded random order.

In: `placed`, the ends of the rows' histories and the tables of interaction features. Out: the files of
interactions/ and the splits' entries of the manifest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys.data.prepare.dense import DenseColumn
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.numbering import SplitCounts, count_splits
from recsys.data.prepare.split import order_hash
from recsys.data.prepare.vocab import FeatureRows
from recsys.data.prepare.writing import list_table, write_parts
from recsys.data.recipe import SPLITS, InteractionsRecipe, Recipe
from recsys.data.sql import quoted
from recsys.schema import SplitSpec, weights_column

UNKNOWN_USER_SQL = (
    "CASE WHEN p.user_row = 0 THEN md5_number_lower(p.user_id) ELSE 0::UBIGINT END AS unknown_user"
)
"""Tells the users of the unknown row apart, for evaluation: a hash of the id, 0 for known users."""


@dataclass(frozen=True, kw_only=True)
class SplitRows:
    """SQL of the rows that the files of the splits have."""

    columns: tuple[str, ...]
    """SQL of each column of the files, over `relation`."""
    relation: str
    """SQL that can follow FROM, with the table `p` of all splits' rows."""
    longest: dict[str, int]
    """Most ids of a row, by feature of lists."""


def write_interactions(
    engine: Engine,
    recipe: Recipe,
    placed: Table,
    ends: Table | None,
    features: Mapping[str, FeatureRows | DenseColumn],
    prepared: Path,
    names: Sequence[str] = SPLITS,
) -> tuple[dict[str, SplitSpec], dict[str, int]]:
    """Write the splits as Parquet parts; return their entries, and the longest list of each feature.

    Args:
        names: of the splits by their number in `placed`.
        placed: dropped as soon as it is no longer needed: it is as long as the log.
        ends: (row_id, <sequence>_end...), if there are histories.
        features: tables and numbers of the interaction features, whose values `placed` holds.
    """
    counts = count_splits(engine, placed)
    rows = split_rows(engine, recipe.interactions, placed, ends, features)
    order = f"{order_hash(recipe.split.seed, 'p.row_id')}, p.row_id"
    splits = {}
    for index, name in enumerate(names):
        query = (
            f"SELECT {', '.join(rows.columns)} FROM {rows.relation} WHERE p.split = {index} "
            f"ORDER BY {order}"
        )
        files, file_rows = write_parts(engine, query, prepared, f"interactions/{name}")
        splits[name] = split_spec(counts[index], files, file_rows, recipe.interactions)
    return splits, rows.longest


def split_rows(
    engine: Engine,
    log: InteractionsRecipe,
    placed: Table,
    ends: Table | None,
    features: Mapping[str, FeatureRows | DenseColumn],
) -> SplitRows:
    """Return the rows of all splits with their histories and features; arguments as above."""
    columns = _own_columns(log)
    joins = ""
    # Numbered before `placed` is replaced: the features' SQL reads it.
    lists = {
        name: list_table(engine, table.sql())
        for name, table in features.items()
        if isinstance(table, FeatureRows) and table.is_list
    }
    longest = {
        name: engine.one(f"SELECT coalesce(max(len(value)), 0) FROM {rows}")[0]
        for name, rows in lists.items()
    }
    if ends:
        names = [column for column in ends.columns if column != "row_id"]
        columns += [f"p.{name}" for name in names]
        added = ", ".join(f"coalesce(j.{name}, 0) AS {name}" for name in names)
        placed = _extended(engine, placed, f"p.*, {added}", ends, "row_id")
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
    return SplitRows(columns=tuple(columns), relation=f"{placed} p{joins}", longest=longest)


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


def split_spec(
    counts: SplitCounts, files: Sequence[str], file_rows: Sequence[int], log: InteractionsRecipe
) -> SplitSpec:
    """Return the manifest's entry of a split; `file_rows`: rows of each file."""
    assert sum(file_rows) == counts.num_rows, (
        f"{sum(file_rows)} rows written, not {counts.num_rows}"
    )
    return SplitSpec(
        num_rows=counts.num_rows,
        num_positives=counts.num_positives,
        files=tuple(files),
        file_rows=tuple(file_rows),
        timestamp_min=counts.timestamp_min if log.timestamp else None,
        timestamp_max=counts.timestamp_max if log.timestamp else None,
    )
