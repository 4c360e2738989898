"""Freed memory stays with the process: a step does not fault its activations in again."""

import sys

import pytest

from tests.processes import run_worker

STEPS = """
import resource
import torch
from recsys.distributed.env import start

start("cpu")

def step():
    kept = [torch.ones(2 * 2**20) for _ in range(8)]
    return sum(float(part[0]) for part in kept)

for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults of glibc's malloc")
def test_steps_do_not_fault_their_memory_in_again(tmp_path):
    """64 MiB a step are 16,384 pages; ten steps have fewer faults than one would.

    The first steps are not counted: the heap grows until its free blocks fit what a step asks for, in
    the second step mostly and now and then up to the fourth. Without the setting each step has them all.
    """
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    assert int(run_worker(script, ranks=0).split()[-1]) < 16_384
