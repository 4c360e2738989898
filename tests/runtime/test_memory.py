"""Freed memory stays with the process: a step does not fault its activations in again."""

import sys

import pytest

from tests.processes import run_worker

STEPS = """
import resource
import torch
from recsys.runtime.env import start

start("cpu")

def step():
    kept = [torch.ones(2**18) for _ in range(64)]
    return sum(float(part[0]) for part in kept)

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults of glibc's malloc")
def test_steps_do_not_fault_their_memory_in_again(tmp_path):
    """64 MiB a step are 16,384 pages; ten steps have fewer faults than one would.

    In blocks of 1 MiB: larger ones fault in once more while the heap settles, in steps that differ.
    """
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    assert int(run_worker(script, ranks=0).split()[-1]) < 16_384
