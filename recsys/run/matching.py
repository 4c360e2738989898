"""Matching of tables: which rows of another run's tables are rows of this run's.

In: a parent and the manifest of the new data. Out: for each table its rows there, or why there are
none. Data that was appended to keeps the rows; for any other data, the raw ids of both vocabularies say
which row is which. Called by recsys/run/training.py. Shapes: R rows of this run's table.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.checkpoint.warm_start import RowMatch
from recsys.errors import UserError
from recsys.files import PREPARE_AGAIN, reading
from recsys.run.lineage import Parent
from recsys.schema import UNKNOWN_ROW, Manifest, TableSpec, identity_of, read_manifest


def match_tables(workspace: Path, manifest: Manifest, parent: Parent) -> dict[str, RowMatch | str]:
    """Return for every table of the data its rows in the parent's tables, or why it has none there.

    Raises:
        UserError: the parent's data is another one and is not beside it any more.
    """
    if parent.table_rows is not None:
        return {
            table.name: RowMatch(num_rows=parent.table_rows[table.name])
            if table.name in parent.table_rows
            else "its data had no such table"
            for table in manifest.tables
        }
    theirs = parent.folder.parents[1]
    before = read_manifest(theirs)
    if before.checksums != parent.data and before.identity != identity_of(parent.data):
        raise UserError(
            f"init={parent.folder}: was trained on other data than {workspace} holds now, which was not "
            f"grown from it (launch/prepare.py append=true); its rows can be matched by their ids only "
            f"while the workspace of that run has the data that it was trained on"
        )
    known = {table.name: table for table in before.tables}
    return {
        table.name: _match(workspace / "prepared", table, theirs / "prepared", known[table.name])
        if table.name in known
        else "its data had no such table"
        for table in manifest.tables
    }


def _match(
    prepared: Path, table: TableSpec, prepared_before: Path, before: TableSpec
) -> RowMatch | str:
    """Return the rows of a table whose ids have rows in another one, or why none has."""
    if table.kind != before.kind:
        return f"its rows are of kind {table.kind}, and were of kind {before.kind}"
    if table.vocabulary is not None and before.vocabulary is not None:
        source_R = _source_rows(
            _ids(prepared / table.vocabulary, table.num_rows),
            _ids(prepared_before / before.vocabulary, before.num_rows),
        )
        return RowMatch(num_rows=0, source_R=source_R)
    if table.cuts != before.cuts:
        return "its buckets have other bounds"
    if table.num_rows != before.num_rows:
        return f"its ids are hashed to {table.num_rows:,} rows, and were to {before.num_rows:,}"
    return RowMatch(num_rows=table.num_rows)


def _ids(file: Path, num_rows: int) -> pa.Array:
    """Return the ids of a vocabulary by row [num_rows]; row 0, the unknown, has none (null)."""
    with reading(file, PREPARE_AGAIN):
        vocabulary = pq.read_table(file, columns=["row", "id"])
    places = np.full(num_rows, -1, dtype=np.int64)
    places[vocabulary.column("row").to_numpy()] = np.arange(vocabulary.num_rows)
    wanted = pa.array(places, mask=places < 0)
    return vocabulary.column("id").combine_chunks().cast(pa.large_string()).take(wanted)


def _source_rows(ids: pa.Array, before: pa.Array) -> NDArray[np.int64]:
    """Return the row before of every id [R], -1 for an id that is new."""
    # Nulls are skipped, so that the unknown row is no id's.
    found = pc.index_in(ids, value_set=before, skip_nulls=True)
    source_R = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    source_R[UNKNOWN_ROW] = UNKNOWN_ROW
    return source_R
