"""Projections: raw statistics of a picture to the vector that is stored, fitted on a sample.

Five kinds behind one interface, used by the semantic and the style output of embedding/image/encoder.py:
`identity`, `principal` (PCA), `discriminant` (what differs between contents, not within them),
`contrastive` (small networks that bring pictures of one artist together) and `content_contrastive` (a
matrix that brings pictures of one content together). Shapes: B pictures, N pictures of the sample, V
views of each, R raw statistics, D reduced width, E output width, M networks of an ensemble.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from embedding.image.triplets import (
    Sample,
    Triplets,
    supervised_contrastive,
    train_on_triplets,
)
from recsys.errors import UserError
from recsys.job import say

_COMPONENTS = 256
"""Principal components kept of each statistic that is wider, before anything is trained on it."""
_SHRINKAGE = 0.1
"""Shrinkage of the within-content covariance towards its mean variance (LOG.md, 2026-11-25)."""
_MAX_DISCRIMINANT_DIM = 1024


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
        name: str = "style head",
    ):
        """Args: dim: output width; batch_size: triplets a step; name: of the head, in its line."""
        super().__init__(_COMPONENTS, standardise=True)
        self.needs_labels = True
        self.output_dim = dim
        self.steps = steps
        self.hidden_dim = hidden_dim
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.temperature = temperature
        self.dropout = dropout
        self.name = name
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
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = self._build(sample.reduced_NVD.shape[2]).to(sample.reduced_NVD.device)
            triplets = Triplets(sample, seed)

            def loss_of(row_B: torch.Tensor, vectors_BE: torch.Tensor) -> torch.Tensor:
                return supervised_contrastive(
                    vectors_BE, triplets.artist_N[row_B], temperature=self.temperature
                )

            total = train_on_triplets(
                network,
                sample.reduced_NVD,
                triplets,
                loss_of,
                steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
            )
        self.network = network.eval().requires_grad_(False)
        say(
            f"{self.name}: {self.steps} steps on {len(sample.reduced_NVD):,} pictures by "
            f"{triplets.num_artists:,} artists, loss {total:.3f}"
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


class ContrastiveEnsemble(Principal):
    """Several networks of `Contrastive` from starts of their own, brought back to one width.

    A deep ensemble (Lakshminarayanan et al. 2017): networks err on different pictures, and cosines of
    their vectors side by side are the mean of their cosines. The leading components of these vectors
    [M E], not centred, keep the cosines in E numbers.
    """

    def __init__(self, dim: int, *, steps: int, networks: int):
        """Args: dim: output width; steps: of each network."""
        super().__init__(_COMPONENTS, standardise=True)
        self.needs_labels = True
        self.output_dim = dim
        self.networks = [
            Contrastive(dim, steps=steps, name=f"style head, network {number} of {networks}")
            for number in range(1, networks + 1)
        ]
        self.members = nn.ModuleList(self.networks)

    def fit(self, sample: Sample, seed: int) -> None:
        """Train the networks on the sample, in place, then fit the components of their vectors."""
        for index, network in enumerate(self.networks):
            network.fit(sample, seed * len(self.networks) + index)
        with torch.no_grad():
            joined_NX = self._joined(sample.reduced_NVD[:, 0])
        # Double precision: products square the ratio of the largest to the smallest component.
        second_XX = (joined_NX.T.double() @ joined_NX.double()).cpu()
        _, vectors_XX = torch.linalg.eigh(second_XX)
        leading_XE = vectors_XX[:, -self.output_dim :].flip(1)
        self.register_buffer("leading", leading_XE.to(joined_NX).contiguous())

    def _joined(self, reduced_BD: torch.Tensor) -> torch.Tensor:
        """Return unit vectors of all networks side by side, [B, M E]."""
        return torch.cat([network.head(reduced_BD) for network in self.networks], dim=1)

    def head(self, reduced_BD: torch.Tensor) -> torch.Tensor:
        """Return unit vectors [B, E]."""
        return F.normalize(self._joined(reduced_BD) @ self.get_buffer("leading"), dim=1)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take over fitted tensors, [D, ...] by name."""
        own = {k: v for k, v in state.items() if not k.startswith("members.")}
        super().restore(own)
        for index, network in enumerate(self.networks):
            prefix = f"members.{index}."
            network.restore({
                k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)
            })


