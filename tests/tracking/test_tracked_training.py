"""Trackers beside real trainings: one run over a resume, and losses as without any."""

import pytest

from tests.small_runs import losses, make_workspace, options


@pytest.mark.slow
def test_a_resumed_and_evaluated_training_is_one_run_and_trains_as_without(tmp_path, job):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    workspace = make_workspace(tmp_path, job)
    trackers = ["tracker=[tensorboard,mlflow,wandb]"]
    for epochs in (1, 2):
        more = [*trackers, f"train.epochs={epochs}", "optim.decay=constant"]
        done = job("train", *options(workspace, "tracked", *more), ranks=2)
        assert done.returncode == 0, done.stderr
    done = job("evaluate", "data=demo", f"workspace={workspace}", "run.name=tracked", *trackers)
    assert done.returncode == 0, done.stderr
    more = ["tracker=[]", "train.epochs=2", "optim.decay=constant"]
    done = job("train", *options(workspace, "plain", *more), ranks=2)
    assert done.returncode == 0, done.stderr
    assert losses(workspace, "tracked") == losses(workspace, "plain")
    assert not (workspace / "runs" / "plain" / "trackers").exists()

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{workspace / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "tracked" and "test/auc" in run.data.metrics
    sent = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(line.step, line.value) for line in sent] == losses(workspace, "plain")
    assert run.data.params["run.seed"] == "0"


def test_a_tracker_that_cannot_be_opened_is_refused_with_its_key(tmp_path, job):
    done = job(
        "train", "data=demo", f"workspace={tmp_path}", "mlflow.uri=ftp://x", "tracker=[magic]"
    )
    assert done.returncode == 1
    assert "mlflow.uri='ftp://x': expected a server or database" in done.stderr
    assert "tracker[0]='magic': expected tensorboard, mlflow or wandb" in done.stderr
