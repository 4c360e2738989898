"""The recording of training steps: which steps, what it says of them, what it leaves."""

import gzip
import json
import time

import pytest
import torch
from torch.profiler import record_function

from recsys.model.linear import linear_relu
from recsys.model.ranker import Scores
from recsys.run.assembly import read_run_config
from recsys.runtime.env import Env
from recsys.train.profile import ProfileConfig, ProfiledPipeline, profiled

NONE = torch.zeros(0)


class Steps:
    """A pipeline that waits 5 ms in its forward, multiplies matrices in its backward."""

    def __init__(self, multiply=None):
        self.multiply = multiply or (lambda: torch.ones(64, 32) @ torch.ones(32, 16))
        self.taken = 0
        self.pauses = 0

    def progress(self, batches):
        next(batches)
        with record_function("## forward 3 ##"), record_function("## lookup ##"):
            time.sleep(0.005)
        with record_function("## backward ##"):
            self.multiply()
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


def recorded(folder, steps=6, rank=0, multiply=None, **config):
    pipeline = ProfiledPipeline(
        Steps(multiply), config=ProfileConfig(enabled=True, **config), folder=folder, env=env(rank)
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


def test_asked_number_of_steps_is_recorded_and_their_matrix_products_counted(folder):
    measured = json.loads((folder / "rank0.json").read_text())
    assert measured["num_steps"] == 3
    assert measured["rows"] == 100
    # 2 * 64 * 32 * 16 operations a step
    assert measured["matrix_flops"] == 65_536
    calls = {name: calls for name, calls, _, _ in measured["operators"]}
    assert calls["aten::mm"] == 1


def test_products_of_the_dense_part_are_counted_whoever_computes_them(tmp_path):
    """recsys.model.linear has oneDNN compute some, which torch's profiler takes for nothing."""

    def multiply():
        linear_relu(torch.ones(64, 32), torch.ones(16, 32), torch.ones(16))

    recorded(tmp_path, multiply=multiply, skip_steps=1, num_steps=2)
    assert json.loads((tmp_path / "rank0.json").read_text())["matrix_flops"] == 65_536


def test_time_goes_to_the_innermost_named_stage(folder):
    stages = json.loads((folder / "rank0.json").read_text())["stages"]
    assert stages["lookup"]["glue"] > 4.9
    assert stages["lookup"]["operators"] == 0
    assert stages["dense backward"]["operators"] > 0
    assert "wait for a batch" in stages


def test_stages_add_up_to_the_step(folder):
    measured = json.loads((folder / "rank0.json").read_text())
    total = sum(s["operators"] + s["glue"] for s in measured["stages"].values())
    assert total == pytest.approx(measured["step"], rel=0.02)


def test_trace_opens_as_json_and_the_page_names_it(folder):
    with gzip.open(folder / "rank0.trace.json.gz", "rt") as stream:
        names = {event.get("name") for event in json.load(stream)["traceEvents"]}
    assert "## lookup ##" in names
    assert "rank0.trace.json.gz" in (folder / "rank0.md").read_text()
    assert not list(folder.glob(".*")), "nothing half-written stays"


def test_other_ranks_record_only_when_asked(tmp_path):
    recorded(tmp_path / "first", rank=1, skip_steps=0, num_steps=1)
    assert not (tmp_path / "first").exists()
    recorded(tmp_path / "all", rank=1, skip_steps=0, num_steps=1, ranks="all")
    assert (tmp_path / "all" / "rank1.md").is_file()


def test_pause_ends_the_recording_and_reaches_the_pipeline(tmp_path):
    pipeline = ProfiledPipeline(
        Steps(), config=ProfileConfig(skip_steps=1, num_steps=50), folder=tmp_path, env=env()
    )
    batches = iter(range(9))
    for _ in range(4):
        pipeline.progress(batches)
    pipeline.pause()
    pipeline.progress(batches)
    assert json.loads((tmp_path / "rank0.json").read_text())["num_steps"] == 3
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
    with pytest.raises(ValueError, match=r"profile.ranks='some'.*\n.*profile.num_steps=0"):
        read_run_config({"profile": {"ranks": "some", "num_steps": 0}})
