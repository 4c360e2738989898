"""SimTier (Sheng et al., arXiv 2407.19467): histogram of similarities between an item and a history.

Called by RankerInputs, before the dense part: the history is read item by item, where interest vectors
are its mean.
Shapes: B rows, T items of all histories of the batch, E modality width, M modalities, K tiers.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class History:
    """Items of all histories of a batch, T in all; their vectors stay in the tables until asked for."""

    tables: dict[str, torch.Tensor]
    """Stored rows of all items by modality, in the layout of `ModalityTables`."""
    dims: dict[str, int]
    """Vector width E by modality."""
    item_T: torch.Tensor
    """Item rows."""
    row_T: torch.Tensor
    """The row of the batch that each item belongs to."""
    bases: dict[str, torch.Tensor] = field(default_factory=dict)
    """Basis [E, E] of the stored vectors by modality; without one they are as they were given."""

    def cosines(self, modality: str, item_BE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cosine with the row's item [T], present [T]) without gradient.

        A zero vector has the cosine 0 with everything.
        """
        table_ND, dim = self.tables[modality], self.dims[modality]
        # [T, E] is gigabytes for long histories: a piece of it at a time stays in a CPU's cache.
        piece = 4096 if table_ND.device.type == "cpu" else 262144
        cosines, presents = [], []
        with torch.no_grad():
            unit_BE = F.normalize(item_BE.float(), dim=1)
            if modality in self.bases:
                unit_BE = unit_BE @ self.bases[modality]
            for item_P, row_P in zip(
                self.item_T.split(piece), self.row_T.split(piece), strict=True
            ):
                stored_PD = table_ND[item_P].float()
                past_PE = stored_PD[:, :dim]
                norm_P = torch.linalg.vector_norm(past_PE, dim=1)
                dot_P = (past_PE * unit_BE[row_P]).sum(dim=1)
                cosines.append(dot_P / norm_P.clamp_min(1e-12))
                presents.append((stored_PD[:, dim] > 0).float())
        return torch.cat(cosines), torch.cat(presents)


class SimilarityTiers(nn.Module):
    """Histogram of cosines: log(1 + count) of past items in each of K equal tiers of [-1, 1].

    One histogram a modality, of the cosine between the item's and a past item's vector. Items without
    the modality are not counted.
    """

    def __init__(self, *, modality_dims: Mapping[str, int], num_tiers: int, num_histories: int):
        """The histogram has no parameter."""
        super().__init__()
        self.names = list(modality_dims)
        self.num_tiers = num_tiers
        self.out_dim = num_histories * len(self.names) * num_tiers

    def forward(
        self,
        histories: Sequence[History],
        items: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Return the histograms side by side [B, H * M * K]; an empty history gives zeros.

        Args:
            histories: H of them.
            items: per modality the item's vector [B, E] and whether it has one [B].
        """
        histograms = []
        for history, name in itertools.product(histories, self.names):
            item_BE, item_present_B = items[name]
            cosine_T, present_T = history.cosines(name, item_BE)
            tier_T = ((cosine_T + 1) / 2 * self.num_tiers).long().clamp(0, self.num_tiers - 1)
            counts_BK = torch.zeros_like(item_BE[:, :1], dtype=torch.float32)
            counts_BK = counts_BK.repeat(1, self.num_tiers)
            counted_T = present_T * item_present_B[history.row_T]
            counts_BK = counts_BK.index_put((history.row_T, tier_T), counted_T, accumulate=True)
            histograms.append(torch.log1p(counts_BK))
        return torch.cat(histograms, dim=1)
