"""Fit of the principal components that a ranker reduces modality vectors to, on its feature tables.

In: a ranker that is not sharded yet, and the tables of its modalities. Out: its maps, the same on every
rank. Called by recsys/run/assembly.py. Shapes: N items of a sample, E modality width.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import nn

from recsys.model.components import PrincipalComponents, principal_map
from recsys.runtime.collectives import share
from recsys.sharding.shards import Vectors

SAMPLE_ROWS = 65_536
"""Items that components are fitted on; a larger catalogue is sampled."""
_BLOCK_ROWS = 1024


def fit_components(dense: nn.Module, vectors: Mapping[str, Vectors]) -> None:
    """Fit the maps of a dense half that has any; all ranks call this, and the first one reads.

    Args:
        vectors: feature table by modality.
    """
    for part in dense.children():
        if isinstance(part, PrincipalComponents):
            part.fit(share(partial(_maps, part.dims, vectors)))


def _maps(dims: Mapping[str, int], vectors: Mapping[str, Vectors]) -> dict[str, torch.Tensor]:
    """Return the map [E, K] of every modality; dims: K of each."""
    return {name: principal_map(_sample(vectors[name]), dim) for name, dim in dims.items()}


def _sample(table: Vectors) -> torch.Tensor:
    """Return vectors [N, E] of the whole table, or of blocks of it, evenly spaced."""
    if table.num_rows <= SAMPLE_ROWS:
        return torch.from_numpy(table.read(0, table.num_rows).astype(np.float32))
    last = table.num_rows - _BLOCK_ROWS
    starts = np.linspace(0, last, SAMPLE_ROWS // _BLOCK_ROWS).astype(int)
    blocks = [table.read(start, start + _BLOCK_ROWS) for start in starts.tolist()]
    return torch.from_numpy(np.concatenate(blocks).astype(np.float32))
