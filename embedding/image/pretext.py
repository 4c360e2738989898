"""Tag pretext: the picture network learns to name an item's tags, and so to see what is drawn.

Multi-label binary cross-entropy; the classifying head is dropped afterwards. Runs on any number of
ranks (DistributedDataParallel), each taking its share of every batch. A pass ends with a checkpoint
from which a killed run goes on. Shapes: B pictures, S side, T tags, D width.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from embedding.image.augmentation import random_crops
from embedding.image.encoder import ImageEncoder
from recsys.errors import NonFiniteError, StorageError, UserError
from recsys.files import EMBED_AGAIN, new_array, new_file, reading
from recsys.runtime.collectives import gather

_LEAST_CROP = 0.75
_MAX_POSITIVE_WEIGHT = 10.0
_VALID_SHARE = 10
"""One picture in so many validates."""


@dataclass
class TagData:
    """Pictures with their tags; equal on all ranks."""

    pixels: np.ndarray
    """uint8 [M, S, S, 3], in memory or memory-mapped."""
    rows: np.ndarray
    """int64 [N]: where in `pixels` the pictures of the training lie."""
    targets: np.ndarray
    """bool [N, T]."""
    tags: list[str]
    groups: np.ndarray
    """int64 [N]: pictures of one group (content) are all trained on or all validated on."""


@dataclass(frozen=True, kw_only=True)
class PretextConfig:
    """Settings of one training; taken from ImageConfig by launch/embed.py."""

    epochs: int
    """Most passes."""
    patience: int
    """Passes without a better validation mAP after which training stops; 0: never."""
    learning_rate: float
    """Peak step size."""
    batch_size: int
    """Pictures a step over all ranks."""
    seed: int
    """Of the split, the order, the crops and the tag head."""


def tag_targets(
    tag_lists: Sequence[list[str] | None], min_count: int
) -> tuple[np.ndarray, list[str]]:
    """Return (bool [N, T], tags by falling count) of the tags on at least `min_count` items.

    Raises:
        UserError: no tag is frequent enough.
    """
    counts = Counter(tag for tags in tag_lists for tag in set(tags or ()))
    kept = sorted((t for t, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))
    if not kept:
        raise UserError(
            f"encoder.image.pretext_min_count={min_count}: no tag is on that many pictures; lower it, "
            f"map items.tags in the recipe, or set encoder.image.pretext_epochs=0"
        )
    index = {tag: i for i, tag in enumerate(kept)}
    targets = np.zeros((len(tag_lists), len(kept)), dtype=bool)
    for row, tags in enumerate(tag_lists):
        for tag in tags or ():
            if tag in index:
                targets[row, index[tag]] = True
    return targets, kept


class TagClassifier(nn.Module):
    """The encoder's body with a linear tag head."""

    def __init__(self, encoder: ImageEncoder, dim: int, num_tags: int):
        """Args: dim: channels of the body's last map."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(dim, num_tags)

    def forward(self, pixels_BSS3: torch.Tensor) -> torch.Tensor:
        """Return tag logits [B, T] of uint8 pictures [B, S, S, 3]."""
        return self.head(self.encoder.last_map(pixels_BSS3).float().mean(dim=(2, 3)))

    def weights(self) -> dict[str, torch.Tensor]:
        """Return body and tag head; the encoder's own heads are not trained here."""
        kept = ("encoder.body.", "head.")
        return {k: v for k, v in self.state_dict().items() if k.startswith(kept)}


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


