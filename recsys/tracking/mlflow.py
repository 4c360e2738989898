"""MLflow as a tracker: one run of an experiment, on a server or in a database file.

A run that goes on keeps its MLflow run; its parameters stay those of the start, which MLflow does not
let anybody change.
"""

import fcntl
import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recsys.tracking.tracker import Status, TrackedRun

_LONGEST_VALUE = 6000
_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_ENVIRONMENT = {
    # A server that is away is noticed within a minute instead of five.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # Nothing is sent to anybody but the configured server.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class Mlflow:
    """The MLflow run of a run of ours."""

    def __init__(
        self, run: TrackedRun, *, uri: str, experiment: str | None = None, group: str | None = None
    ):
        """Create the MLflow run, or go on with the one of an earlier start on the same URI."""
        for key, value in _ENVIRONMENT.items():
            os.environ.setdefault(key, value)
        # Imported by name: it takes seconds, and other trackers do without.
        library: Any = importlib.import_module("mlflow")
        self.entities: Any = importlib.import_module("mlflow.entities")
        stored = run.identity("mlflow")
        with _alone(uri):
            self.client = library.MlflowClient(tracking_uri=uri)
            if stored.get("uri") == uri:
                self.run_id = stored["run_id"]
                self.client.update_run(self.run_id, status="RUNNING")
                return
            experiment_id = self._experiment(experiment or run.data)
        tags = {} if group is None else {"group": group}
        made = self.client.create_run(experiment_id, run_name=run.folder.name, tags=tags)
        self.run_id = made.info.run_id
        params = [self.entities.Param(k, _text(v)) for k, v in run.settings.items()]
        self.client.log_batch(self.run_id, params=params)
        run.keep_identity("mlflow", {"uri": uri, "run_id": self.run_id})

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, made where there is none."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except Exception:
                # Another run may have made it a moment ago.
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send values of a step."""
        now = int(time.time() * 1000)
        values = [self.entities.Metric(k, float(v), now, step) for k, v in metrics.items()]
        self.client.log_batch(self.run_id, metrics=values)

    def close(self, status: Status) -> None:
        """End the MLflow run; a later start takes it up again."""
        self.client.set_terminated(self.run_id, status=_STATUS[status])


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock beside a SQLite database: runs that start together would both make its tables."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    file = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_name(f".{file.name}.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:_LONGEST_VALUE]
