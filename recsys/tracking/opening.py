"""Opening of a run's trackers, as its configuration names them."""

from collections.abc import Callable

from recsys.tracking.config import TrackingConfig
from recsys.tracking.mlflow import Mlflow
from recsys.tracking.tensorboard import TensorBoard
from recsys.tracking.tracker import TrackedRun, Tracker, Trackers
from recsys.tracking.wandb import WeightsAndBiases


def open_trackers(run: TrackedRun, config: TrackingConfig, *, new_must_open: bool) -> Trackers:
    """Open the configured trackers of a run; rank 0 only.

    Args:
        new_must_open: see Trackers.

    Raises:
        UserError: a tracker that must open cannot be opened.
    """
    openers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(run),
        "mlflow": lambda: Mlflow(
            run,
            uri=config.mlflow_uri(run.workspace),
            experiment=config.mlflow.experiment,
            group=config.tracker_group,
        ),
        "wandb": lambda: WeightsAndBiases(run, group=config.tracker_group, **vars(config.wandb)),
    }
    return Trackers(
        run, {name: openers[name] for name in config.tracker}, new_must_open=new_must_open
    )
