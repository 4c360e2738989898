"""Where a run stands: the part of a checkpoint that is neither model nor optimizer."""

from dataclasses import dataclass


@dataclass
class TrainState:
    """Loop state, stored whole in every checkpoint."""

    epoch: int = 0
    """Passes over the training split that are complete."""
    step_in_epoch: int = 0
    """Steps taken in the current pass: where the loader goes on."""
    step: int = 0
    """Optimizer updates so far."""
    examples: int = 0
    """Training rows seen so far, over all ranks."""
    best_metric: float | None = None
    """Best validation metric so far."""
    best_step: int = 0
    """Step of the best validation."""
    evaluations_without_improvement: int = 0
    """Validations since the best one."""
    plateau_scale: float = 1.0
    """Product of the learning-rate cuts made on plateaus."""
    validation_due: bool = False
    """True where a stop cut off the validation of `step`: a resumed run begins with it."""
    finished: bool = False
    """True once all epochs are done or early stopping struck."""
