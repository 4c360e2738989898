"""Threads: the key, the variable, torchrun's own, the cores; libraries obey."""

import os
import subprocess
import sys
import threading

import pyarrow
import pytest
import threadpoolctl
import torch

from launch import doctor
from recsys.runtime import limits
from recsys.runtime.threads import Threads, threads_of_process, use_threads
from recsys.runtime.torchrun import torchrun_set_threads


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture
def no_groups(monkeypatch):
    monkeypatch.setattr(limits, "_limits", lambda *_: [])


def test_the_key_comes_first_then_the_variable_then_the_cores(no_groups, monkeypatch):
    assert threads_of_process(None) == Threads(8, "8 cores / 1 process(es)")
    assert threads_of_process(None, num_processes=3).count == 2
    assert threads_of_process(None, num_processes=72).count == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of_process(None) == Threads(3, "OMP_NUM_THREADS")
    assert threads_of_process(5) == Threads(5, "run.threads")
    assert threads_of_process(None, num_processes=2, obey_environment=False).count == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "6,2")
    assert threads_of_process(None).count == 6


@pytest.mark.parametrize("given", ["0", "-2", "many", "2.5"])
def test_what_is_no_number_of_threads_is_refused(no_groups, monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS='{given}': expected a whole number"):
        threads_of_process(None)
    with pytest.raises(ValueError, match="run.threads=0: expected 1 or more"):
        threads_of_process(0)


def test_doctor_says_what_jobs_will_use(no_groups, monkeypatch):
    assert "8 cores" in doctor.machine_facts()
    assert "uses 8 thread(s) (8 cores / 1 process(es))" in doctor.machine_facts()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "uses 2 thread(s) (OMP_NUM_THREADS)" in doctor.machine_facts()
    monkeypatch.setenv("OMP_NUM_THREADS", "two")
    assert "OMP_NUM_THREADS='two': expected" in doctor.machine_facts()


def test_every_library_is_told_and_other_threads_of_the_process_obey_too():
    before = torch.get_num_threads()
    try:
        use_threads(3)
        assert torch.get_num_threads() == 3 and pyarrow.cpu_count() == 3
        pools = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        assert pools == {3}
        seen = []
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert seen == [3]
    finally:
        use_threads(before)


AGENT = """
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does for several processes
os.environ["TORCHELASTIC_RUN_ID"] = "none"
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""
WORKER = "from recsys.runtime.torchrun import torchrun_set_threads as f; print(f())"


@pytest.mark.parametrize(("given", "expected"), [(None, "True"), ("1", "False"), ("2", "False")])
def test_one_thread_that_a_person_asked_for_is_told_from_torchruns(repository, given, expected):
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    if given is not None:
        environment["OMP_NUM_THREADS"] = given
    done = subprocess.run(
        [sys.executable, "-c", AGENT, WORKER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == expected, done.stderr[-2000:]


def test_without_torchrun_the_variable_is_a_persons(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not torchrun_set_threads()
