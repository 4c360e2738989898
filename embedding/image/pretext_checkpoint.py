"""Checkpoint of the tag pretext: everything a killed training needs to go on, in one file.

Written by embedding/image/pretext.py after every pass over the pictures.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from embedding.encoder_folder import Stamp
from recsys.files import EMBED_AGAIN, new_file, reading


@dataclass
class PretextState:
    """Progress of a training, and its best weights."""

    epoch: int = 0
    """Finished passes."""
    best: float = -1.0
    """Best validation mAP."""
    waited: int = 0
    """Passes since then."""
    best_weights: dict[str, torch.Tensor] | None = None

    def note(self, score: float, weights: dict[str, torch.Tensor]) -> None:
        """Count a finished pass; `score`: its validation mAP, `weights`: tensors [D, ...] by name."""
        self.epoch += 1
        self.waited += 1
        if score > self.best:
            self.best, self.waited = score, 0
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights.items()}

    def is_stalled(self, patience: int) -> bool:
        """Return whether `patience` passes brought nothing; 0 waits for ever."""
        return 0 < patience <= self.waited


def kept_weights(classifier: nn.Module) -> dict[str, torch.Tensor]:
    """Return body and tag head, tensors [D, ...] by name; the encoder's own heads are not trained."""
    kept = ("encoder.body.", "head.")
    return {k: v for k, v in classifier.state_dict().items() if k.startswith(kept)}


class Checkpoint:
    """Model, optimizer, schedule and progress of a training in one file."""

    def __init__(
        self,
        folder: Path,
        stamp: Stamp,
        classifier: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        device: torch.device,
    ):
        """Args: stamp: of the encoder; a checkpoint of another one is not continued."""
        self.path = folder / "pretext.pt"
        self.stamp = stamp
        self.classifier, self.optimizer, self.schedule = classifier, optimizer, schedule
        self.device = device

    def save(self, state: PretextState) -> None:
        """Write everything a later process needs to go on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "stamp": json.dumps(self.stamp.content(), sort_keys=True),
            "state": vars(state),
            "weights": kept_weights(self.classifier),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with new_file(self.path) as beside:
            torch.save(content, beside)

    def load(self) -> PretextState:
        """Return the stored state with model, optimizer and schedule put back, or a new state."""
        if not self.path.is_file():
            return PretextState()
        with reading(self.path, f"delete {self.path.parent} and {EMBED_AGAIN}"):
            stored = torch.load(self.path, weights_only=True, map_location=self.device)
            if not self.stamp.continues(json.loads(stored["stamp"])):
                return PretextState()
            self.classifier.load_state_dict(stored["weights"], strict=False)
            self.optimizer.load_state_dict(stored["optimizer"])
            self.schedule.load_state_dict(stored["schedule"])
            return PretextState(**stored["state"])
