"""Signals become a wish to stop, settled between steps; a rank that waits in vain leaves."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from recsys.runtime.env import Env
from recsys.runtime.signals import FAILED, Interrupted, StopSignals

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "number, name, code", [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "SIGINT", 130)]
)
def test_a_signal_ends_the_pass_and_not_the_process(number, name, code):
    before = signal.getsignal(number)
    with StopSignals(ALONE, within_seconds=60) as signals:
        assert not signals.due() and signals.exit_code == 0
        seen = []
        with pytest.raises(Interrupted):
            for item in signals.watched(range(5)):
                seen.append(item)
                if item == 2:
                    os.kill(os.getpid(), number)
        assert seen == [0, 1, 2]
        assert signals.due() and (signals.name, signals.exit_code) == (name, code)
    assert signal.getsignal(number) is before


def test_a_failure_stops_the_steps_and_is_no_signal():
    with StopSignals(ALONE, within_seconds=60) as signals:
        signals.ask(FAILED)
        assert signals.due() and signals.exit_code == 0


def test_ranks_that_never_come_do_not_hold_a_signalled_process():
    """In the place of a collective whose peers are gone: a sleep that no signal ends."""
    program = (
        "import time, torch, signal\n"
        "from recsys.runtime.env import Env\n"
        "from recsys.runtime.signals import StopSignals\n"
        "env = Env(rank=0, world_size=1, local_rank=0, local_world_size=1,"
        " device=torch.device('cpu'))\n"
        "with StopSignals(env, within_seconds=0.3):\n"
        "    print('ready', flush=True)\n"
        "    while True:\n"
        "        time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - started < 10
    assert (
        "SIGTERM came 0.3 s ago (train.stop_within_seconds) and the ranks were not done (stopping "
        "together, or writing a checkpoint); the newest whole checkpoint is where the run goes on"
    ) in errors
