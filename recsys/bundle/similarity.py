"""SimTier histograms of a request: similarities of items to be scored with the items of a history.

The numbers are those of recsys/model/history.py, which needs the whole tables; here the vectors are
gathered, and cosines are one matrix product.
Shapes: R rows of one user, T items of the user's history, E modality width, K tiers.
"""

import torch
import torch.nn.functional as F

_BORDER = 1e-4
"""Distance to a border of tiers, in tiers, below which a cosine is computed in the order of training: a
matrix product rounds otherwise, and the pair would be counted in the tier beside."""


def tiers(item_RE: torch.Tensor, past_TE: torch.Tensor, num_tiers: int) -> torch.Tensor:
    """Return the tier of every pair of an item and a past item, int64 [R, T]."""
    unit_RE = F.normalize(item_RE, dim=1)
    norm_T = torch.linalg.vector_norm(past_TE, dim=1).clamp_min(1e-12)
    place_RT = _place(unit_RE @ past_TE.T / norm_T, num_tiers)
    near_R, near_T = ((place_RT - place_RT.round()).abs() < _BORDER).nonzero(as_tuple=True)
    if near_R.shape[0]:
        cosine = (past_TE[near_T] * unit_RE[near_R]).sum(dim=1) / norm_T[near_T]
        place_RT[near_R, near_T] = _place(cosine, num_tiers)
    return place_RT.long().clamp(0, num_tiers - 1)


def histogram(
    tier_RT: torch.Tensor,
    item_present_R: torch.Tensor,
    past_present_T: torch.Tensor,
    num_tiers: int,
) -> torch.Tensor:
    """Return log(1 + count) of past items by tier [R, K]; those without the modality do not count.

    Args:
        item_present_R: 1 or 0, times the user's dial.
    """
    counted_RT = item_present_R[:, None] * past_present_T
    counts_RK = counted_RT.new_zeros(tier_RT.shape[0], num_tiers)
    return torch.log1p(counts_RK.scatter_add_(1, tier_RT, counted_RT))


def _place(cosine: torch.Tensor, num_tiers: int) -> torch.Tensor:
    return (cosine + 1) / 2 * num_tiers
