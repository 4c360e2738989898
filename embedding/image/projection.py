"""Projections: raw statistics of a picture to the vector that is stored, fitted on a sample.

Four kinds behind one interface, used by the semantic and the style output of embedding/image/encoder.py:
`identity`, `principal` (PCA), `discriminant` (what differs between contents, not within them) and
`contrastive` (a small network that brings pictures of one artist together). Shapes: B pictures, N
pictures of the sample, V views of each, R raw statistics, D reduced width, E output width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from recsys.job import say

_COMPONENTS = 256
"""Principal components kept of each statistic that is wider, before anything is trained on it."""
_SHRINKAGE = 0.1
"""Shrinkage of the within-content covariance towards its mean variance (LOG.md, 2026-11-25)."""
_MAX_DISCRIMINANT_DIM = 1024


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Reduced statistics of pictures, and whose and what they are."""

    reduced_NVD: torch.Tensor
    """View 0 is the whole picture, the others are crops of it."""
    artist_N: torch.Tensor
    """int64; equal where the artist is the same. An unknown artist is one of its own."""
    content_N: torch.Tensor
    """int64; equal where the same thing is shown. Unknown content is one of its own."""


class Projection(nn.Module):
    """Base and identity: statistics side by side, nothing fitted."""

    def __init__(self) -> None:
        super().__init__()
        self.needs_labels = False

    def fit_reduction(self, statistics: Sequence[torch.Tensor]) -> None:
        """Fit what the statistics [N, R] alone tell; a no-op here."""

    def reduce(self, statistics: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return [B, D] of statistics [B, R]."""
        return torch.cat(list(statistics), dim=1)

    def fit(self, sample: Sample, seed: int) -> None:
        """Fit what artists and contents tell; a no-op here."""

    def head(self, reduced_BD: torch.Tensor) -> torch.Tensor:
        """Return [B, E] of reduced statistics [B, D]."""
        return reduced_BD

    def forward(self, statistics: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return [B, E] of statistics, each [B, R]."""
        return self.head(self.reduce(statistics))

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over the fitted tensors, [D, ...] by name, of `state_dict()` of an equal projection."""
        for name, tensor in state.items():
            self.register_buffer(name, tensor)


class Principal(Projection):
    """Leading principal components of every statistic, in one scale."""

    def __init__(self, dim: int, *, standardise: bool = False):
        """Args: dim: components of each statistic; standardise: first divide by deviations."""
        super().__init__()
        self.dim = dim
        self.standardise = standardise

    def fit_reduction(self, statistics: Sequence[torch.Tensor]) -> None:
        """Fit centre and components of each statistic [N, R] (randomised SVD)."""
        for index, raw_NR in enumerate(statistics):
            raw_NR = raw_NR.float()
            centre_R = raw_NR.mean(dim=0)
            centred_NR = raw_NR - centre_R
            scale_R = torch.ones_like(centre_R)
            if self.standardise:
                deviation_R = centred_NR.square().mean(dim=0).sqrt()
                scale_R = 1 / deviation_R.clamp_min(0.1 * float(deviation_R.mean()) + 1e-12)
            kept = min(self.dim, *centred_NR.shape)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                _, _, components_RD = torch.svd_lowrank(centred_NR * scale_R, q=kept, niter=2)
            spread = ((centred_NR * scale_R) @ components_RD).square().mean().sqrt()
            weight_RD = scale_R[:, None] * components_RD / spread.clamp_min(1e-12)
            self.register_buffer(f"centre{index}", centre_R)
            self.register_buffer(f"weight{index}", weight_RD.contiguous())

    def reduce(self, statistics: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return [B, D]: the components of every statistic side by side."""
        parts = [
            (raw_BR.float() - self.get_buffer(f"centre{i}")) @ self.get_buffer(f"weight{i}")
            for i, raw_BR in enumerate(statistics)
        ]
        return torch.cat(parts, dim=1)


class Discriminant(Principal):
    """Whitens what varies within a content, so that distances tell contents apart.

    x -> L^T (x - mean) with L L^T = inverse of the shrunk within-content covariance (WCCN, Hatch et
    al. 2006). A content's pictures by several artists, and crops and mirrors of one picture,
    show the variation that leaves the content the same. Without contents only the latter do.
    """

    def __init__(self) -> None:
        super().__init__(_MAX_DISCRIMINANT_DIM)
        self.needs_labels = True

    def fit_reduction(self, statistics: Sequence[torch.Tensor]) -> None:
        """Fit a reduction of statistics [N, R] only if they are too wide for a covariance."""
        if sum(raw.shape[1] for raw in statistics) > _MAX_DISCRIMINANT_DIM:
            super().fit_reduction(statistics)

    def reduce(self, statistics: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return [B, D]."""
        if hasattr(self, "centre0"):
            return super().reduce(statistics)
        return torch.cat([raw.float() for raw in statistics], dim=1)

    def fit(self, sample: Sample, seed: int) -> None:
        """Fit the within-content covariance."""
        rows_MD = sample.reduced_NVD.flatten(0, 1).double()
        content_M = sample.content_N.repeat_interleave(sample.reduced_NVD.shape[1])
        _, group_M = content_M.unique(return_inverse=True)
        size_G = torch.bincount(group_M).double()
        sums_GD = rows_MD.new_zeros(len(size_G), rows_MD.shape[1]).index_add_(0, group_M, rows_MD)
        within_MD = rows_MD - (sums_GD / size_G[:, None])[group_M]
        covariance_DD = within_MD.T @ within_MD / max(1, len(rows_MD) - len(size_G))
        dim = len(covariance_DD)
        floor = float(covariance_DD.diagonal().mean()) * _SHRINKAGE + 1e-12
        shrunk_DD = (1 - _SHRINKAGE) * covariance_DD + floor * torch.eye(dim, dtype=torch.float64)
        factor_DD = torch.linalg.cholesky(torch.linalg.inv(shrunk_DD))
        self.register_buffer("mean", rows_MD.mean(dim=0).float())
        self.register_buffer("factor", factor_DD.float().contiguous())

    def head(self, reduced_BD: torch.Tensor) -> torch.Tensor:
        """Return [B, D]."""
        return (reduced_BD - self.get_buffer("mean")) @ self.get_buffer("factor")


class Contrastive(Principal):
    """A small network trained so that pictures by one artist get similar vectors.

    Supervised contrastive loss (Khosla et al. 2020) over unit vectors. A batch is made of triplets:
    a picture, another one by the same artist, and one of the same content by another artist, which
    the head must learn to tell apart. If an artist is unknown or has one picture only, the
    second is a crop of the first.
    """

    def __init__(
        self,
        dim: int,
        *,
        steps: int,
        hidden_dim: int = 256,
        learning_rate: float = 1e-3,
        batch_size: int = 80,
        temperature: float = 0.1,
        dropout: float = 0.3,
    ):
        """Args: dim: output width; batch_size: triplets a step."""
        super().__init__(_COMPONENTS, standardise=True)
        self.needs_labels = True
        self.output_dim = dim
        self.steps = steps
        self.hidden_dim = hidden_dim
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.temperature = temperature
        self.dropout = dropout
        self.network: nn.Sequential | None = None

    def _build(self, input_dim: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Dropout(self.dropout),
            nn.Linear(input_dim, self.hidden_dim),
            nn.BatchNorm1d(self.hidden_dim),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden_dim, self.output_dim),
        )

    def fit(self, sample: Sample, seed: int) -> None:
        """Train the network on the sample, in place."""
        device = sample.reduced_NVD.device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = self._build(sample.reduced_NVD.shape[2]).to(device)
            optimizer = torch.optim.AdamW(
                network.parameters(), lr=self.learning_rate, weight_decay=0.05, fused=True
            )
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=self.learning_rate, total_steps=self.steps, pct_start=0.1
            )
            triplets = Triplets(sample, seed)
            network.train()
            total = torch.zeros((), device=device)
            for _ in range(self.steps):
                row_B, view_B = triplets.draw(self.batch_size)
                vectors_BE = network(sample.reduced_NVD[row_B, view_B])
                loss = supervised_contrastive(
                    vectors_BE, triplets.artist_N[row_B], temperature=self.temperature
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total = 0.98 * total + 0.02 * loss.detach()
        self.network = network.eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        say(
            f"style head: {self.steps} steps on {len(sample.reduced_NVD):,} pictures by "
            f"{triplets.num_artists:,} artists, loss {float(total):.3f}"
        )

    def head(self, reduced_BD: torch.Tensor) -> torch.Tensor:
        """Return unit vectors [B, E]."""
        assert self.network is not None, "fit or restore comes first"
        return F.normalize(self.network(reduced_BD), dim=1)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over fitted tensors, [D, ...] by name; the network's shape is read off them."""
        prefix = "network."
        super().restore({k: v for k, v in state.items() if not k.startswith(prefix)})
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if not weights:  # reduced, not trained yet
            return
        self.hidden_dim, input_dim = weights["1.weight"].shape
        self.network = self._build(input_dim)
        self.network.load_state_dict(weights)
        self.network.to(weights["1.weight"].device).eval().requires_grad_(False)


def supervised_contrastive(
    vectors_BE: torch.Tensor, label_B: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """Return the mean over rows of -1/|P| sum over p in P of log softmax(v . v_p / t).

    P: the other rows with the same label; rows without any do not count. Vectors are brought to unit
    length first. Khosla et al. 2020, equation 2 (L_out).
    """
    unit_BE = F.normalize(vectors_BE, dim=1)
    itself_BB = torch.eye(len(unit_BE), dtype=torch.bool, device=unit_BE.device)
    score_BB = (unit_BE @ unit_BE.T / temperature).masked_fill(itself_BB, -torch.inf)
    same_BB = (label_B[:, None] == label_B[None]) & ~itself_BB
    log_BB = score_BB - score_BB.logsumexp(dim=1, keepdim=True)
    num_B = same_BB.sum(dim=1)
    loss_B = -torch.where(same_BB, log_BB, 0).sum(dim=1) / num_B.clamp_min(1)
    return loss_B.sum() / (num_B > 0).sum().clamp_min(1)


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


PROJECTIONS: dict[str, Callable[[int, int], Projection]] = {
    "identity": lambda dim, steps: Projection(),
    "principal": lambda dim, steps: Principal(dim),
    "discriminant": lambda dim, steps: Discriminant(),
    "contrastive": lambda dim, steps: Contrastive(dim, steps=steps),
}
"""Unfitted projections by kind, of an output width and a number of optimizer steps."""


def build_projection(kind: str, *, dim: int, steps: int) -> Projection:
    """Return an unfitted projection of PROJECTIONS."""
    return PROJECTIONS[kind](dim, steps)
