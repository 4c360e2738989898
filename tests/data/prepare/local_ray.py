"""A local cluster of Ray for tests; a module that imports this file is skipped where Ray is missing."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest

from recsys.data.prepare import ray_cluster
from tests.warm_jobs import REPOSITORY

# Ray reads these when it is imported; this process and the cluster share a secret.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
ray = pytest.importorskip("ray", reason="ray is not installed (requirements-ray.txt)")


@contextmanager
def started_head():
    """A cluster of two workers, a process of its own; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # sockets need a short path
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    command += [f"--temp-dir={folder}"]
    quiet = {**ray_cluster._SETTINGS, "PYTHONPATH": str(REPOSITORY)}
    started = subprocess.Popen(
        command,
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in started.stdout:
        if "Ray runtime started" in line:
            break
    try:
        yield f"127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait(timeout=60)
        started.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


def with_step(monkeypatch, module, name, before):
    """Run `before` at the beginning of a step, in the worker; `module`: of the steps."""
    step = getattr(module, name)

    def changed(engine, tables, **arguments):
        before()
        return step(engine, tables, **arguments)

    monkeypatch.setattr(module, name, changed)


def dies_once(mark):
    """A function that kills its process unless one was killed before: `mark` is a file that says so."""
    number = signal.SIGKILL

    def die_once():
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), number)

    return die_once
