"""Freed memory stays with the process: a step does not fault its activations in again."""

import sys

import pytest

from tests.processes import run_worker

STEPS = """
import resource
import torch
from recsys.runtime.env import keep_large_blocks, start

start("cpu")
{before}

def step():
    kept = [torch.ones({values}) for _ in range({blocks})]
    return sum(float(part[0]) for part in kept)

for _ in range({warm}):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults of glibc's malloc")
@pytest.mark.parametrize(
    ("before", "values", "blocks", "warm"),
    [
        # Of 1 MiB: larger ones fault in once more while the heap settles, in steps that differ.
        ("", 2**18, 64, 1),
        ("keep_large_blocks()", 2**24, 1, 20),
    ],
)
def test_steps_do_not_fault_their_memory_in_again(tmp_path, before, values, blocks, warm):
    """64 MiB a step are 16,384 pages; ten steps have fewer faults than one would."""
    script = tmp_path / "steps.py"
    script.write_text(STEPS.format(before=before, values=values, blocks=blocks, warm=warm))
    assert int(run_worker(script, ranks=0).split()[-1]) < 16_384
