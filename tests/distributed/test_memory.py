"""Freed memory stays with the process: a step does not fault its activations in again."""

import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from recsys.distributed.env import start

start("cpu")

def step():
    kept = [torch.ones(2 * 2**20) for _ in range(8)]
    return sum(float(part[0]) for part in kept)

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults of glibc's malloc")
def test_steps_do_not_fault_their_memory_in_again():
    """64 MiB a step are 16,384 pages; ten steps have fewer faults than one would."""
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 16_384
