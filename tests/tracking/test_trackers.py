"""Trackers: one thread each, failures that training survives, settings that are refused at the start."""

import importlib.util
import threading

import pytest

from recsys.config import from_config
from recsys.tracking import config as tracking_config
from recsys.tracking.config import TrackingConfig
from recsys.tracking.tracker import TrackedRun, Trackers
from tests.processes import REPOSITORY


class Recorded:
    """A tracker in memory that refuses values while `is_away` is set."""

    def __init__(self):
        self.is_away = threading.Event()
        self.attempts = 0
        self.lines = []
        self.status = None

    def log(self, step, metrics):
        self.attempts += 1
        if self.is_away.is_set():
            raise ConnectionError("connection refused\nand more")
        self.lines.append((step, metrics))

    def close(self, status):
        self.status = status


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    return TrackedRun(folder=folder, data="demo", last_step=0)


def wait_until(condition):
    for _ in range(200):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen within two seconds")


def refuse():
    raise ConnectionError("nobody answers")


def test_every_tracker_gets_every_value_in_its_order(run):
    first, second = Recorded(), Recorded()
    trackers = Trackers(run, {"a": lambda: first, "b": lambda: second}, new_must_open=True)
    for step in range(50):
        trackers.log(step, {"train/loss": step / 2})
    trackers.close("stopped")
    assert first.lines == second.lines == [(n, {"train/loss": n / 2}) for n in range(50)]
    assert first.status == second.status == "stopped"


def test_a_tracker_that_fails_says_so_once_and_later_gets_what_it_missed(run, capsys):
    tracker = Recorded()
    trackers = Trackers(run, {"mlflow": lambda: tracker}, new_must_open=True)
    tracker.is_away.set()
    for step in range(3):
        trackers.log(step, {"x": step})
    wait_until(lambda: tracker.attempts == 3)
    assert tracker.lines == []
    tracker.is_away.clear()
    trackers.log(3, {"x": 3})
    trackers.close("finished")
    assert [step for step, _ in tracker.lines] == [0, 1, 2, 3]
    said = capsys.readouterr().out
    assert said.count("tracker mlflow: failed (connection refused); the job goes on") == 1
    assert "tracker mlflow: takes values again" in said


def test_a_tracker_that_never_comes_back_does_not_end_the_job(run, capsys):
    tracker = Recorded()
    trackers = Trackers(run, {"wandb": lambda: tracker}, new_must_open=True)
    tracker.is_away.set()
    trackers.log(1, {"x": 1})
    trackers.close("finished")
    assert "tracker wandb: lacks 1 of the run's last lines" in capsys.readouterr().out


def test_a_new_run_needs_its_tracker_and_a_resumed_one_goes_on_without(run, capsys):
    with pytest.raises(
        ValueError, match="tracker mlflow cannot be opened: nobody answers"
    ) as raised:
        Trackers(run, {"mlflow": refuse}, new_must_open=True)
    assert "tracker=" in str(raised.value)
    run.keep_identity("mlflow", {"run_id": "7"})
    trackers = Trackers(run, {"mlflow": refuse}, new_must_open=True)
    trackers.log(1, {"x": 1})
    trackers.close("finished")
    said = capsys.readouterr().out
    assert said.count("tracker mlflow: failed (nobody answers)") == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tracker": ["neptune"]}, "tracker[0]='neptune': expected tensorboard, mlflow or wandb"),
        ({"tracker": ["wandb", "wandb"]}, "tracker: wandb is named twice"),
        ({"mlflow": {"uri": "htp://host"}}, "mlflow.uri='htp://host': expected a server"),
        ({"mlflow": {"uri": "http://:80"}}, "expected the name of a host"),
        ({"mlflow": {"uri": "https://me:secret@host"}}, "set MLFLOW_TRACKING_URI, or MLFLOW_TRACK"),
        ({"wandb": {"mode": "disabled"}}, "wandb.mode='disabled': expected offline or online"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_starts(given, said):
    with pytest.raises(ValueError) as raised:
        from_config(TrackingConfig, given, "")
    assert said in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_missing_package_is_named_with_its_command(monkeypatch, repository):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        tracking_config.importlib.util, "find_spec", lambda n: None if n == "wandb" else found(n)
    )
    with pytest.raises(ValueError, match="tracker: wandb is not installed; pip install 'wandb>="):
        from_config(TrackingConfig, {"tracker": ["tensorboard", "wandb"]}, "")
    # The requirement of the message is the one of the file.
    asked = (repository / "requirements-trackers.txt").read_text().splitlines()
    wanted = {tracking_config.PACKAGES[name] for name in ("mlflow", "wandb")}
    assert wanted <= set(asked)


def test_the_packages_to_install_are_those_of_the_requirements_files():
    files = (REPOSITORY / f"requirements-{name}.txt" for name in ("base", "trackers"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert set(tracking_config.PACKAGES.values()) <= set(lines)
