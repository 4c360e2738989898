"""Data that the workers of a test run make once: the first to need it makes it, the others copy it."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of this worker's own with what `make(folder)` writes, made by one worker for all.

    A worker waits while another makes it. What `make` raises is raised here; the next one tries again.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # of all workers of this run
    made, done = base / f"{name}.made", base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(made, ignore_errors=True)
            make(made)  # where it stays: a manifest names the folder of its raw files
            done.touch()
    return Path(shutil.copytree(made, factory.mktemp(name) / name))
