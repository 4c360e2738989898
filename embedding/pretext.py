"""Tag pretext: the picture network learns to name an item's tags, and so to see what is drawn.

Multi-label binary cross-entropy; the classifying head is dropped afterwards. Runs on any number of
ranks (DistributedDataParallel), each taking its share of every batch. Shapes: B pictures, S side,
T tags, D width.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from embedding.image import ImageEncoder

_CROP_MARGIN = 0.1
_MAX_POSITIVE_WEIGHT = 10.0


@dataclass
class TagData:
    """Pictures in memory with their tags."""

    pixels: np.ndarray
    """uint8 [N, S, S, 3]."""
    targets: np.ndarray
    """bool [N, T]."""
    tags: list[str]


def tag_targets(tag_lists: list[list[str] | None], min_count: int) -> tuple[np.ndarray, list[str]]:
    """Return (bool [N, T], tags by falling count) of the tags on at least `min_count` items.

    Raises:
        ValueError: no tag is frequent enough.
    """
    counts = Counter(tag for tags in tag_lists for tag in set(tags or ()))
    kept = sorted((t for t, n in counts.items() if n >= min_count), key=lambda t: (-counts[t], t))
    if not kept:
        raise ValueError(
            f"encoder.image.pretext_min_count={min_count}: no tag is on that many pictures; lower it, "
            f"map items.tags in the recipe, or use encoder.image.weights=none or a file"
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
        return self.head(self.encoder.last_map(pixels_BSS3).mean(dim=(2, 3)))


def augmented(pixels_BSS3: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random shift and mirror, the same shift for a batch: nothing that would change a hand's colours
    or strokes. [B, S, S, 3] to [B, S, S, 3]."""
    size = pixels_BSS3.shape[1]
    margin = max(1, round(size * _CROP_MARGIN))
    x_B3SS = F.pad(pixels_BSS3.permute(0, 3, 1, 2).float(), [margin] * 4, mode="replicate")
    top, left = torch.randint(0, 2 * margin + 1, (2,), generator=generator).tolist()
    x_B3SS = x_B3SS[:, :, top : top + size, left : left + size]
    flip_B = torch.rand(len(x_B3SS), generator=generator) < 0.5
    x_B3SS = torch.where(flip_B[:, None, None, None], x_B3SS.flip(3), x_B3SS)
    return x_B3SS.permute(0, 2, 3, 1).to(torch.uint8)


def train_on_tags(
    encoder: ImageEncoder,
    data: TagData,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    device: torch.device,
    say: Callable[[str], None],
) -> float:
    """Train the encoder's body in place; return the validation mAP (macro over tags).

    A seeded tenth of the pictures validates. Positives weigh more where a tag is rare
    (square root of negatives / positives, at most 10). All ranks call this with the same data.

    Args:
        batch_size: pictures a step over all ranks.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    order = np.random.default_rng(seed).permutation(len(data.pixels))
    num_valid = max(1, len(order) // 10)
    valid, train = order[:num_valid], order[num_valid:]
    torch.manual_seed(seed)
    with torch.no_grad():
        dim = encoder.last_map(torch.from_numpy(data.pixels[:1])).shape[1]
    classifier = TagClassifier(encoder, dim, len(data.tags)).to(device)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model: nn.Module = DistributedDataParallel(classifier) if world > 1 else classifier
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    share = max(1, batch_size // world)
    steps = max(1, len(train) // (share * world))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=epochs * steps, pct_start=0.2
    )
    positives = data.targets[train].sum(axis=0).clip(1)
    ratio = np.sqrt((len(train) - positives).clip(1) / positives).clip(1, _MAX_POSITIVE_WEIGHT)
    weight_T = torch.from_numpy(ratio).float().to(device)
    generator = torch.Generator().manual_seed(seed * 7919 + rank)
    bar = tqdm(
        total=epochs * steps, desc="tag pretext", unit="step", disable=None if rank == 0 else True
    )
    score = 0.0
    for epoch in range(epochs):
        model.train()
        shuffled = np.random.default_rng([seed, epoch]).permutation(train)
        losses = []
        for step in range(steps):
            start = (step * world + rank) * share
            rows = shuffled[start : start + share]
            pixels = augmented(torch.from_numpy(data.pixels[rows]), generator).to(device)
            targets_BT = torch.from_numpy(data.targets[rows]).float().to(device)
            loss = F.binary_cross_entropy_with_logits(
                model(pixels), targets_BT, pos_weight=weight_T
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            bar.update(1)
        if epoch + 1 == epochs or (epoch + 1) % 2 == 0:
            score = mean_average_precision(classifier, data, valid, device)
            mean_loss = float(torch.stack(losses).mean())
            say(f"tag pretext epoch {epoch + 1}: loss {mean_loss:.4f}, validation mAP {score:.3f}")
    bar.close()
    classifier.eval()
    return score


@torch.inference_mode()
def mean_average_precision(
    classifier: TagClassifier, data: TagData, rows: np.ndarray, device: torch.device
) -> float:
    """Return the mean over tags of the average precision on `rows`; tags without positives left out."""
    classifier.eval()
    parts = [
        classifier(torch.from_numpy(data.pixels[rows[i : i + 128]]).to(device)).cpu()
        for i in range(0, len(rows), 128)
    ]
    scores = torch.cat(parts).numpy()
    targets = data.targets[rows]
    known = targets.any(axis=0)
    if not known.any():
        return 0.0
    return float(average_precision_score(targets[:, known], scores[:, known], average="macro"))
