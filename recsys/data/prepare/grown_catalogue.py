"""Users and items of an append: features, texts and counts, the new rows after the known ones.

In: prepared data, the grown vocabularies and the new rows of users and items files. Out: the arrays and
files by row of the grown data. Rule for a known id that a new row describes again: its features and
texts become those of the new row, its row number stays. Shapes: N rows of users or items.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.data.dense import missing_value
from recsys.data.prepare.catalogue import COLUMNS, items_sql
from recsys.data.prepare.dense import dense_query
from recsys.data.prepare.engine import Count, Engine, Table
from recsys.data.prepare.features import count_queries, values_sql, write_table
from recsys.data.prepare.growth import KnownTable
from recsys.data.prepare.inputs import Catalogue
from recsys.data.prepare.sequences import (
    Sequences,
    read_sequences,
    row_blocks,
    write_sequences,
)
from recsys.data.prepare.vocab import FeatureTable
from recsys.data.prepare.writing import write_by_row, write_lists
from recsys.data.recipe import FeatureRecipe, ItemsRecipe
from recsys.data.sql import literal, quoted
from recsys.files import PREPARE_AGAIN, new_array, read_array
from recsys.schema import DenseSpec, TableSpec


@dataclass(kw_only=True)
class GrownSide:
    """Users or items that grow, and what has become of their tables."""

    side: str
    """`user` or `item`."""
    before: Path
    """Folder of the prepared data that is appended to."""
    folder: Path
    """Folder of the grown data."""
    num_before: int
    """Rows before, unknown row included."""
    num_rows: int
    """Rows now."""
    scratch: Path
    """Folder of intermediate files."""
    vocabulary: Table
    """(id, row, count) of all ids."""
    catalogue: Catalogue | None = None
    """New rows of the users or items file; None: there are none."""
    tables: dict[str, TableSpec] = field(default_factory=dict)
    """Tables of features that were written, by name."""
    longest: dict[str, int] = field(default_factory=dict)
    """Most ids of a new row, by feature of lists."""
    is_changed: NDArray[np.bool_] = field(init=False)
    """Known rows whose features or texts are other ones now [num_before], memory-mapped."""

    def __post_init__(self) -> None:
        file = self.scratch / f"changed_{self.side}s.npy"
        self.is_changed = new_array(file, np.bool_, (self.num_before,))

    @property
    def has_grown(self) -> bool:
        """Whether there are new ids."""
        return self.num_rows > self.num_before

    def array(self, name: str) -> NDArray:
        """Return an array by row of the earlier data, memory-mapped [num_before]."""
        return read_array(self.before / f"{self.side}s" / f"{name}.npy", PREPARE_AGAIN, mmap=True)

    def new(self, name: str) -> Path:
        """Return the path of an array by row of the grown data."""
        folder = self.folder / f"{self.side}s"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.npy"

    def note_changes(self, values: NDArray, before: NDArray) -> None:
        """Note the known rows whose value is another one now; both [N] by row, N at least num_before."""
        for rows_B in row_blocks(self.num_before):
            now_B, before_B = values[rows_B], before[rows_B]
            is_same_B = now_B == before_B
            if before.dtype.kind == "f":
                is_same_B |= np.isnan(now_B) & np.isnan(before_B)
            self.is_changed[rows_B] |= ~is_same_B


def grow_counts(
    engine: Engine, grown: GrownSide, placed: Table, next_row_id: int, count: Count
) -> None:
    """Write the counts of rows by user or item: those before and those of the window.

    Args:
        count: of the rows of `placed`.
    """
    for name, query in count_queries(grown.side, placed, next_row_id, count).items():
        if not (grown.before / f"{grown.side}s" / f"{name}.npy").is_file():
            continue  # prepared before the array existed: readers count rows
        counts = new_array(grown.new(name), np.int64, (grown.num_rows,))
        counts[: grown.num_before] = grown.array(name)
        for batch in engine.batches(query):
            counts[batch.column("key").to_numpy()] += batch.column("value").to_numpy()


def grow_features(
    engine: Engine,
    grown: GrownSide,
    features: dict[str, FeatureRecipe],
    known: dict[str, KnownTable],
    dense: dict[str, DenseSpec],
) -> None:
    """Write the features of a users or items file as arrays by row, and their vocabularies.

    Args:
        known: the tables of the earlier data, by feature.
        dense: its dense features, whose statistics stay.
    """
    if not (grown.catalogue or grown.has_grown):
        return
    for name, feature in features.items():
        if name in dense:
            _grow_dense(engine, grown, feature, dense[name])
            continue
        table = _feature_table(engine, grown, name, feature, known[name])
        spec = known[name].spec
        if table:
            grown.tables[name] = table.spec()
            write_table(engine, table, source=grown.side, to=grown.folder)
        if spec.is_list:
            _grow_lists(engine, grown, spec, table)
        else:
            _grow_values(engine, grown, name, table)


def _feature_table(
    engine: Engine, grown: GrownSide, name: str, feature: FeatureRecipe, known: KnownTable
) -> FeatureTable | None:
    """Return the grown table of a feature; None where no row describes any id."""
    if grown.catalogue is None:
        return None
    relation = values_sql(grown.catalogue, name, feature, grown.vocabulary)
    fresh = f"SELECT key, value FROM ({relation}) WHERE key >= {grown.num_before}"
    return FeatureTable(
        engine, name, feature, relation, relation, known=known, fresh_relation=fresh
    )


def _grow_dense(engine: Engine, grown: GrownSide, feature: FeatureRecipe, spec: DenseSpec) -> None:
    """Write the numbers of a dense feature: those of described rows anew, all others as they were."""
    values = new_array(grown.new(f"{spec.name}.values"), np.float32, (grown.num_rows,))
    values[:] = missing_value(spec)
    before = grown.array(f"{spec.name}.values")
    values[: grown.num_before] = before
    if grown.catalogue is None:
        return
    relation = values_sql(grown.catalogue, spec.name, feature, grown.vocabulary)
    for batch in engine.batches(dense_query(spec, relation)):
        values[batch.column("key").to_numpy()] = batch.column("value").to_numpy()
    grown.note_changes(values, before)


def _grow_values(engine: Engine, grown: GrownSide, name: str, table: FeatureTable | None) -> None:
    values = new_array(grown.new(f"{name}.values"), np.int32, (grown.num_rows,))
    before = grown.array(f"{name}.values")
    values[: grown.num_before] = before
    if table is None:
        return
    for batch in engine.batches(table.rows.sql()):
        values[batch.column("key").to_numpy()] = batch.column("value").to_numpy()
    grown.note_changes(values, before)


def _grow_lists(
    engine: Engine, grown: GrownSide, spec: TableSpec, table: FeatureTable | None
) -> None:
    """Write the lists of a feature: those of described rows anew, all others as they were."""
    name, is_weighted = spec.name, spec.weight_separator is not None
    before = Sequences(grown.array(f"{name}.values"), grown.array(f"{name}.offsets"))
    folder = engine.scratch / engine.unused("lists")
    folder.mkdir()
    query = "SELECT 0 AS key, 0::INTEGER AS value, 0::FLOAT AS weight WHERE false"
    _, grown.longest[name] = write_lists(
        engine,
        table.rows.sql() if table else query,
        folder / "values.npy",
        folder / "offsets.npy",
        grown.num_rows,
        folder / "weights.npy" if is_weighted else None,
    )
    described = read_sequences(folder)
    is_described_N = new_array(folder / "is_described.npy", np.bool_, (grown.num_rows,))
    if table:
        for batch in engine.batches(f"SELECT DISTINCT key FROM ({table.rows.relation})"):
            is_described_N[batch.column("key").to_numpy()] = True

    def kept(rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(is_described_N[rows_B], described.lengths(rows_B), before.lengths(rows_B))

    to, prefix = grown.new(name).parent, f"{name}."
    write_sequences(to, before, described, grown.num_rows, kept, prefix)
    _note_differing(grown, before, described, is_described_N)
    if is_weighted:
        weighed_before = Sequences(grown.array(f"{name}.weights"), before.offsets)
        weighed = read_sequences(folder, name="weights")
        write_sequences(to, weighed_before, weighed, grown.num_rows, kept, prefix, "weights")
        _note_differing(grown, weighed_before, weighed, is_described_N)


def _note_differing(
    grown: GrownSide, before: Sequences, now: Sequences, is_described_N: NDArray[np.bool_]
) -> None:
    """Note the known rows that are described with another list now."""
    for rows_B in row_blocks(grown.num_before):
        rows_K = rows_B[is_described_N[rows_B]]
        grown.is_changed[rows_K] |= _differ(before, now, rows_K)


def _differ(one: Sequences, other: Sequences, rows_K: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether two lists of each row differ [K]."""
    (one_values, one_K), (other_values, other_K) = (lists.of(rows_K) for lists in (one, other))
    differ_K = one_K != other_K
    is_alike_K = ~differ_K
    key_V = np.repeat(np.arange(len(rows_K)), one_K)
    other_key_V = np.repeat(np.arange(len(rows_K)), other_K)
    values = one_values[is_alike_K[key_V]], other_values[is_alike_K[other_key_V]]
    key_V = key_V[is_alike_K[key_V]]
    differ_K[key_V[values[0] != values[1]]] = True
    return differ_K


