"""prepare on two workers of Ray beside prepare by one process: time, CPU, memory. `make bench`.

python -m pytest tests/benchmarks/test_prepare_ray.py -m bench -s
RAY_ROWS=1000000 nice -n 10 python -m pytest tests/benchmarks/test_prepare_ray.py -m bench -s
"""

import filecmp
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb
import psutil
import pytest

from recsys.schema import read_manifest

pytestmark = pytest.mark.bench
NUM_ROWS = int(os.environ.get("RAY_ROWS", "20000000"))
MOST_TIMES_SLOWER = 2.5
WORKER_LIMIT = "1GB"
MOST_WORKER_BYTES = 2_500_000_000
"""Of a worker: its database (WORKER_LIMIT), the tables that it makes, Python and Arrow."""


@dataclass
class Used:
    """What a job took: seconds by the clock and of all CPUs, and the highest memory of a process."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    job_bytes: int = 0
    worker_bytes: int = 0


def own_bytes(process: psutil.Process) -> int:
    """Memory of a process without what it shares: the object store is mapped by all of them."""
    memory = process.memory_info()
    return memory.rss - memory.shared


def running(job: psutil.Process) -> list[psutil.Process]:
    """A job and its descendants; none where it has just ended."""
    try:
        return [job, *job.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def watch(job: psutil.Process, used: Used, is_over: threading.Event) -> None:
    """Note the memory and the CPU time of a job and of its descendants until it is over."""
    cpu: dict[int, float] = {}
    while not is_over.wait(0.2):
        for process in running(job):
            try:
                times = process.cpu_times()
                cpu[process.pid] = times.user + times.system
                if process.pid == job.pid:
                    used.job_bytes = max(used.job_bytes, own_bytes(process))
                elif "ray::" in " ".join(process.cmdline()):
                    used.worker_bytes = max(used.worker_bytes, own_bytes(process))
            except psutil.NoSuchProcess:
                continue
        used.cpu_seconds = sum(cpu.values())


def prepared(repository: Path, workspace: Path, *arguments: str) -> Used:
    """Run launch/prepare.py and measure it."""
    used, is_over = Used(), threading.Event()
    begun = time.perf_counter()
    with subprocess.Popen([
        sys.executable,
        str(repository / "launch" / "prepare.py"),
        *arguments,
        f"workspace={workspace}",
    ]) as job:
        watcher = threading.Thread(target=watch, args=(psutil.Process(job.pid), used, is_over))
        watcher.start()
        status = job.wait()
        used.seconds = time.perf_counter() - begun
        is_over.set()
        watcher.join()
    assert status == 0
    return used


def test_two_workers_take_at_most_two_and_a_half_times_as_long(tmp_path, repository):
    source = tmp_path / "raw"
    source.mkdir()
    duckdb.sql(
        f"COPY (SELECT 'u' || (hash(i) % {NUM_ROWS // 20}) AS user_id, 'i' || (hash(i * 7) % "
        f"{NUM_ROWS // 100}) AS item_id, 1600000000 + i AS timestamp, (hash(i * 13) % 4 = 0)::INT AS "
        f"label FROM range({NUM_ROWS}) t(i)) TO '{source / 'log.parquet'}' (FORMAT parquet)"
    )
    recipe = ["data=demo", f"data.source={source}", "data.interactions.file=log.parquet"]
    recipe += ["data.items=null", "data.users=null", "data.pairs=[]", "run.threads=2"]
    one = prepared(repository, tmp_path / "one", *recipe)
    limits = ["engine=ray", f"memory_limit={WORKER_LIMIT}"]
    two = prepared(repository, tmp_path / "two", *recipe, *limits)
    print(
        f"\nprepare, {NUM_ROWS:,} rows: one process {one.seconds:.0f} s ({one.cpu_seconds:.0f} s of CPU, "
        f"{one.job_bytes / 1e9:.2f} GB), two workers of Ray {two.seconds:.0f} s ({two.cpu_seconds:.0f} s "
        f"of CPU, driver {two.job_bytes / 1e9:.2f} GB, a worker {two.worker_bytes / 1e9:.2f} GB): "
        f"{two.seconds / one.seconds:.2f} times as long, {two.cpu_seconds / one.cpu_seconds:.2f} times "
        f"the CPU time"
    )
    assert read_manifest(tmp_path / "one") == read_manifest(tmp_path / "two")
    for name in read_manifest(tmp_path / "one").checksums:
        files = (tmp_path / workspace / "prepared" / name for workspace in ("one", "two"))
        assert filecmp.cmp(*files, shallow=False)
    assert two.worker_bytes < MOST_WORKER_BYTES
    assert two.seconds < MOST_TIMES_SLOWER * one.seconds
