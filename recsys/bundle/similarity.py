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


def histogram(
    item_RE: torch.Tensor,
    item_present_R: torch.Tensor,
    past_TE: torch.Tensor,
    past_present_T: torch.Tensor,
    num_tiers: int,
) -> torch.Tensor:
    """Return log(1 + count) of past items by tier of their cosine with each item [R, K].

    Args:
        item_RE, past_TE: vectors, zero where an item has none.
        item_present_R: 1 or 0, times the user's dial; items without the modality count nothing.
        past_present_T: 1 or 0; past items without the modality are not counted.
    """
    counted_RT = item_present_R[:, None] * past_present_T
    counts_RK = item_RE.new_zeros(item_RE.shape[0], num_tiers)
    tier_RT = _tiers(item_RE, past_TE, counted_RT > 0, num_tiers)
    return torch.log1p(counts_RK.scatter_add_(1, tier_RT, counted_RT))


def _tiers(
    item_RE: torch.Tensor, past_TE: torch.Tensor, is_counted_RT: torch.Tensor, num_tiers: int
) -> torch.Tensor:
    """Return the tier of every pair, int64 [R, T]; those that do not count may have any."""
    unit_RE = F.normalize(item_RE, dim=1)
    norm_T = torch.linalg.vector_norm(past_TE, dim=1).clamp_min(1e-12)
    place_RT = _place(unit_RE @ past_TE.T / norm_T, num_tiers)
    is_near_RT = (place_RT - place_RT.round()).abs() < _BORDER
    near_R, near_T = (is_near_RT & is_counted_RT).nonzero(as_tuple=True)
    if near_R.shape[0]:
        cosine = (past_TE[near_T] * unit_RE[near_R]).sum(dim=1) / norm_T[near_T]
        place_RT[near_R, near_T] = _place(cosine, num_tiers)
    return place_RT.long().clamp(0, num_tiers - 1)


def _place(cosine: torch.Tensor, num_tiers: int) -> torch.Tensor:
    return (cosine + 1) / 2 * num_tiers
