"""Jobs of one process that compute without torch start without it (recsys/runtime/torchrun.py)."""

import subprocess
import sys

STARTED = """
import sys
import launch.demo, launch.neighbours, launch.prepare
from recsys.runtime.hosts import once_a_host
from recsys.runtime.ranks import all_ranks
from recsys.runtime.threads import use_threads

use_threads(1)
assert once_a_host(lambda: 3) == 3
assert all_ranks().total(4) == 4
print("torch" in sys.modules)
"""


def test_jobs_that_compute_without_torch_do_not_load_it(repository):
    done = subprocess.run(
        [sys.executable, "-c", STARTED],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "False", done.stderr[-2000:]
