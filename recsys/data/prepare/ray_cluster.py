"""Ray: tasks on partitions of tables, by processes of this machine or of a cluster.

In: a function (one of ray_steps.py), and for each task the tables that it reads. Out: its summary, and
references of the tables that it returns, which Ray's object store holds, spills to disk and makes again
where the machine that held them is lost. A task whose worker dies is run again by Ray.

Plain tasks with several return values do the exchanges, as Ray's documentation describes a shuffle: a
step says to which partition each row goes, and Ray does the rest. Ray Data is not used: it cuts blocks by
their size and ranges by a sample, so that rows of a file would have to be put in order and cut again.
"""

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
from pydantic import Field

from recsys.data.prepare.ray_worker import run_step, stream_step
from recsys.errors import UserError
from recsys.files import DiskFullError, is_disk_full
from recsys.progress import progress_bar

Ref = Any
"""Reference of a table in Ray's object store."""
_WAIT_SECONDS = 10.0
"""After so long a wait for tasks begins anew, however few are done."""
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a warning on GPUs, of which there are none
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_worker_niceness": "0",  # by default workers give way to every other process
}
"""Settings of Ray: nothing is sent home, and nothing is printed that nobody can act on."""


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Ray, where `engine=ray`; the result does not depend on it."""

    address: str | None = None
    """Cluster to run on: auto, or host:port of its head; null: run.threads processes of this machine."""
    partitions: Annotated[int, Field(ge=1)] | None = None
    """Partitions of the log; null: of at most 4 million rows each, up to about 512, and as many for each
    core. A worker needs memory for one partition."""


class Task(NamedTuple):
    """One call of a step."""

    tables: Mapping[str, Sequence[Ref]]
    """Pieces of each table that the step reads, by name."""
    arguments: Mapping[str, Any]


class Done(NamedTuple):
    """Result of a task."""

    summary: Any
    tables: list[Ref]


class Cluster:
    """Workers of Ray, and the driver that gives them tasks."""

    def __init__(self, ray: Any, *, memory_limit: str, scratch: Path):
        """Args: scratch: folder that all machines see; what is left there is removed by the caller."""
        self._ray = ray
        self._memory_limit = memory_limit
        self._scratch = scratch
        self._run = ray.remote(run_step)
        self._stream = ray.remote(stream_step)
        self.num_cores = int(ray.cluster_resources().get("CPU", 1))

    def put(self, table: pa.Table) -> Ref:
        """Return a reference of a table."""
        return self._ray.put(table)

    def get(self, reference: Ref) -> pa.Table:
        """Return a table; its columns are memory of the object store."""
        with self._named_errors():
            return self._ray.get(reference)

    def run(
        self,
        name: str,
        step: Callable[..., tuple[Any, ...]],
        tasks: Sequence[Task],
        num_tables: int,
    ) -> list[Done]:
        """Run a step once for every task; return the results in their order.

        Args:
            name: of the work, for progress.
            num_tables: that the step returns after its summary.

        Raises:
            UserError: one of the step, a full disk, memory that does not suffice, or workers that died.
        """
        call = self._run.options(num_returns=1 + num_tables, name=name)
        sent = [call.remote(*self._call(step, task)) for task in tasks]
        returned = [refs if isinstance(refs, list) else [refs] for refs in sent]
        summaries = self._wait(name, [refs[0] for refs in returned])
        return [Done(summary, refs[1:]) for summary, refs in zip(summaries, returned, strict=True)]

    def stream(
        self, name: str, step: Callable[..., Iterator[pa.Table]], tasks: Sequence[Task]
    ) -> list[list[Ref]]:
        """Run a step that yields any number of tables once for every task; return their references.

        Raises:
            UserError: as of `run`.
        """
        call = self._stream.options(num_returns="streaming", name=name)
        generators = [call.remote(*self._call(step, task)) for task in tasks]
        self._wait(name, [generator.completed() for generator in generators])
        returned = []
        for generator in generators:
            *tables, mark = generator
            with self._named_errors():
                self._ray.get(mark)
            returned.append(tables)
        return returned

    def _call(self, step: Callable[..., Any], task: Task) -> tuple[Any, ...]:
        names = [(name, len(pieces)) for name, pieces in task.tables.items()]
        pieces = [piece for given in task.tables.values() for piece in given]
        return step, self._memory_limit, self._scratch, names, dict(task.arguments), *pieces

    def _wait(self, name: str, references: list[Ref]) -> list[Any]:
        """Return what references stand for, in their order; say how far the work is."""
        found: dict[Ref, Any] = {}
        pending = references
        with progress_bar(desc=name, unit="task", total=len(references)) as bar:
            while pending:
                with self._named_errors():
                    # A failure is to be noticed before all others are done.
                    wanted = 1 + len(pending) // 16
                    done, pending = self._ray.wait(
                        pending, num_returns=wanted, timeout=_WAIT_SECONDS, fetch_local=False
                    )
                    found |= {reference: self._ray.get(reference) for reference in done}
                bar.update(len(done))
        return [found[reference] for reference in references]

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn the errors of Ray, and those that it wraps, into the user's where there are some."""
        errors = self._ray.exceptions
        try:
            yield
        except errors.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, UserError):
                raise cause from None
            if isinstance(cause, BaseException) and is_disk_full(cause):
                raise DiskFullError(
                    f"the disk of a worker is full; free some space ({cause})"
                ) from error
            raise
        except errors.OutOfDiskError as error:
            raise DiskFullError(
                f"the disk to which Ray spills is full; free some space, or name another folder when "
                f"Ray is started ({_first_line(error)})"
            ) from error
        except errors.OutOfMemoryError as error:
            raise UserError(
                f"a worker's machine ran out of memory; raise ray.partitions, or lower memory_limit or "
                f"the number of workers ({_first_line(error)})"
            ) from error
        except (errors.WorkerCrashedError, errors.ObjectLostError, errors.NodeDiedError) as error:
            raise UserError(
                f"workers died again and again, and Ray gave up; their machines' logs say why: "
                f"out of memory calls for a greater ray.partitions ({_first_line(error)})"
            ) from error
        except (errors.LocalRayletDiedError, errors.RaySystemError, errors.RpcError) as error:
            raise UserError(
                f"Ray's head, or this machine's Ray, is gone; start again ({_first_line(error)})"
            ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


@contextmanager
def started_cluster(
    *, address: str | None, memory_limit: str, threads: int, scratch: Path
) -> Iterator[Cluster]:
    """Start Ray on this machine, or connect to a cluster; at the end no task of ours runs any more.

    Args:
        address: of the cluster; None: `threads` processes of this machine.
        memory_limit: of the database of each worker.
        scratch: folder that all machines see.

    Raises:
        UserError: the package is not installed, or no cluster is there.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "RAY_AUTH_TOKEN" in os.environ:  # without a secret anybody who reaches Ray's ports runs code
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "engine=ray: needs the package ray: pip install -r requirements-ray.txt"
        ) from error
    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        own: dict[str, Any] = {"num_cpus": threads, "include_dashboard": False, "_temp_dir": folder}
        try:
            ray.init(address=address or "local", **shared, **({} if address else own))
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            if address is None:
                raise
            raise UserError(
                f"ray.address={address}: no Ray cluster answers there ({_first_line(error)}); "
                f"start one, or leave the key out to use this machine; "
                f"RAY_AUTH_TOKEN has to be that of the cluster"
            ) from error
        try:
            yield Cluster(ray, memory_limit=memory_limit, scratch=scratch)
        finally:
            ray.shutdown()
