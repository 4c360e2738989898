"""What planning costs, by tables and ranks, and the large example under its limits. `make bench`."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench
PLANNING = Path(__file__).with_name("planning.py")
CASES = [(10, 8), (100, 8), (1_000, 8), (10_000, 8), (10, 64), (100, 64), (1_000, 64)]
CASES += [(10, 1_024), (100, 1_024), (1_000, 1_024)]


def measure(num_tables, num_ranks, search):
    command = [sys.executable, str(PLANNING), str(num_tables), str(num_ranks), search]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.mark.parametrize(("num_tables", "num_ranks"), CASES)
def test_cost_of_a_fast_search(num_tables, num_ranks):
    result = measure(num_tables, num_ranks, "fast")
    print(f"\n{result}")
    assert result["peak_gib"] < 8


@pytest.mark.parametrize(("num_tables", "num_ranks"), [(10, 8), (10, 64), (100, 8)])
def test_fast_search_is_no_slower_than_the_full_and_its_plan_hardly_worse(num_tables, num_ranks):
    fast, full = (measure(num_tables, num_ranks, search) for search in ("fast", "full"))
    print(f"\n{fast}\n{full}")
    assert fast["step_ms"] < 1.2 * full["step_ms"]


def test_billions_on_64_gpus_take_less_than_a_minute_and_four_gigabytes(tmp_path, repository):
    started = time.perf_counter()
    command = [sys.executable, str(repository / "launch" / "plan.py")]
    command += ["cluster=h100_8x8", "catalogue=billions", f"out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\n{seconds:.1f} s, {peak_gib:.2f} GiB")
    assert done.returncode == 0 and "fits h100_8x8" in done.stdout
    assert seconds < 60 and peak_gib < 4
