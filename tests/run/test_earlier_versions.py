"""A run of an earlier version is evaluated and goes on: tests/fixtures/earlier_version/.

The workspace was written by commit d5d31a3: a drawn world of 50 pictures, prepared, with seeded vectors,
and a run of one epoch. The expected numbers are those that the same commit got from it.
"""

import json
import shutil

import pytest

from tests.small_runs import losses

RUN = ["data=demo", "run.name=old", "run.device=cpu"]
SETTINGS = ["model.embedding_dim=4", "model.tower_dims=[8,4]", "model.deep_dims=[4]"]
SETTINGS += ["model.cross_rank=2", "model.cross_experts=1", "train.global_batch_size=64"]
SETTINGS += ["train.log_every_steps=1"]
BRIEF = ["ranking.num_users=5", "bootstrap.num_replicates=20", "importance_rows=0"]
LOSSES = [0.8547741770744324, 0.9444347620010376, 0.8850588202476501]
LOSSES += [0.9396197199821472, 0.8943860530853271]
"""Of the second epoch."""


@pytest.fixture
def workspace(tmp_path, repository):
    folder = tmp_path / "workspace"
    shutil.copytree(repository / "tests" / "fixtures" / "earlier_version", folder)
    return folder


def test_run_of_an_earlier_version_is_evaluated_as_it_was(workspace, job):
    done = job("evaluate", *RUN, f"workspace={workspace}", "split=test", *BRIEF)
    assert done.returncode == 0, done.stderr
    scores = json.loads((workspace / "runs/old/eval/test/metrics.json").read_text())["all"]
    assert scores["num_rows"] == 40
    assert scores["auc"] == pytest.approx(0.6212121212121212, rel=1e-5)
    assert scores["log_loss"] == pytest.approx(0.7766554357833664, rel=1e-5)


def test_run_of_an_earlier_version_goes_on_as_it_would_have(workspace, job):
    done = job("train", *RUN, f"workspace={workspace}", *SETTINGS, "train.epochs=2")
    assert done.returncode == 0, done.stderr
    assert "resumed from step-00000005" in done.stdout
    assert [loss for _, loss in losses(workspace, "old")[5:]] == pytest.approx(LOSSES, rel=1e-5)


def test_removed_key_that_a_run_used_is_named(workspace, job):
    file = workspace / "runs/old/config.yaml"
    stored = file.read_text()
    assert "two_streams: false" in stored
    file.write_text(stored.replace("two_streams: false", "two_streams: true"))
    done = job("evaluate", *RUN, f"workspace={workspace}", "split=test", *BRIEF)
    assert done.returncode == 1
    assert "model.two_streams: was removed; " in done.stderr
