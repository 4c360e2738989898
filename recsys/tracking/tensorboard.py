"""TensorBoard as a tracker: event files in <run>/tensorboard/."""

import importlib
from collections.abc import Mapping
from typing import Any

from recsys.tracking.tracker import Status, TrackedRun


class TensorBoard:
    """Event files of a run; values of steps that will come again are hidden."""

    def __init__(self, run: TrackedRun):
        """Open a new event file in the run's folder."""
        # Imported by name: it takes a second, and other trackers do without.
        library: Any = importlib.import_module("torch.utils.tensorboard")
        purge_step = None if run.last_step is None else run.last_step + 1
        self.writer = library.SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge_step)
        run.keep_identity("tensorboard", {"folder": "tensorboard"})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write values of a step."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self, status: Status) -> None:
        """End the event file."""
        self.writer.close()
