"""The recording of training steps: which steps, what it says of them, what it leaves."""

import gzip
import json
import time

import pytest
import torch
from torch.profiler import record_function

from recsys.model.ranker import Scores
from recsys.run.config import read_run_config
from recsys.runtime.env import Env
from recsys.train.profile import ProfileConfig, ProfiledPipeline, profiled

NONE = torch.zeros(0)


class Steps:
    """A pipeline that waits in its forward and multiplies matrices in its backward."""

    def __init__(self):
        self.taken = 0
        self.pauses = 0

    def progress(self, batches):
        next(batches)
        with record_function("## forward 3 ##"), record_function("## lookup ##"):
            time.sleep(0.005)
        with record_function("## backward ##"):
            torch.ones(64, 32) @ torch.ones(32, 16)
        self.taken += 1
        return Scores(loss=NONE, logits_B=NONE, weights_BM=NONE, global_rows=100)

    def pause(self):
        self.pauses += 1

    def close(self):
        pass


def env(rank=0):
    return Env(
        rank=rank, world_size=2, local_rank=rank, local_world_size=2, device=torch.device("cpu")
    )


def recorded(folder, steps=6, rank=0, **config):
    pipeline = ProfiledPipeline(
        Steps(), config=ProfileConfig(enabled=True, **config), folder=folder, env=env(rank)
    )
    batches = iter(range(steps))
    for _ in range(steps):
        pipeline.progress(batches)
    pipeline.close()
    return pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("profile")
    recorded(folder, skip_steps=2, num_steps=3)
    return folder


def calls_in(table, operator):
    """The number of calls in a table's line of an operator."""
    (line,) = [line for line in table.splitlines() if line.strip().startswith(f"{operator} ")]
    return int(line.split()[-1])


def test_asked_number_of_steps_is_recorded_by_operator(folder):
    table = (folder / "rank0.txt").read_text()
    assert table.startswith("3 training steps of ") and "rank 0 of 2" in table
    assert calls_in(table, "aten::mm") == 3
    assert calls_in(table, "## lookup ##") == 3


def test_trace_opens_as_json_and_holds_what_was_recorded(folder):
    with gzip.open(folder / "rank0.trace.json.gz", "rt") as stream:
        events = json.load(stream)["traceEvents"]
    assert "## lookup ##" in {event.get("name") for event in events}
    products = [event for event in events if event.get("name") == "aten::mm"]
    assert [event["args"]["Input Dims"][:2] for event in products] == 3 * [[[64, 32], [32, 16]]]
    assert not list(folder.glob(".*")), "nothing half-written stays"


def test_other_ranks_record_only_when_asked(tmp_path):
    recorded(tmp_path / "first", rank=1, skip_steps=0, num_steps=1)
    assert not (tmp_path / "first").exists()
    recorded(tmp_path / "all", rank=1, skip_steps=0, num_steps=1, ranks="all")
    assert (tmp_path / "all" / "rank1.txt").is_file()


def test_pause_ends_the_recording_and_reaches_the_pipeline(tmp_path):
    pipeline = ProfiledPipeline(
        Steps(), config=ProfileConfig(skip_steps=1, num_steps=50), folder=tmp_path, env=env()
    )
    batches = iter(range(9))
    for _ in range(4):
        pipeline.progress(batches)
    pipeline.pause()
    pipeline.progress(batches)
    assert (tmp_path / "rank0.txt").read_text().startswith("3 training steps")
    assert (pipeline.pipeline.pauses, pipeline.pipeline.taken) == (1, 5)


def test_run_too_short_to_record_says_so(tmp_path, capsys):
    recorded(tmp_path / "none", steps=3, skip_steps=20)
    assert "took 3 steps" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_profile_true_is_short_for_enabled_and_problems_are_listed():
    assert read_run_config({"profile": True}).profile.enabled
    steps = Steps()
    config = read_run_config({}).profile
    assert profiled(steps, config=config, folder=None, env=env()) is steps
    with pytest.raises(ValueError, match=r"profile.num_steps=0: .*\n.*profile.ranks='some'"):
        read_run_config({"profile": {"ranks": "some", "num_steps": 0}})