def split_groups(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (training rows, validation rows): a seeded tenth of the groups validates."""
    distinct = np.unique(groups)
    chosen = np.random.default_rng(seed).permutation(distinct)
    valid = np.isin(groups, chosen[: max(1, len(distinct) // _VALID_SHARE)])
    return np.flatnonzero(~valid), np.flatnonzero(valid)


def train_on_tags(
    encoder: ImageEncoder,
    data: TagData,
    config: PretextConfig,
    *,
    device: torch.device,
    folder: Path,
    stamp: dict[str, Any],
    say: Callable[[str], None],
    synchronise: Callable[[nn.Module], None] = lambda module: None,
) -> float:
    """Train the encoder's body in place; return the best validation mAP (macro over tags).

    The weights of the best pass are kept. Positives weigh more where a tag is rare (square root of
    negatives / positives, at most 10). All ranks call this with the same data; a step is the mean
    over the global batch, so any number of ranks up to batch_size takes the same steps up to the
    crops. Of `folder`, the caller removes what is left when training is done.

    Args:
        folder: keeps the checkpoint.
        stamp: what the training depends on; a checkpoint of another stamp is not continued.
        synchronise: makes the batch norms of a module count the pictures of all ranks.

    Raises:
        UserError: too few pictures for one step or for validation.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    train, valid = split_groups(data.groups, config.seed)
    batch_size = max(world, config.batch_size)
    first, last = rank * batch_size // world, (rank + 1) * batch_size // world
    steps = len(train) // batch_size
    if not steps or not len(valid):
        raise UserError(
            f"encoder.image.pretext_batch_size={config.batch_size}: {len(train):,} training and "
            f"{len(valid):,} validation pictures are too few for one step; lower it, or set "
            f"encoder.image.pretext_epochs=0"
        )
    torch.manual_seed(config.seed)
    with torch.no_grad():
        dim = encoder.last_map(torch.from_numpy(data.pixels[data.rows[:1]]).to(device)).shape[1]
    classifier = TagClassifier(encoder, dim, len(data.tags)).to(device)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        [p for p in classifier.parameters() if p.requires_grad],
        lr=config.learning_rate,
        weight_decay=0.01,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=config.epochs * steps,
        pct_start=0.2,
    )
    positives = data.targets[train].sum(axis=0).clip(1)
    ratio = np.sqrt((len(train) - positives).clip(1) / positives).clip(1, _MAX_POSITIVE_WEIGHT)
    weight_T = torch.from_numpy(ratio).float().to(device)

    # 1. A checkpoint of the same training; 2. else from the start.
    checkpoint = Checkpoint(folder, stamp, classifier, optimizer, schedule, device)
    state = checkpoint.load()
    if state.epoch:
        say(f"tag pretext: goes on after epoch {state.epoch}, validation mAP {state.best:.3f}")
    model: nn.Module = classifier
    if world > 1:
        synchronise(classifier)
        model = DistributedDataParallel(classifier)
    bar = tqdm(
        total=config.epochs * steps,
        initial=state.epoch * steps,
        desc="tag pretext",
        unit="step",
        disable=None if rank == 0 else True,
    )
    while state.epoch < config.epochs and not state.is_stalled(config.patience):
        model.train()
        order = np.random.default_rng([config.seed, state.epoch]).permutation(train)
        generator = torch.Generator().manual_seed((config.seed * 1009 + state.epoch) * 7919 + rank)
        total = torch.zeros((), device=device)
        for step in range(steps):
            start = step * batch_size
            rows = np.sort(order[start + first : start + last])
            pixels = random_crops(
                torch.from_numpy(data.pixels[data.rows[rows]]), generator, min_side=_LEAST_CROP
            )
            targets_BT = torch.from_numpy(data.targets[rows]).float().to(device)
            with mixed_precision(device):
                logits_BT = model(pixels.to(device))
            loss = F.binary_cross_entropy_with_logits(
                logits_BT.float(), targets_BT, pos_weight=weight_T
            )
            # Gradients are averaged over ranks, whose numbers of pictures may differ by one.
            loss = loss * (len(rows) * world / batch_size)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
            bar.update(1)
        loss_mean = float(total) / steps
        if not np.isfinite(loss_mean):
            raise NonFiniteError(
                f"tag pretext: the loss of epoch {state.epoch + 1} is {loss_mean}; lower "
                f"encoder.image.pretext_learning_rate"
            )
        score = mean_average_precision(classifier, data, valid, device, rank, world)
        state.note(score, classifier.weights())
        if rank == 0:
            checkpoint.save(state)
        say(
            f"tag pretext epoch {state.epoch}: loss {loss_mean:.4f}, validation mAP {score:.3f}"
            f"{' (best)' if not state.waited else ''}"
        )
    bar.close()
    if state.is_stalled(config.patience) and state.epoch < config.epochs:
        say(f"tag pretext: no better for {state.waited} epochs, stopped at epoch {state.epoch}")
    assert state.best_weights is not None, "at least one pass was made"
    classifier.load_state_dict(state.best_weights, strict=False)
    classifier.eval()
    return state.best


