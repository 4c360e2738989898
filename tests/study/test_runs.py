"""What a study starts: only what is missing, on its share of the cores, and failures say why."""

import json
import os

import pytest

from recsys.study.runs import Commands, StudyRun
from recsys.train.run import RunConfig


class Recorded(Commands):
    """Notes jobs in place of starting them, and leaves a finished run behind."""

    def job(self, name, workspace, run_name, overrides):
        self.started.append((name, run_name, tuple(overrides)))


@pytest.fixture
def commands(tmp_path):
    recorded = Recorded(data=["data=demo"], num_parallel=1, num_ranks=1, logs=tmp_path / "logs")
    recorded.started = []
    return recorded


def run(workspace, name, state):
    """A run whose folder says `state` ("none", "finished", "changed")."""

    class Stated(StudyRun):
        def trained(self):
            if state == "changed":
                raise ValueError("its run was started with other settings")
            return state == "finished"

        def validation_metric(self):
            return 0.8

    return Stated(workspace=workspace, name=name, overrides=("a=1",), config=RunConfig())


def test_only_missing_runs_are_trained(commands, tmp_path):
    runs = [run(tmp_path, "new", "none"), run(tmp_path, "old", "finished")]
    commands.train(runs, overwrite=False)
    assert commands.started == [("train", "new", ("a=1",))]


def test_changed_run_stops_the_study_or_is_trained_anew(commands, tmp_path):
    changed = [run(tmp_path, "changed", "changed")]
    with pytest.raises(ValueError, match="other settings"):
        commands.train(changed, overwrite=False)
    assert commands.started == []
    commands.train(changed, overwrite=True)
    assert commands.started == [("train", "changed", ("a=1", "run.overwrite=true"))]


def test_evaluation_older_than_its_checkpoint_is_made_again(commands, tmp_path):
    scored = StudyRun(workspace=tmp_path, name="x", overrides=(), config=RunConfig())
    checkpoint = scored.folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "index.json").write_text("{}")
    (scored.folder / "checkpoints" / "best.json").write_text(
        json.dumps({"checkpoint": checkpoint.name, "metric": 0.7})
    )
    assert scored.validation_metric() == 0.7
    assert not scored.evaluated("test")
    metrics = scored.folder / "eval" / "test" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("{}")
    assert scored.evaluated("test")
    os.utime(checkpoint / "index.json", (metrics.stat().st_mtime + 10,) * 2)
    assert not scored.evaluated("test")


def test_failed_job_carries_its_last_words(tmp_path):
    commands = Commands(data=["data=demo"], num_parallel=1, num_ranks=1, logs=tmp_path / "logs")
    with pytest.raises(ValueError, match=r"failed with code 1 .*\n.*no prepared data here"):
        commands.job("evaluate", tmp_path, "nobody", ["split=test"])


def test_more_jobs_than_cores_are_refused(tmp_path):
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match=f"parallel={cores} with ranks=2: .* the {cores} cores"):
        Commands(data=["data=demo"], num_parallel=cores, num_ranks=2, logs=tmp_path)
