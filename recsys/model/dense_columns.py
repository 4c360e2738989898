"""Dense features of a ranker: scaled numbers in, each as its value and a flag of a missing one.

Called by RankerInputs and by the models that multiply feature vectors.
Shapes: B rows, K dense features, D width of a vector.
"""

from collections.abc import Sequence

import torch
from torch import nn


class DenseColumns(nn.Module):
    """Picks one side's numbers: (x, 0), or (0, 1) where x is missing."""

    def __init__(self, names: Sequence[str], places: Sequence[int]):
        """Args: names: of the side's K features; places: of their columns among all of a batch."""
        super().__init__()
        self.feature_names = list(names)
        self.places = list(places)

    @property
    def out_dim(self) -> int:
        """Width of what `forward` returns."""
        return 2 * len(self.feature_names)

    def forward(self, dense_BK: torch.Tensor) -> torch.Tensor:
        """Return value and flag of every feature side by side [B, 2 K] of all numbers [B, .]."""
        pairs = []
        for place in self.places:
            number_B = dense_BK[:, place]
            pairs += [number_B.nan_to_num(nan=0.0), number_B.isnan().to(number_B.dtype)]
        return torch.stack(pairs, dim=1)


class DenseVectors(nn.Module):
    """Vectors of numbers, as factorization machines have them: v_k = x_k w_k + missing_k w'_k."""

    def __init__(self, num_features: int, dim: int):
        """Args: num_features: K; dim: D."""
        super().__init__()
        self.num_features = num_features
        self.weight = nn.Parameter(torch.empty(num_features, 2, dim))
        # As small as the embeddings start, so that neither drowns the other.
        nn.init.normal_(self.weight, std=0.002)

    def forward(self, pairs_BP: torch.Tensor) -> torch.Tensor:
        """Return the vectors [B, K, D] of values and flags [B, 2 K]."""
        pairs_BK2 = pairs_BP.unflatten(1, (self.num_features, 2))
        return torch.einsum("bkp,kpd->bkd", pairs_BK2, self.weight)


def dense_vectors(num_features: int, dim: int) -> DenseVectors | None:
    """Return the vectors of a side's dense features; None without any."""
    return DenseVectors(num_features, dim) if num_features else None


def split_dense(columns_BX: torch.Tensor, num_features: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a side's columns without its dense features [B, X - 2 K], and these [B, 2 K]."""
    num_vectors = columns_BX.shape[1] - 2 * num_features
    return columns_BX[:, :num_vectors], columns_BX[:, num_vectors:]


def names_of(columns: DenseColumns | None) -> tuple[str, ...]:
    """Return the dense features of a side; none without columns."""
    return () if columns is None else tuple(columns.feature_names)
