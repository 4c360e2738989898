"""The real libraries: MLflow on a database file, Weights & Biases offline, TensorBoard's files."""

import struct

import pytest

from recsys.tracking.config import MlflowConfig, TrackingConfig
from recsys.tracking.opening import open_trackers
from recsys.tracking.tracker import TrackedRun

SETTINGS = {"model.name": "fm", "optim.dense_learning_rate": 0.001, "model.tower_dims": [8, 4]}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    return folder


def track(folder, config, *, last_step, values, status):
    """Log train/loss by step in one start of a run."""
    run = TrackedRun(folder=folder, data="demo", settings=SETTINGS, last_step=last_step)
    trackers = open_trackers(run, config, new_must_open=True)
    for step, value in values.items():
        trackers.log(step, {"train/loss": value, "valid/gauc": float("nan")})
    trackers.close(status)


def test_tensorboard_shows_a_resumed_run_as_one(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = TrackingConfig()
    track(folder, config, last_step=0, values={1: 0.5, 2: 0.25, 3: 9.0}, status="failed")
    track(folder, config, last_step=2, values={3: 0.125}, status="finished")
    events = accumulator.EventAccumulator(str(folder / "tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert shown == {1: 0.5, 2: 0.25, 3: 0.125}


def test_mlflow_keeps_one_run_over_a_resume(folder, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = TrackingConfig(
        tracker=["mlflow"], tracker_group="suite", mlflow=MlflowConfig(uri=uri, experiment="paper")
    )
    track(folder, config, last_step=0, values={1: 0.5, 2: 0.25}, status="stopped")
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("paper").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"
    # Settings that may change over a resume are not sent again: MLflow refuses other values.
    track(folder, config, last_step=2, values={3: 0.125}, status="finished")
    (run,) = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["model.name"] == "fm"
    assert run.data.params["model.tower_dims"] == "[8, 4]"
    assert run.data.tags["group"] == "suite"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(line.step, line.value) for line in history] == [(1, 0.5), (2, 0.25), (3, 0.125)]


def records_of(file):
    """Yield the records of a Weights & Biases file: LevelDB's log format after a header of 7 bytes."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = pb.Record()
            record.ParseFromString(part)
            yield record
            part = b""


def test_wandb_offline_gives_every_start_of_a_run_the_same_id(folder):
    pytest.importorskip("wandb")
    config = TrackingConfig(tracker=["wandb"], tracker_group="suite")
    track(folder, config, last_step=0, values={1: 0.5, 2: 0.25}, status="stopped")
    track(folder, config, last_step=2, values={3: 0.125}, status="finished")
    files = sorted(
        (folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda f: f.stat().st_mtime
    )
    assert len(files) == 2
    records = [list(records_of(file)) for file in files]
    runs = [r.run for part in records for r in part if r.WhichOneof("record_type") == "run"]
    assert {(r.run_id, r.project, r.display_name, r.run_group) for r in runs} == {
        (runs[0].run_id, "demo", "mine", "suite")
    }
    values = []
    for record in (r for part in records for r in part):
        if record.WhichOneof("record_type") == "history":
            line = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            values.append((float(line["step"]), float(line["train/loss"])))
    assert values == [(1, 0.5), (2, 0.25), (3, 0.125)]
