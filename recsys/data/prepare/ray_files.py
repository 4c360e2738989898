"""Files of partitioned rows: lists by ranges of user rows, splits by ranges of the order hash.

In: placed rows in partitions. Out: the files that history.py and interactions.py write of one table, byte
for byte. Called by ray_rows.py and ray_window.py. Shapes: P partitions, R ranges.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.prepare import ray_steps as steps
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.interactions import split_spec
from recsys.data.prepare.numbering import SplitCounts
from recsys.data.prepare.ray_cluster import Done, Ref, Task
from recsys.data.prepare.ray_partitions import Partitions, transposed
from recsys.data.prepare.rows import Columns
from recsys.data.prepare.vocab import FeatureRows
from recsys.data.prepare.writing import ROW_GROUP_ROWS, part_file, part_groups
from recsys.data.recipe import Recipe
from recsys.schema import SplitSpec


def last_user_rows(engine: Engine, users: Table, num_ranges: int) -> NDArray[np.int64]:
    """Return the last user row of each range but the last [R - 1]: ranges of about equal rows.

    Args:
        users: vocabulary (id, row, count).
    """
    if num_ranges == 1:
        return np.zeros(0, np.int64)
    upto = f"SELECT row, sum(count + 1) OVER (ORDER BY row) AS upto FROM {users}"
    total = f"(SELECT sum(count + 1) FROM {users})"
    cuts = ", ".join(
        f"coalesce(min(row) FILTER (WHERE upto * {num_ranges} >= {total} * {part}), 0)"
        for part in range(1, num_ranges)
    )
    return np.array(engine.one(f"SELECT {cuts} FROM ({upto})"), np.int64)


def batches_of(parts: Partitions, references: Iterable[Ref]) -> Iterator[pa.RecordBatch]:
    """Yield the batches of tables, one table after the other."""
    for reference in references:
        yield from parts.cluster.get(reference).to_batches()


def stored_batches(parts: Partitions, pieces: Sequence[Sequence[Ref]]) -> Iterator[pa.RecordBatch]:
    """Yield the stored positives (key, value) of all users by user row.

    Args:
        pieces: of each range of user rows [R]; a user's are in order.
    """
    tasks = [Task({"stored": own}, {}) for own in pieces]
    ranges = parts.run("sort histories", steps.sort_stored, tasks, 1)
    yield from batches_of(parts, (done.tables[0] for done in ranges))


def write_splits(
    parts: Partitions,
    recipe: Recipe,
    counts: Mapping[int, SplitCounts],
    features: Columns,
    prepared: Path,
    names: Sequence[str],
) -> tuple[dict[str, SplitSpec], dict[str, int]]:
    """Write the splits, every file by one worker; return their entries, and the longest lists.

    Args:
        parts: with `placed` and, if there are histories, `ends`; all are dropped.
        counts, names: of the splits by their number in `placed`.
    """
    ranges, longest = _sorted_rows(parts, recipe, features, len(names))
    splits, writes = {}, []
    for index, name in enumerate(names):
        (prepared / "interactions" / name).mkdir(parents=True)
        tables = [done.tables[index] for done in ranges]
        rows = [done.summary[index] for done in ranges]
        files: list[str] = []
        file_rows: list[int] = []
        for cut in steps.file_cuts(rows, part_groups() * ROW_GROUP_ROWS):
            files.append(part_file(f"interactions/{name}", len(files)))
            file_rows.append(cut.num_rows)
            arguments = {"path": prepared / files[-1], "cut": cut}
            writes.append(Task({"rows": tables[cut.first : cut.last]}, arguments))
        splits[name] = split_spec(counts[index], files, file_rows, recipe.interactions)
    parts.run("write files", steps.write_file, writes, 0)
    for leftover in (prepared / "interactions").glob("*/.*.part"):
        leftover.unlink()  # of a worker that died
    return splits, longest


def _sorted_rows(
    parts: Partitions, recipe: Recipe, features: Columns, num_splits: int
) -> tuple[list[Done], dict[str, int]]:
    """Return the rows of each range of the order hash, and the longest lists; drop all else."""
    done = parts.run_parts(
        "rows of files",
        steps.rows_part,
        parts.num_parts,
        *[name for name in ("placed", "ends") if name in parts.state],
        given=_vocabularies(parts, features),
        recipe=recipe,
        features=dict(features),
        num_parts=parts.num_parts,
    )
    parts.state.clear()
    longest = {name: max(d.summary[name] for d in done) for name in done[0].summary}
    shared = {"recipe": recipe, "num_splits": num_splits}
    tasks = [Task({"rows": pieces}, shared) for pieces in transposed(done)]
    return parts.run("sort", steps.sort_part, tasks, num_splits), longest


def _vocabularies(parts: Partitions, features: Columns) -> dict[str, list[Ref]]:
    """Return the vocabularies of features, by the name that their SQL has for them."""
    return {
        str(rows.vocabulary): parts.spread(f"SELECT * FROM {rows.vocabulary}")
        for rows in features.values()
        if isinstance(rows, FeatureRows) and rows.vocabulary is not None
    }
