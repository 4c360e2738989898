"""The real commands killed, stopped and restarted: the run ends as if nothing had happened."""

import json
import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from tests.processes import Forked, Running
from tests.small_runs import leftovers, losses, metrics, options, steps_saved
from tests.warm_jobs import WARM

LONG = ["train.epochs=14", "train.patience=0", "model.dropout=0.2", "train.save_every_steps=2"]
"""Some 65 steps."""


@pytest.fixture(scope="module")
def whole(workspace, job):
    """Losses of two ranks that nobody disturbed."""
    done = job("train", *options(workspace, "whole", *LONG), ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = losses(workspace, "whole")
    assert [step for step, _ in expected] == list(range(1, len(expected) + 1))
    assert steps_saved(workspace, "whole")[-1] == len(expected)
    return expected


def start_and_reach(workspace, name, step, ranks, tmp_path, *more, launcher=Running, **settings):
    """Start or go on with a run, and return when it has logged a step."""
    running = launcher(
        "train",
        *options(workspace, name, *LONG, *more),
        ranks=ranks,
        log=tmp_path / f"{name}.log",
        **settings,
    )

    def reached():
        seen = losses(workspace, name)
        return bool(seen) and seen[-1][0] >= step

    assert running.wait_until(reached), running.said()[-2000:]
    return running


@pytest.mark.parametrize(
    "launcher", [Forked, pytest.param(Running, marks=pytest.mark.slow)], ids=["forked", "torchrun"]
)
def test_killed_and_stopped_run_ends_bit_for_bit_as_the_whole_one(
    workspace, whole, job, tmp_path, launcher
):
    shutil.rmtree(workspace / "runs" / "broken", ignore_errors=True)
    killed = start_and_reach(workspace, "broken", 5, 2, tmp_path, launcher=launcher)
    killed.kill()
    assert losses(workspace, "broken") == whole[: len(losses(workspace, "broken"))]

    reached = losses(workspace, "broken")[-1][0]
    stopped = start_and_reach(workspace, "broken", reached + 5, 2, tmp_path, launcher=launcher)
    started = time.monotonic()
    stopped.send_signal(signal.SIGTERM)
    code = stopped.finish(seconds=60)
    seconds = time.monotonic() - started
    assert code != 0 and seconds < 30, stopped.said()[-2000:]
    told = re.search(r"stopped by SIGTERM at step (\d+), saved", stopped.said())
    assert told, stopped.said()[-2000:]
    step = int(told[1])
    assert losses(workspace, "broken") == whole[:step]
    assert steps_saved(workspace, "broken")[-1] == step < len(whole)
    assert leftovers(workspace / "runs" / "broken" / "checkpoints") == []

    resumed = job("train", *options(workspace, "broken", *LONG), ranks=2)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert f"resumed from step-{step:08d}" in resumed.stdout
    assert losses(workspace, "broken") == whole
    costs = [line for line in metrics(workspace, "broken") if "checkpoint/write_seconds" in line]
    assert costs and all(line["checkpoint/blocking_seconds"] < 30 for line in costs)


def late(workspace, name, moment, rank):
    """Train one pass on two ranks, with trouble at the end on one of them."""
    worker = Path(__file__).with_name("late_worker.py")
    more = ["train.epochs=1", "train.save_every_steps=1"]
    return WARM.run(worker, moment, str(rank), *options(workspace, name, *more), ranks=2)


def test_a_signal_after_the_last_validation_that_leaves_no_time_to_save_stops_all_ranks(workspace):
    done = late(workspace, "late_signal", "validation", 1)
    assert done.returncode == 143, done.stderr[-2000:]
    last = losses(workspace, "late_signal")[-1][0]
    assert f"stopped by SIGTERM at step {last}, not saved (" in done.stdout
    assert steps_saved(workspace, "late_signal")[-1] == last - 1


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_last_line_is_told_by_every_rank(workspace):
    done = late(workspace, "late_disk", "disk", 0)
    assert done.returncode == 1 and "error: metrics.jsonl: no space is left" in done.stderr
    assert "is gone" not in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_start_ends_with_its_code_and_goes_on(workspace, tmp_path, ranks, number):
    """Plain Python tells 128 + the signal; torchrun ends with its own code."""
    name = f"signal{number}-{ranks}"
    running = start_and_reach(workspace, name, 5, ranks, tmp_path)
    started = time.monotonic()
    running.process.send_signal(number)
    code = running.finish(seconds=60)
    assert time.monotonic() - started < 30
    assert code == 128 + number if ranks == 0 else code not in (0, None)
    step = losses(workspace, name)[-1][0]
    assert f"stopped by {signal.Signals(number).name} at step {step}, saved" in running.said()
    assert steps_saved(workspace, name)[-1] == step
    assert "Traceback" not in running.said().split("stopped by")[0]
    again = start_and_reach(workspace, name, step + 3, ranks, tmp_path)
    again.process.send_signal(number)
    again.finish(seconds=60)
    seen = [step for step, _ in losses(workspace, name)]
    assert seen == list(range(1, len(seen) + 1))


@pytest.mark.slow
def test_one_rank_that_is_stopped_takes_the_other_along(workspace, whole, tmp_path):
    """As when one of several machines is taken away: both save the same step."""
    running = start_and_reach(workspace, "one_of_two", 5, 2, tmp_path)
    os.kill(running.workers()[1], signal.SIGTERM)
    assert running.finish(seconds=60) != 0
    step = steps_saved(workspace, "one_of_two")[-1]
    assert f"stopped by SIGTERM at step {step}, saved" in running.said()
    assert losses(workspace, "one_of_two") == whole[:step]


@pytest.mark.slow
def test_a_stop_in_a_validation_saves_it_as_due_and_the_resumed_run_begins_with_it(
    workspace, job, tmp_path
):
    """Small batches make the validation long; its metric decides on the learning rate after it."""
    more = ["train.global_batch_size=8", "train.evaluate_every_steps=6", "train.epochs=1"]
    more += ["optim.plateau_factor=0.5", "train.save_every_steps=0"]
    done = job("train", *options(workspace, "calm", *LONG, *more))
    assert done.returncode == 0, done.stderr[-2000:]
    cut = 0
    for step in (6, 12, 18, 24):
        running = start_and_reach(workspace, "cut", step, 0, tmp_path, *more)
        running.process.send_signal(signal.SIGTERM)
        assert running.finish(seconds=60) == 143
        newest = steps_saved(workspace, "cut")[-1]
        index = workspace / "runs" / "cut" / "checkpoints" / f"step-{newest:08d}" / "index.json"
        cut += json.loads(index.read_text())["state"]["validation_due"]
    assert cut, "no stop came within a validation"
    done = job("train", *options(workspace, "cut", *LONG, *more))
    assert done.returncode == 0, done.stderr[-2000:]

    def told(name):
        keys = ("train/loss", "train/learning_rate_factor", "valid/auc")
        lines = [
            {k: line[k] for k in ("step", *keys) if k in line} for line in metrics(workspace, name)
        ]
        return [line for line in lines if len(line) > 1]

    assert told("cut") == told("calm")


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_passed_over_by_the_command(workspace, whole, job, tmp_path):
    running = start_and_reach(workspace, "damaged", 9, 2, tmp_path)
    running.kill()
    older, newest = steps_saved(workspace, "damaged")[-2:]
    folder = workspace / "runs" / "damaged" / "checkpoints"
    with open(folder / f"step-{newest:08d}" / "tables-rank00001.safetensors", "r+b") as stream:
        stream.seek(-1, 2)
        last = stream.read(1)
        stream.seek(-1, 2)
        stream.write(bytes([last[0] ^ 1]))
    done = job("train", *options(workspace, "damaged", *LONG), ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"step-{newest:08d} is damaged and skipped: tables-rank00001" in done.stdout
    assert f"resumed from step-{older:08d}" in done.stdout
    assert losses(workspace, "damaged") == whole
    for path in folder.glob("step-*"):
        (path / "manifest.json").unlink()
    done = job("train", *options(workspace, "damaged", *LONG), ranks=2)
    assert done.returncode != 0
    assert "checkpoint(s) is whole" in done.stderr and "Traceback" not in done.stderr[:200]


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_and_the_run_goes_on_by_itself(workspace, whole, tmp_path):
    """With run.overwrite=true, which must not delete what the restart is for."""
    restarts = ("--standalone", "--max-restarts=3")
    more = ["run.overwrite=true"]
    running = start_and_reach(workspace, "elastic", 5, 2, tmp_path, *more, torchrun=restarts)
    for victim in (0, 1):
        reached = losses(workspace, "elastic")[-1][0]
        before = running.workers()
        os.kill(before[victim], signal.SIGKILL)

        def went_on(reached=reached, before=before):
            seen = losses(workspace, "elastic")
            new = set(running.workers()) - set(before)
            return len(new) == 2 and bool(seen) and seen[-1][0] > reached + 3

        assert running.wait_until(went_on), running.said()[-3000:]
    assert running.finish(seconds=120) == 0, running.said()[-3000:]
    assert running.said().count("resumed from step-") == 2
    assert "is kept" in running.said()
    assert losses(workspace, "elastic") == whole


@pytest.mark.slow
def test_a_lost_machine_leaves_a_smaller_group_that_goes_on(workspace, whole, tmp_path):
    """Two torchrun agents of one rank each; one is lost with its worker, the other goes on alone.

    With run.overwrite=true, which must not delete what the two have trained.
    """
    port = free_port()
    agents = [
        Running(
            "train",
            *options(workspace, "smaller", *LONG, "model.dropout=0", "run.overwrite=true"),
            ranks=1,
            log=tmp_path / f"agent{index}.log",
            torchrun=(
                "--nnodes=1:2",
                "--max-restarts=3",
                "--rdzv-backend=c10d",
                "--rdzv-id=smaller",
                f"--rdzv-endpoint=localhost:{port}",
                "--rdzv-conf=last_call_timeout=12,keep_alive_interval=1,keep_alive_max_attempt=3",
            ),
        )
        for index in range(2)
    ]

    def reached():
        seen = losses(workspace, "smaller")
        return bool(seen) and seen[-1][0] >= 5

    assert agents[0].wait_until(reached), agents[0].said()[-3000:]
    said = [agent.said() for agent in agents]
    assert "on 2 rank(s)" in "".join(said)
    # The agent that holds the rendezvous store must live.
    holder = next(i for i, agent in enumerate(agents) if listens(agent.process.pid, port))
    agents[1 - holder].kill()
    assert agents[holder].finish(seconds=200) == 0, agents[holder].said()[-3000:]
    assert "on 1 rank(s)" in agents[holder].said()
    assert "resumed from step-" in agents[holder].said()
    seen = losses(workspace, "smaller")
    assert [step for step, _ in seen] == [step for step, _ in whole]
    values = np.array([loss for _, loss in seen])
    assert np.isfinite(values).all()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ranks_then_three_train_every_row_once_a_pass_as_one_does(workspace, job, tmp_path):
    """Lost in mid-pass on four ranks, gone on with on three, which 256 rows are not divided by."""
    more = ["train.epochs=2", "model.dropout=0", "train.keep_last=20"]
    for name, ranks in (("alone", 0), ("several", 4)):
        done = job("train", *options(workspace, name, *LONG, *more), ranks=ranks)
        assert done.returncode == 0, done.stderr[-2000:]
    lost = [step for step in steps_saved(workspace, "several") if step > 2]
    assert lost and len(losses(workspace, "several")) > 6
    for step in lost:
        shutil.rmtree(workspace / "runs" / "several" / "checkpoints" / f"step-{step:08d}")
    resumed = job("train", *options(workspace, "several", *LONG, *more), ranks=3)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "resumed from step-00000002: epoch 0" in resumed.stdout
    expected, found = (np.array(losses(workspace, name)) for name in ("alone", "several"))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    scored = {}
    for ranks in (0, 3):
        done = job("evaluate", *options(workspace, "several")[:3], "split=valid", ranks=ranks)
        assert done.returncode == 0, done.stderr[-2000:]
        file = workspace / "runs" / "several" / "eval" / "valid" / "metrics.json"
        scored[ranks] = json.loads(file.read_text())["all"]
    for name in ("auc", "log_loss", "num_rows"):
        assert scored[3][name] == pytest.approx(scored[0][name], rel=1e-6)


@pytest.mark.slow
def test_a_second_start_under_the_same_rendezvous_id_overwrites_the_first(workspace, tmp_path):
    more = ["train.epochs=1", "run.overwrite=true"]
    for seed in (0, 1):
        running = Running(
            "train",
            *options(workspace, "again", *more, f"run.seed={seed}"),
            ranks=2,
            log=tmp_path / f"start{seed}.log",
            torchrun=(
                "--rdzv-backend=c10d",
                "--rdzv-id=mine",
                f"--rdzv-endpoint=localhost:{free_port()}",
            ),
        )
        assert running.finish(seconds=120) == 0, running.said()[-3000:]
        assert (
            "start of torchrun and is kept" not in running.said()
            and "resumed" not in running.said()
        )
    assert "is finished" not in running.said()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def listens(pid: int, port: int) -> bool:
    """Whether a process holds a listening socket of this port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}", encoding="ascii") as stream:
            for fields in (line.split() for line in list(stream)[1:]):
                if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    links = [os.path.join(f"/proc/{pid}/fd", entry) for entry in os.listdir(f"/proc/{pid}/fd")]
    return any(os.readlink(link) in inodes for link in links if os.path.lexists(link))
