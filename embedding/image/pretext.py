"""Tag pretext: the picture network learns to name an item's tags, and so to see what is drawn.

Multi-label binary cross-entropy; the classifying head is dropped afterwards. Runs on any number of
ranks (DistributedDataParallel), each taking its share of every batch. A pass ends with a checkpoint
from which a killed run goes on. Shapes: B pictures, S side, T tags, D width.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from embedding.encoder_folder import Stamp
from embedding.image.augmentation import random_crops
from embedding.image.encoder import ImageEncoder
from embedding.image.pretext_checkpoint import Checkpoint, kept_weights
from embedding.image.pretext_data import TagData, split_groups
from recsys.errors import NonFiniteError, UserError
from recsys.job import say
from recsys.progress import progress_bar
from recsys.runtime.batch_norm import synchronise
from recsys.runtime.collectives import gather, share
from recsys.runtime.env import Env

_LEAST_CROP = 0.75
_MAX_POSITIVE_WEIGHT = 10.0


@dataclass(frozen=True, kw_only=True)
class PretextConfig:
    """Settings of one training; taken from ImageConfig."""

    epochs: int
    """Most passes."""
    patience: int
    """Passes without a better validation mAP after which training stops; 0: never."""
    learning_rate: float
    """Peak step size."""
    batch_size: int
    """Pictures a step over all ranks."""
    seed: int
    """Seed of the split, the order, the crops and the tag head."""


class TagClassifier(nn.Module):
    """The encoder's body with a linear tag head."""

    def __init__(self, encoder: ImageEncoder, dim: int, num_tags: int):
        """Args: dim: width of the pooled features."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(dim, num_tags)

    def forward(self, pixels_BSS3: torch.Tensor) -> torch.Tensor:
        """Return tag logits [B, T] of uint8 pictures [B, S, S, 3]."""
        pooled_BD, *_ = self.encoder.features(pixels_BSS3)
        return self.head(pooled_BD.float())


def computes_in_bf16(device: torch.device) -> bool:
    """Return whether `device` multiplies bfloat16 natively: twice as fast on CPUs that do."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and bool({"avx512_bf16", "amx_bf16"} & set(cpu.read_text().split()))


def mixed_precision(device: torch.device) -> Any:
    """Return an autocast context in bfloat16 where that pays, else one that does nothing."""
    if computes_in_bf16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def train_on_tags(
    encoder: ImageEncoder,
    data: TagData,
    config: PretextConfig,
    *,
    env: Env,
    folder: Path,
    stamp: Stamp,
) -> float:
    """Train the encoder's body in place; return the best validation mAP (macro over tags).

    The weights of the best pass are kept. Positives weigh more where a tag is rare (square root of
    negatives / positives, at most 10). All ranks call this with the same data; a step is the mean
    over the global batch, so any number of ranks up to batch_size takes the same steps up to the
    crops. The caller removes `folder` when training is done.

    Args:
        folder: keeps the checkpoint.
        stamp: what the training depends on; a checkpoint of another stamp is not continued.

    Raises:
        UserError: too few pictures for one step or for validation.
        NonFiniteError: the loss is not a finite number.
    """
    training = _Training(encoder, data, config, env)
    # 1. A checkpoint of the same training; 2. else from the start.
    checkpoint = Checkpoint(
        folder, stamp, training.classifier, training.optimizer, training.schedule, env.device
    )
    state = checkpoint.load()
    if state.epoch:
        say(f"tag pretext: goes on after epoch {state.epoch}, validation mAP {state.best:.3f}")
    training.share_over_ranks()
    bar = progress_bar(
        total=config.epochs * training.num_steps,
        initial=state.epoch * training.num_steps,
        desc="tag pretext",
        unit="step",
        is_shown=env.is_first,
    )
    while state.epoch < config.epochs and not state.is_stalled(config.patience):
        loss = training.epoch(state.epoch, bar)
        score = mean_average_precision(training.classifier, data, training.valid, env)
        state.note(score, kept_weights(training.classifier))
        share(partial(checkpoint.save, state))
        say(
            f"tag pretext epoch {state.epoch}: loss {loss:.4f}, validation mAP {score:.3f}"
            f"{' (best)' if not state.waited else ''}"
        )
    bar.close()
    if state.is_stalled(config.patience) and state.epoch < config.epochs:
        say(f"tag pretext: no better for {state.waited} epochs, stopped at epoch {state.epoch}")
    assert state.best_weights is not None, "at least one pass was made"
    training.classifier.load_state_dict(state.best_weights, strict=False)
    training.classifier.eval()
    return state.best