def grow_items(engine: Engine, grown: GrownSide, items: ItemsRecipe | None) -> None:
    """Write items.parquet: known items, as they are described last, and the new ones.

    Args:
        items: section of the recipe, if there is one.
    """
    if not (grown.catalogue or grown.has_grown):
        return
    old = f"read_parquet({literal(str(grown.before / 'items.parquet'))})"
    is_touched = f"row >= {grown.num_before}"
    known_tags = None
    if grown.catalogue:
        column = quoted(grown.catalogue.id_column)
        is_touched += f" OR id IN (SELECT {column} FROM {grown.catalogue.source.view})"
        known_tags = engine.create(
            "tags",
            f"SELECT id, CAST(row_number() OVER (ORDER BY id) AS INTEGER) AS row, 0::BIGINT AS count "
            f"FROM (SELECT DISTINCT unnest(tags) AS id FROM {old})",
        )
    touched = engine.create(
        "touched", f"SELECT * FROM {grown.vocabulary} WHERE {is_touched}", is_temporary=True
    )
    query = items_sql(engine, touched, items, grown.catalogue, known_tags)
    with engine.joins_as_written():
        described = engine.create("described", query)
    values = ", ".join(COLUMNS[2:])
    # Hashes: the texts of all items need not fit into memory.
    hashed = f"SELECT item_row, hash({values}) AS hash FROM"
    changed = engine.batches(
        f"SELECT d.item_row FROM ({hashed} {described} WHERE item_row < {grown.num_before}) d "
        f"JOIN ({hashed} {old}) o ON o.item_row = d.item_row WHERE d.hash <> o.hash"
    )
    for batch in changed:
        grown.is_changed[batch.column(0).to_numpy()] = True
    columns = ", ".join(COLUMNS)
    write_by_row(
        engine,
        f"SELECT {columns} FROM {old} WHERE item_row NOT IN (SELECT item_row FROM {described}) "
        f"UNION ALL SELECT {columns} FROM {described}",
        grown.folder / "items.parquet",
        key="item_row",
        count=grown.num_rows,
    )
    engine.drop(touched)
