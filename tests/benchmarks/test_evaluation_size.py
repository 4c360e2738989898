"""200 million predictions of 10 million users on two ranks: all metrics with intervals. `make bench`.

python -m pytest tests/benchmarks/test_evaluation_size.py -m bench -s -k 200_000_000
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("evaluation_size.py")
MOST_SECONDS, MOST_MEGABYTES = 900, 4_000


def measured(num_rows: int, num_users: int, seconds: float) -> dict:
    """What two ranks took, under torchrun so that the peak of their memory is theirs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(WORKER), str(num_rows), str(num_users)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    print(f"\n{lines[0]}")
    return json.loads(lines[0].removeprefix("RESULT "))


@pytest.mark.bench
@pytest.mark.parametrize("num_rows", [20_000_000, 200_000_000], ids=["20_000_000", "200_000_000"])
def test_predictions_are_evaluated_in_the_memory_of_their_rows(num_rows):
    """Bytes by row beside what a rank takes anyhow; a share of the seconds of the largest."""
    found = measured(num_rows, num_rows // 20, seconds=2300)
    for rank in found["ranks"]:
        assert rank["peak_megabytes"] < MOST_MEGABYTES
        assert rank["seconds"] < MOST_SECONDS * num_rows / 200_000_000
        assert abs(rank["rows"] - num_rows / 2) < num_rows / 1000, "equal parts"
