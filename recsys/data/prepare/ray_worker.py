"""Worker: how Ray calls a step, with a database of its own and the tables that it reads.

In: a function of ray_steps.py and its arguments. Out: its summary and tables. Imported by the processes
of Ray: neither this file nor the steps import torch, which would take each of them seconds.
"""

import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys.data.prepare.engine import Engine, Table, opened_engine
from recsys.errors import UserError


@contextmanager
def _opened(memory_limit: str, scratch: Path) -> Iterator[Engine]:
    """Open the database of a task, in a folder of its own.

    Raises:
        UserError: the workspace is not on this machine.
    """
    if not scratch.is_dir():
        raise UserError(
            f"workspace: {scratch} is not there on {socket.gethostname()}; all machines of a Ray cluster "
            f"have to see raw files and workspace at one path"
        )
    folder = scratch / uuid.uuid4().hex
    try:
        with opened_engine(
            folder, memory_limit, 1, is_on_disk=False, more_advice="; or raise ray.partitions"
        ) as engine:
            yield engine
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_step(
    step: Callable[..., tuple[Any, ...]],
    memory_limit: str,
    scratch: Path,
    names: Sequence[tuple[str, int]],
    arguments: Mapping[str, Any],
    *pieces: pa.Table,
) -> Any:
    """Run a step in a worker; return its summary and its tables.

    Args:
        names: of the tables that it reads, with the number of pieces of each.
    """
    with _opened(memory_limit, scratch) as engine:
        result = step(engine, _registered(engine, names, pieces), **arguments)
    return result if len(result) > 1 else result[0]


def stream_step(
    step: Callable[..., Iterator[pa.Table]],
    memory_limit: str,
    scratch: Path,
    _: Sequence[tuple[str, int]],
    arguments: Mapping[str, Any],
) -> Iterator[pa.Table | None]:
    """Run a step in a worker that yields tables; yield them and None at the end.

    Ray may hand out an error of a generator like one more of its values: reading the last raises it.
    """
    with _opened(memory_limit, scratch) as engine:
        # Ray sends values into its generators; this one takes them, where the step's may be an iterator.
        yield from (table for table in step(engine, **arguments))
    yield None


def _registered(
    engine: Engine, names: Iterable[tuple[str, int]], pieces: Sequence[pa.Table]
) -> Mapping[str, Table]:
    """Return handles of tables, each given as a number of pieces."""
    tables: dict[str, Table] = {}
    start = 0
    for name, num_pieces in names:
        rows = pa.concat_tables(pieces[start : start + num_pieces])
        tables[name] = engine.register(name, rows)
        start += num_pieces
    return tables
