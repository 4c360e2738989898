"""Child jobs from the fork server: a job of launch/ whose own jobs start without their imports.

    python tests/forked_jobs.py progressive data=demo workspace=W ...

In: the name of a job and its arguments. Out: what the job leaves. Its child jobs
(recsys.runtime.child_jobs) are the same files with the same arguments, forked from the process that
tests.warm_jobs started. Called by tests of jobs that start dozens of others, through `run_forked`.
"""

import os
import runpy
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from recsys.errors import UserError
from recsys.runtime.child_jobs import ChildJobs
from tests.warm_jobs import REPOSITORY, WARM, WarmJobs

_CHILD_SECONDS = 3600.0


def run_forked(
    name: str, *arguments: str, timeout_seconds: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run a job of launch/, forked as its child jobs are; does not raise where it fails."""
    WARM.share()
    return WARM.run(Path(__file__), name, *arguments, timeout_seconds=timeout_seconds)


def _wait_for(
    self: ChildJobs,
    command: Sequence[str],
    log: Path,
    *,
    threads: int,
    cores: Collection[int] = (),
) -> float:
    """Run one job of one process as ChildJobs.wait_for does; `cores` are not kept."""
    self.refuse_stopped()
    started = time.perf_counter()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    script, *arguments = command[1:]
    done = WarmJobs().run(Path(script), *arguments, timeout_seconds=_CHILD_SECONDS)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    self.refuse_stopped()
    if done.returncode:
        raise UserError(f"{script}: failed with code {done.returncode} ({log}):\n{done.stderr}")
    return time.perf_counter() - started


def main(name: str, *arguments: str) -> None:
    """Run the job in this process."""
    ChildJobs.wait_for = _wait_for  # type: ignore[method-assign]
    script = str(REPOSITORY / "launch" / f"{name}.py")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
