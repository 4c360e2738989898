"""Weights & Biases as a tracker: files that `wandb sync` uploads, or its server.

A run that goes on keeps its id. Offline, every start of it writes a folder of its own below
<run>/wandb/; `wandb sync` joins them by the id.
"""

import importlib
import os
import uuid
from collections.abc import Mapping
from typing import Any

from recsys.tracking.tracker import Status, TrackedRun


class WeightsAndBiases:
    """The Weights & Biases run of a run of ours."""

    def __init__(
        self,
        run: TrackedRun,
        *,
        mode: str,
        project: str | None = None,
        entity: str | None = None,
        group: str | None = None,
    ):
        """Open a run, new or of an earlier start; `mode` is online or offline."""
        # Nothing is sent to anybody but the configured server.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        # Imported by name: it takes a second, and other trackers do without.
        library: Any = importlib.import_module("wandb")
        stored = run.identity("wandb")
        identity = stored or {"id": uuid.uuid4().hex[:12], "project": project or run.data}
        self.run = library.init(
            id=identity["id"],
            project=identity["project"],
            entity=entity,
            name=run.folder.name,
            group=group,
            mode=mode,
            # Offline nothing is known of an earlier start; the id alone joins them.
            resume="allow" if mode == "online" else None,
            dir=str(run.folder),
            config=dict(run.settings),
            settings=library.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        # Steps of a resumed run begin before the last one logged: `step` is a value like others.
        self.run.define_metric("*", step_metric="step")
        run.keep_identity("wandb", identity)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write values of a step."""
        self.run.log({"step": step, **metrics})

    def close(self, status: Status) -> None:
        """End this part of the run."""
        self.run.finish(exit_code=0 if status == "finished" else 1)