@dataclass
class PretextState:
    """Where training stands."""

    epoch: int = 0
    """Finished passes."""
    best: float = -1.0
    """Best validation mAP."""
    waited: int = 0
    """Passes since then."""
    best_weights: dict[str, torch.Tensor] | None = None

    def note(self, score: float, weights: dict[str, torch.Tensor]) -> None:
        """Count a finished pass with its validation mAP."""
        self.epoch += 1
        self.waited += 1
        if score > self.best:
            self.best, self.waited = score, 0
            self.best_weights = {k: v.detach().cpu().clone() for k, v in weights.items()}

    def is_stalled(self, patience: int) -> bool:
        """Return whether `patience` passes brought nothing; 0 waits for ever."""
        return 0 < patience <= self.waited


class Checkpoint:
    """State of a training in one file, written after every pass."""

    def __init__(
        self,
        folder: Path,
        stamp: dict[str, Any],
        classifier: TagClassifier,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        device: torch.device,
    ):
        """Args: as in train_on_tags."""
        self.path = folder / "pretext.pt"
        self.stamp = json.dumps(stamp, sort_keys=True, default=str)
        self.classifier, self.optimizer, self.schedule = classifier, optimizer, schedule
        self.device = device

    def save(self, state: PretextState) -> None:
        """Write everything a later process needs to go on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "stamp": self.stamp,
            "state": vars(state),
            "weights": self.classifier.weights(),
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
            if stored["stamp"] != self.stamp:
                return PretextState()
            self.classifier.load_state_dict(stored["weights"], strict=False)
            self.optimizer.load_state_dict(stored["optimizer"])
            self.schedule.load_state_dict(stored["schedule"])
            return PretextState(**stored["state"])


class PictureCache:
    """Decoded pictures in one memory-mapped file, filled by all ranks, removed when done.

    Memory stays free, ranks of one host share the pages, and a second pass does not decode again.
    """

    def __init__(self, folder: Path, count: int, size: int):
        """Args: folder: on storage that all ranks see."""
        self.folder = folder
        self.path = folder / "pictures.npy"
        self.shape = (count, size, size, 3)

    def create(self) -> None:
        """Make room; one rank calls this before any rank opens it.

        Raises:
            StorageError: not enough space.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = int(np.prod(self.shape))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise StorageError(
                f"{self.folder}: {needed / 2**30:.1f} GiB are needed for the pretext's pictures, "
                f"{free / 2**30:.1f} GiB are free; lower encoder.image.pretext_max_pictures"
            )
        new_array(self.path, np.uint8, self.shape)

    def open(self) -> np.ndarray:
        """Return the array, memory-mapped for reading and writing."""
        return np.lib.format.open_memmap(self.path, mode="r+")


@torch.inference_mode()
def mean_average_precision(
    classifier: TagClassifier,
    data: TagData,
    rows: np.ndarray,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> float:
    """Return the mean over tags of the average precision on `rows`; equal on every rank.

    Each rank scores every world-th row. Tags without a positive among `rows` are left out; 0 if none
    is left.
    """
    classifier.eval()
    mine = rows[rank::world]
    parts = []
    for start in range(0, len(mine), 128):
        pixels = torch.from_numpy(data.pixels[data.rows[mine[start : start + 128]]]).to(device)
        with mixed_precision(device):
            parts.append(classifier(pixels).float().cpu())
    scores = torch.cat(parts) if parts else torch.zeros(0, len(data.tags))
    scores_NT = np.concatenate(gather(scores.numpy))
    targets_NT = np.concatenate([data.targets[rows[r::world]] for r in range(world)])
    known = targets_NT.any(axis=0)
    if not known.any():
        return 0.0
    return float(
        average_precision_score(targets_NT[:, known], scores_NT[:, known], average="macro")
    )