class ContentContrastive(Discriminant):
    """A matrix after the discriminant, trained so that pictures of one content get similar vectors.

    Supervised contrastive loss over triplets as in `Contrastive`, with the parts of artist and content
    exchanged: a picture, the same content by another artist, and another content by the same artist.
    Among the negatives, pictures by the same artist count `artist_weight` times, so that an artist's
    manner is no reason to be near. If a content is unknown or has one picture only, the second is a
    crop of the first.
    """

    def __init__(
        self,
        dim: int,
        *,
        steps: int,
        learning_rate: float = 1e-3,
        batch_size: int = 80,
        temperature: float = 0.05,
        dropout: float = 0.6,
        artist_weight: float = 300.0,
    ):
        """Args: dim: output width; batch_size: triplets a step."""
        super().__init__()
        self.output_dim = dim
        self.steps = steps
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.temperature = temperature
        self.dropout = dropout
        self.artist_offset = math.log(artist_weight)

    def fit(self, sample: Sample, seed: int) -> None:
        """Fit the within-content covariance, then train the matrix on the sample.

        Raises:
            UserError: no two pictures or views of one content.
        """
        super().fit(sample, seed)
        if sample.reduced_NVD.shape[1] == 1 and not sample.content_N.bincount().gt(1).any():
            raise UserError(
                "encoder.image.semantic_head=contrastive: no two pictures show the same content; "
                "expected a recipe with items.content, or encoder.image.fit_views=2 (crops)"
            )
        whitened_NVD = super().head(sample.reduced_NVD)
        scale = whitened_NVD.square().mean().sqrt().clamp_min(1e-12)
        whitened_NVD = whitened_NVD / scale
        exchanged = dataclasses.replace(
            sample, artist_N=sample.content_N, content_N=sample.artist_N
        )
        triplets = Triplets(exchanged, seed)

        def loss_of(row_B: torch.Tensor, vectors_BE: torch.Tensor) -> torch.Tensor:
            content_B, artist_B = triplets.artist_N[row_B], triplets.content_N[row_B]
            is_hard_BB = artist_B[:, None] == artist_B[None]
            is_hard_BB = is_hard_BB & (content_B[:, None] != content_B[None])
            offset_BB = self.artist_offset * is_hard_BB.to(vectors_BE)
            return supervised_contrastive(
                vectors_BE, content_B, temperature=self.temperature, offset_BB=offset_BB
            )

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            matrix = nn.Linear(whitened_NVD.shape[2], self.output_dim, bias=False)
            network = nn.Sequential(nn.Dropout(self.dropout), matrix).to(whitened_NVD.device)
            total = train_on_triplets(
                network,
                whitened_NVD,
                triplets,
                loss_of,
                steps=self.steps,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
            )
        trained_DE = matrix.weight.detach().T / scale
        # One product encodes a picture: the matrix is merged into the whitening.
        self.register_buffer("factor", (self.get_buffer("factor") @ trained_DE).contiguous())
        say(
            f"semantic head: {self.steps} steps on {len(whitened_NVD):,} pictures of "
            f"{triplets.num_artists:,} contents, loss {total:.3f}"
        )


PROJECTIONS: dict[str, Callable[[int, int, int], Projection]] = {
    "identity": lambda dim, steps, networks: Projection(),
    "principal": lambda dim, steps, networks: Principal(dim),
    "discriminant": lambda dim, steps, networks: Discriminant(),
    "contrastive": lambda dim, steps, networks: (
        Contrastive(dim, steps=steps)
        if networks == 1
        else ContrastiveEnsemble(dim, steps=steps, networks=networks)
    ),
    "content_contrastive": lambda dim, steps, networks: ContentContrastive(dim, steps=steps),
}
"""Unfitted projections by kind, of an output width, a number of optimizer steps and of networks."""


def build_projection(kind: str, *, dim: int, steps: int, networks: int = 1) -> Projection:
    """Return an unfitted projection of PROJECTIONS."""
    return PROJECTIONS[kind](dim, steps, networks)
