"""Triplets of pictures, and the supervised contrastive loss that heads are trained with on them.

Called by embedding/image/projection.py. Shapes: B pictures of a batch, N pictures of the sample, V
views of each, T triplets, D reduced width, E output width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Reduced statistics of pictures, and whose and what they are."""

    reduced_NVD: torch.Tensor
    """View 0 is the whole picture, the others are crops of it."""
    artist_N: torch.Tensor
    """int64; equal where the artist is the same. An unknown artist is one of its own."""
    content_N: torch.Tensor
    """int64; equal where the same thing is shown. Unknown content is one of its own."""


class Triplets:
    """Draws batches of (a picture, one by the same artist, the same content by another artist)."""

    def __init__(self, sample: Sample, seed: int):
        """Args: sample: its views are drawn from too."""
        self.artist_N, self.content_N = sample.artist_N.cpu(), sample.content_N.cpu()
        self.num_views = sample.reduced_NVD.shape[1]
        self.generator = torch.Generator().manual_seed(seed)
        self.by_artist = _Groups(self.artist_N)
        self.by_content = _Groups(self.content_N)
        self.num_artists = self.by_artist.num

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (rows [B], views [B]) of `count` triplets, B at most 3 count."""
        total = len(self.artist_N)
        seed_T = torch.randint(0, total, (count,), generator=self.generator)
        view_T = torch.randint(0, self.num_views, (count,), generator=self.generator)
        hand_T = self.by_artist.member(seed_T, self.generator)
        # The same picture again must be another view of it.
        again_T = (view_T + 1) % self.num_views
        other_T = torch.randint(0, self.num_views, (count,), generator=self.generator)
        hand_view_T = torch.where(hand_T == seed_T, again_T, other_T)
        content_T = self.by_content.member(seed_T, self.generator)
        hard = self.artist_N[content_T] != self.artist_N[seed_T]
        rows = torch.cat([seed_T, hand_T, content_T[hard]])
        views = torch.cat([view_T, hand_view_T, view_T[hard]])
        # A picture drawn twice in one view would be its own trivial positive.
        _, index = torch.unique(rows * self.num_views + views, return_inverse=True)
        first = torch.full((int(index.max()) + 1,), len(rows)).scatter_reduce(
            0, index, torch.arange(len(rows)), reduce="amin"
        )
        return rows[first], views[first]


class _Groups:
    """Rows by label, for drawing another member of a row's group."""

    def __init__(self, label_N: torch.Tensor):
        _, self.group_N = label_N.unique(return_inverse=True)
        self.order_N = torch.argsort(self.group_N, stable=True)
        self.size_G = torch.bincount(self.group_N)
        self.start_G = self.size_G.cumsum(0) - self.size_G
        self.num = len(self.size_G)

    def member(self, row_T: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return a random member of each row's group; the row itself only where it is alone."""
        group_T = self.group_N[row_T]
        size_T = self.size_G[group_T]
        share_T = torch.rand(len(row_T), generator=generator)
        pick_T = (share_T * size_T).long().clamp_max(size_T - 1)
        drawn_T = self.order_N[self.start_G[group_T] + pick_T]
        next_T = self.order_N[self.start_G[group_T] + (pick_T + 1) % size_T]
        return torch.where(drawn_T == row_T, next_T, drawn_T)


def train_on_triplets(
    network: nn.Module,
    inputs_NVD: torch.Tensor,
    triplets: Triplets,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
) -> float:
    """Train a network in place by AdamW, one cycle; return the running mean of the loss.

    Args:
        loss_of: of rows int64 [B] of the sample and their vectors [B, E].
        batch_size: triplets a step.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, weight_decay=0.05, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=steps, pct_start=0.1
    )
    network.train()
    total = torch.zeros((), device=inputs_NVD.device)
    for _ in range(steps):
        row_B, view_B = triplets.draw(batch_size)
        loss = loss_of(row_B, network(inputs_NVD[row_B, view_B]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total = 0.98 * total + 0.02 * loss.detach()
    return float(total)


def supervised_contrastive(
    vectors_BE: torch.Tensor,
    label_B: torch.Tensor,
    *,
    temperature: float,
    offset_BB: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean over rows of -1/|P| sum over p in P of log softmax(v . v_p / t).

    P: the other rows with the same label; rows without any do not count. Vectors are brought to unit
    length first. Khosla et al. 2020, equation 2 (L_out).

    Args:
        offset_BB: added to the scores of pairs: log w makes a negative count w times; None: 0.
    """
    unit_BE = F.normalize(vectors_BE, dim=1)
    itself_BB = torch.eye(len(unit_BE), dtype=torch.bool, device=unit_BE.device)
    score_BB = unit_BE @ unit_BE.T / temperature
    if offset_BB is not None:
        score_BB = score_BB + offset_BB
    score_BB = score_BB.masked_fill(itself_BB, -torch.inf)
    same_BB = (label_B[:, None] == label_B[None]) & ~itself_BB
    log_BB = score_BB - score_BB.logsumexp(dim=1, keepdim=True)
    num_B = same_BB.sum(dim=1)
    loss_B = -torch.where(same_BB, log_BB, 0).sum(dim=1) / num_B.clamp_min(1)
    return loss_B.sum() / (num_B > 0).sum().clamp_min(1)
