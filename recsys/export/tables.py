"""Export of the trainable tables: from the chunks of a checkpoint to files that are memory-mapped.

Block by block, so that a table larger than memory can be exported, whatever ranks and plan wrote it.
"""

from collections.abc import Sequence
from pathlib import Path

from recsys.bundle.tables import ID_MAP, TableWriter
from recsys.checkpoint.read import StoredTables
from recsys.errors import UserError
from recsys.files import write_array
from recsys.progress import progress_bar
from recsys.schema import TableSpec

BLOCK_BYTES = 64 * 2**20
"""Bytes of a block in fp32."""


def write_tables(
    folder: Path,
    stored: StoredTables,
    specs: Sequence[TableSpec],
    *,
    precision: str,
    half_tables: Sequence[str],
    first_order: bool,
) -> int:
    """Write tables, and the id maps of those with a fixed capacity; return their rows together.

    Args:
        folder: `tables/` of a bundle in the making.
        specs: the tables that the model reads.
        precision: `int8`, `fp16` or `fp32`; a table trained in fp16 loses nothing as fp16, and is not
            written in fp32.
        half_tables: tables trained in fp16.
        first_order: whether the last column holds first-order weights.

    Raises:
        UserError: the checkpoint's table has another number of rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(stored.shape(spec.name)[0] for spec in specs)
    with progress_bar(total=total, desc="tables", unit="row") as progress:
        for spec in specs:
            num_rows, num_columns = stored.shape(spec.name)
            if (num_ids := stored.num_ids(spec.name)) != spec.num_rows:
                raise UserError(
                    f"{stored.path}: table {spec.name!r} has {num_ids:,} rows, the data has "
                    f"{spec.num_rows:,}; put the data back that the run was trained on"
                )
            if (id_map_N := stored.id_map(spec.name)) is not None:
                write_array(folder / f"{spec.name}{ID_MAP}", id_map_N)
            is_half = precision == "fp32" and spec.name in half_tables
            block_rows = max(1, BLOCK_BYTES // (4 * num_columns))
            with TableWriter(
                folder, spec.name, num_rows=num_rows, precision="fp16" if is_half else precision
            ) as writer:
                for start in range(0, num_rows, block_rows):
                    stop = min(num_rows, start + block_rows)
                    block_BD = stored.read(spec.name, start, stop).numpy()
                    if first_order:
                        writer.write(block_BD[:, :-1], block_BD[:, -1])
                    else:
                        writer.write(block_BD, None)
                    progress.update(stop - start)
    return total