class _Training:
    """Model, optimizer and batches of one training on this rank."""

    def __init__(self, encoder: ImageEncoder, data: TagData, config: PretextConfig, env: Env):
        """Split the pictures and build classifier, optimizer and schedule."""
        self.data, self.config, self.env = data, config, env
        self.train, self.valid = split_groups(data.groups, config.seed)
        self.batch_size = max(env.world_size, config.batch_size)
        self.num_steps = len(self.train) // self.batch_size
        if not self.num_steps or not len(self.valid):
            raise UserError(
                f"encoder.image.pretext_batch_size={config.batch_size}: {len(self.train):,} training "
                f"and {len(self.valid):,} validation pictures are too few for one step; lower it, or "
                f"set encoder.image.pretext_epochs=0"
            )
        torch.manual_seed(config.seed)
        with torch.no_grad():
            one = torch.from_numpy(data.pixels[data.rows[:1]]).to(env.device)
            dim = encoder.features(one)[0].shape[1]
        self.classifier = TagClassifier(encoder, dim, len(data.tags)).to(env.device)
        self.classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = self.classifier
        self.optimizer = torch.optim.AdamW(
            [p for p in self.classifier.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=0.01,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=config.learning_rate,
            total_steps=config.epochs * self.num_steps,
            pct_start=0.2,
        )
        positives = data.targets[self.train].sum(axis=0).clip(1)
        ratio = np.sqrt((len(self.train) - positives).clip(1) / positives)
        weight_T = torch.from_numpy(ratio.clip(1, _MAX_POSITIVE_WEIGHT))
        self.weight_T = weight_T.float().to(env.device)

    def share_over_ranks(self) -> None:
        """Average gradients, and the statistics of batch norms, over the ranks."""
        if self.env.world_size > 1:
            synchronise(self.classifier)
            self.model = DistributedDataParallel(self.classifier)

    def epoch(self, epoch: int, bar: tqdm) -> float:
        """Take the steps of one pass over the training pictures; return its mean loss.

        Raises:
            NonFiniteError: it is not a finite number.
        """
        rank, world = self.env.rank, self.env.world_size
        first, last = rank * self.batch_size // world, (rank + 1) * self.batch_size // world
        self.model.train()
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.train)
        generator = torch.Generator().manual_seed((self.config.seed * 1009 + epoch) * 7919 + rank)
        total = torch.zeros((), device=self.env.device)
        for step in range(self.num_steps):
            start = step * self.batch_size
            total += self.step(np.sort(order[start + first : start + last]), generator)
            bar.update(1)
        loss = float(total) / self.num_steps
        if not np.isfinite(loss):
            raise NonFiniteError(
                f"tag pretext: the loss of epoch {epoch + 1} is {loss}; lower "
                f"encoder.image.pretext_learning_rate"
            )
        return loss

    def step(self, rows_B: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        """Update the weights by this rank's share of a batch, rows int [B]; return its loss, scalar."""
        pixels_BSS3 = random_crops(
            torch.from_numpy(self.data.pixels[self.data.rows[rows_B]]),
            generator,
            min_side=_LEAST_CROP,
        )
        targets_BT = torch.from_numpy(self.data.targets[rows_B]).float().to(self.env.device)
        with mixed_precision(self.env.device):
            logits_BT = self.model(pixels_BSS3.to(self.env.device))
        loss = F.binary_cross_entropy_with_logits(
            logits_BT.float(), targets_BT, pos_weight=self.weight_T
        )
        # Gradients are averaged over ranks, whose numbers of pictures may differ by one.
        loss = loss * (len(rows_B) * self.env.world_size / self.batch_size)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


@torch.inference_mode()
def mean_average_precision(
    classifier: TagClassifier,
    data: TagData,
    rows: np.ndarray,
    env: Env,
) -> float:
    """Return the mean over tags of the average precision on `rows` int [N]; equal on every rank.

    Each rank scores every world-th row. Tags without a positive among `rows` are left out; 0 if none
    is left.
    """
    classifier.eval()
    mine = rows[env.rank :: env.world_size]
    parts = []
    for start in range(0, len(mine), 128):
        pixels = torch.from_numpy(data.pixels[data.rows[mine[start : start + 128]]]).to(env.device)
        with mixed_precision(env.device):
            parts.append(classifier(pixels).float().cpu())
    scores = torch.cat(parts) if parts else torch.zeros(0, len(data.tags))
    scores_NT = np.concatenate(gather(scores.numpy))
    targets_NT = np.concatenate([
        data.targets[rows[r :: env.world_size]] for r in range(env.world_size)
    ])
    known = targets_NT.any(axis=0)
    if not known.any():
        return 0.0
    return float(
        average_precision_score(targets_NT[:, known], scores_NT[:, known], average="macro")
    )
