"""Principal components of modality vectors: a fixed linear map ahead of everything that is learned.

Called by UMAIR-FPS; recsys/run/components.py fits it on the feature tables before a training.
Shapes: N items of a sample, B rows, E modality width, K components.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

Vector = tuple[torch.Tensor, torch.Tensor]
"""A vector [B, E] and whether it is there [B]."""


def principal_map(vectors_NE: torch.Tensor, num_components: int) -> torch.Tensor:
    """Return V / s [E, K], fp32: the leading K principal axes of vectors whose mean is about zero.

    s is the root mean square of the components over items and axes. A row of zeros is no vector;
    without any vector the map is one of zeros. K is at most E.
    """
    vectors_NE = vectors_NE[(vectors_NE != 0).any(dim=1)].double()
    moment_EE = vectors_NE.T @ vectors_NE / max(1, len(vectors_NE))
    variance_E, axes_EE = torch.linalg.eigh(moment_EE)  # from the least to the greatest
    variance_K = variance_E[-num_components:].clamp_min(0)
    if not variance_K.sum():
        return torch.zeros(len(variance_E), len(variance_K))
    return (axes_EE[:, -num_components:].flip(1) / variance_K.mean().sqrt()).float()


class PrincipalComponents(nn.Module):
    """Principal component analysis of every modality, not whitened: y = e V / s (principal_map).

    A step of Adam moves the output of a matrix by up to its step size times sum_d |e_d|, so that the
    projection of a wide vector is learned ahead of the ids and tells items apart before it tells what
    they have in common: vectors of no content cost as much (LOG.md). K components learn E / K times
    more slowly and leave fewer weights to learn items by heart.
    """

    def __init__(self, *, modality_dims: Mapping[str, int], num_components: int):
        """Build maps that are not fitted: they give NaN until `fit` or a checkpoint fills them.

        Args:
            modality_dims: vector width E by modality.
            num_components: K; a narrower modality keeps its width.
        """
        super().__init__()
        self.dims = {name: min(width, num_components) for name, width in modality_dims.items()}
        for name, width in modality_dims.items():
            self.register_buffer(_buffer(name), torch.full((width, self.dims[name]), torch.nan))

    def fit(self, maps: Mapping[str, torch.Tensor]) -> None:
        """Take over the map [E, K] of every modality."""
        for name in self.dims:
            self.get_buffer(_buffer(name)).copy_(maps[name])

    def items(self, modalities: Mapping[str, Vector]) -> dict[str, Vector]:
        """Return the components [B, K] of every modality's vector [B, E], and its presence [B]."""
        return {name: self._reduced(name, modalities[name]) for name in self.dims}

    def interests(self, names: Sequence[str], interests: Sequence[Vector]) -> list[Vector]:
        """Return the same of interest vectors, which are means of items' vectors; names: of each."""
        return [self._reduced(name, one) for name, one in zip(names, interests, strict=True)]

    def _reduced(self, name: str, vector: Vector) -> Vector:
        vector_BE, present_B = vector
        return vector_BE @ self.get_buffer(_buffer(name)), present_B


def build_components(dims: Mapping[str, int], num_components: int) -> PrincipalComponents | None:
    """Return maps [E, K] for the widths E of the modalities; None without modality, or for K = 0."""
    if not num_components or not dims:
        return None
    return PrincipalComponents(modality_dims=dims, num_components=num_components)


def _buffer(name: str) -> str:
    return f"map_{name}"
