"""Settings of the experiment trackers: which ones a run's metrics go to, and where these keep them.

Called by launch/train.py and launch/evaluate.py, and by launch/compare.py and launch/sweep.py for the
jobs that they start.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from recsys.overrides import override

Name = Literal["tensorboard", "mlflow", "wandb"]
PACKAGES = {
    "tensorboard": "tensorboard>=2.20,<3",
    "mlflow": "mlflow-skinny>=3.17,<4",
    "wandb": "wandb>=0.31,<1",
}
"""Requirement of the package of every tracker, as requirements-trackers.txt has it."""
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")


@dataclass(frozen=True, kw_only=True)
class MlflowConfig:
    """MLflow: its server or database, and the experiment of the run."""

    uri: str | None = None
    """Tracking URI, such as `http://host:5000` or `sqlite:////folder/mlflow.db`; null:
    MLFLOW_TRACKING_URI, else the database <workspace>/mlflow.db. User and password only by
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""
    experiment: str | None = None
    """Experiment of the run; null: the name of the data."""

    def problems(self) -> list[str]:
        """Return a text for a URI that MLflow has no store for, and for one with a password in it."""
        if self.uri is None:
            return []
        parts = urlsplit(self.uri)
        if parts.scheme.partition("+")[0] not in _SCHEMES:
            return [
                f"uri={self.uri!r}: expected a server or database that begins with one of "
                f"{', '.join(f'{scheme}:' for scheme in _SCHEMES)}"
            ]
        if parts.scheme in ("http", "https") and not parts.hostname:
            return [f"uri={self.uri!r}: expected the name of a host, as in http://host:5000"]
        if parts.password:
            return [
                "uri: has a password in it, which would be written to files and process lists; set "
                "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ]
        return []


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases: whether its server is asked, and the project of the run."""

    mode: Literal["offline", "online"] = "offline"
    """`offline`: files below the run's folder, which `wandb sync` uploads later; `online`: its server,
    with the key of WANDB_API_KEY or of `wandb login`."""
    project: str | None = None
    """Project of the run; null: the name of the data."""
    entity: str | None = None
    """User or team that owns the project; null: the owner of the key."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Trackers of a run, beside its metrics.jsonl."""

    tracker: list[Name] = field(default_factory=lambda: ["tensorboard"])
    """Trackers of the run's metrics: `tensorboard`, `mlflow`, `wandb`, several, or [] for none."""
    tracker_group: str | None = None
    """Group of the run in MLflow (a tag) and Weights & Biases; null: none, and in compare and sweep the
    name of the suite or the sweep."""
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    """MLflow, where it is a tracker."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases, where it is a tracker."""

    def problems(self) -> list[str]:
        """Return a text for every tracker that is named twice, or whose package is not installed."""
        problems = []
        for name in dict.fromkeys(self.tracker):
            if self.tracker.count(name) > 1:
                problems.append(f"tracker: {name} is named twice")
            if importlib.util.find_spec(name) is None:
                problems.append(
                    f"tracker: {name} is not installed; pip install '{PACKAGES[name]}', or leave it "
                    f"out of tracker="
                )
        return problems

    def mlflow_uri(self, workspace: Path) -> str:
        """Return the tracking URI of MLflow, for runs of a workspace."""
        given = self.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI")
        return given or f"sqlite:///{workspace.resolve() / 'mlflow.db'}"

    def arguments(self, workspace: Path, group: str) -> Sequence[str]:
        """Return the overrides by which a job that a study starts has the trackers of the study.

        Args:
            workspace: of the study; some of its runs may be in others.
            group: of the runs, where none is configured.
        """
        arguments = [override("tracker", self.tracker)]
        arguments += [override("tracker_group", self.tracker_group or group)]
        if "mlflow" in self.tracker:
            arguments += [override("mlflow.experiment", self.mlflow.experiment)]
            if self.mlflow.uri is not None or "MLFLOW_TRACKING_URI" not in os.environ:
                arguments += [override("mlflow.uri", self.mlflow_uri(workspace))]
        if "wandb" in self.tracker:
            arguments += [override(f"wandb.{k}", v) for k, v in vars(self.wandb).items()]
        return arguments
