"""State of the training loop: the part of a checkpoint that is neither model nor optimizer."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recsys.errors import UserError

CHECKPOINT_VERSION = 2
"""Of index.json; another one is refused."""

ID_MAPS = "ids.safetensors"
"""File of a checkpoint with the id maps of tables that have a fixed capacity."""


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
    scored_parts: int = 0
    """Parts of the pass that were scored before they were trained on."""
    validation_due: bool = False
    """True where a stop cut off the validation of `step`: a resumed run begins with it."""
    finished: bool = False
    """True once all epochs are done or early stopping struck."""


def stored_state(values: Mapping[str, Any]) -> TrainState:
    """Return the loop state of a checkpoint's index.json; keys that came later have their defaults.

    Raises:
        UserError: a key that this version does not know.
    """
    known = {field.name for field in dataclasses.fields(TrainState)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(
            f"holds a loop state with {', '.join(unknown)}, expected only {', '.join(sorted(known))}; "
            f"use the version of Tessera that wrote it"
        )
    return TrainState(**values)
