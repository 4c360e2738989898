"""The item against each item of the user's history, by modality: options of UMAIR-FPS.

Both modules read the history item by item, where interest vectors are its mean.
Shapes: B rows, T items of all histories of the batch, E modality width, H projected width, K tiers.
"""

from collections.abc import Mapping

import torch
from torch import nn

from recsys.model.mlp import Tower
from recsys.model.ranker import DenseInputs


class SimilarityTiers(nn.Module):
    """SimTier (Sheng et al., arXiv 2407.19467): how many past items are how similar to this one.

    The cosine of the item's and a past item's vector falls into one of K equal tiers of [-1, 1];
    log(1 + count) of each tier and modality leaves. Items without the modality are not counted.
    """

    def __init__(self, *, modality_dims: Mapping[str, int], num_tiers: int):
        """The histogram has no parameter."""
        super().__init__()
        self.names = list(modality_dims)
        self.num_tiers = num_tiers
        self.out_dim = len(self.names) * num_tiers

    def forward(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the histograms side by side [B, M * K]; an empty history gives zeros."""
        assert inputs.history is not None, "the inputs are built with a sequence"
        row_T = inputs.history.row_T
        histograms = []
        for name in self.names:
            item_BE, item_present_B = inputs.modalities[name]
            cosine_T, present_T = inputs.history.cosines(name, item_BE)
            tier_T = ((cosine_T + 1) / 2 * self.num_tiers).long().clamp(0, self.num_tiers - 1)
            counts_BK = torch.zeros_like(item_BE[:, :1]).repeat(1, self.num_tiers)
            counted_T = present_T * item_present_B[row_T]
            counts_BK = counts_BK.index_put((row_T, tier_T), counted_T, accumulate=True)
            histograms.append(torch.log1p(counts_BK))
        return torch.cat(histograms, dim=1)


class HistoryAttention(nn.Module):
    """Attention over the history (DIN, Zhou et al., arXiv 1706.06978) with modality vectors.

    k_t = W e_t, q = W e; a_t = MLP([k_t ; q ; k_t * q]); leaves sum_t a_t k_t / number of past items.
    As in DIN the a_t are not normalised: their sum says how strong the interest is.
    """

    def __init__(self, *, modality_dims: Mapping[str, int], dim: int, hidden_dim: int):
        """Args: dim: width H of the projected vectors; hidden_dim: of the attention's MLP."""
        super().__init__()
        self.linear = nn.ModuleDict({
            name: nn.Linear(width, dim) for name, width in modality_dims.items()
        })
        self.score = nn.ModuleDict({
            name: Tower(in_dim=3 * dim, hidden_dims=[hidden_dim, 1], activation_on_last=False)
            for name in modality_dims
        })
        self.out_dim = dim * len(modality_dims)

    def forward(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the attended vectors side by side [B, M * H]; an empty history gives zeros."""
        assert inputs.history is not None, "the inputs are built with a sequence"
        row_T = inputs.history.row_T
        attended = []
        for name, linear in self.linear.items():
            item_BE, item_present_B = inputs.modalities[name]
            past_TE, present_T = inputs.history.vectors(name)
            key_TH = linear(past_TE)
            query_BH = linear(item_BE)
            query_TH = query_BH[row_T]
            both_TH = torch.cat([key_TH, query_TH, key_TH * query_TH], dim=1)
            weight_T = self.score[name](both_TH)[:, 0] * present_T * item_present_B[row_T]
            # Summed in fp32, in whichever precision autocast multiplied.
            zeros_BH = torch.zeros_like(query_BH, dtype=torch.float32)
            sum_BH = zeros_BH.index_add(0, row_T, key_TH * weight_T[:, None])
            count_B = torch.zeros_like(item_present_B).index_add(0, row_T, present_T)
            attended.append(sum_BH / count_B.clamp_min(1.0)[:, None])
        return torch.cat(attended, dim=1)
