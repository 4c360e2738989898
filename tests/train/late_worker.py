"""Trains with trouble at the end: `late_worker.py MOMENT RANK ARGUMENTS`, of launch/train.py.

MOMENT: `step`, SIGTERM comes at the last step of the pass; `validation`, after the last question of the
last validation; `disk`, the disk is full at the last line of metrics.jsonl. It befalls this RANK alone,
and a signal leaves no time for another save.
"""

import math
import os
import runpy
import signal
import sys
from pathlib import Path

from recsys.files import DiskFullError
from recsys.runtime.signals import StopSignals
from recsys.train.log import CPU_SECONDS, RunLog
from recsys.train.loop import Loop
from recsys.train.validate import Validation

moment, rank, *arguments = sys.argv[1:]
is_here = os.environ.get("RANK", "0") == rank
step, run, write = Loop._step, Validation.run, RunLog.write


def step_signalled(self, part):
    """The last step of the pass, with a signal before its end."""
    if moment == "step" and self.state.step_in_epoch + 1 == self.loader.steps_per_epoch and is_here:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, part)


def run_signalled(self, state):
    """The last validation, with a signal after its end."""
    metric = run(self, state)
    if moment == "validation" and state.finished and is_here:
        os.kill(os.getpid(), signal.SIGTERM)
    return metric


def write_on_full_disk(self, number, metrics):
    """A line that finds no space."""
    if moment == "disk" and CPU_SECONDS in metrics and is_here:
        raise DiskFullError("metrics.jsonl: no space is left")
    write(self, number, metrics)


Loop._step, Validation.run, RunLog.write = step_signalled, run_signalled, write_on_full_disk
StopSignals.seconds_left = lambda self: math.inf if self._ends is None else 0.0
sys.argv = ["train.py", *arguments]
launch = Path(__file__).resolve().parents[2] / "launch" / "train.py"
runpy.run_path(str(launch), run_name="__main__")
