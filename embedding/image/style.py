"""Style heads: statistics of pixels and of early blocks of a network that describe painting style.

A head is a list of statistics and a projection of them (embedding/image/projection.py). Statistics do not
know where in the picture something is: Gram matrices of early feature maps (Gatys et al. 2016;
UMAIR-FPS, arXiv 2402.10381), moments of their channels, the palette, and difference histograms (Unser
1986). LOG.md has the table that chose the default.
Shapes: B pictures, S side, K blocks, C channels, H, W positions, P pairs of pixels, R statistics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

PALETTE_BINS = 16
"""Per colour channel: 4,096 colours."""
_PALETTE_SIDE = 96
_DISTANCES = (1, 2, 4)
"""Of the pixels whose difference is counted, in a picture of about 96 pixels a side."""
_DIFFERENCE_BINS = 21


def gram(map_BCHW: torch.Tensor) -> torch.Tensor:
    """Return G = F F^T / (H W), [B, C, C]."""
    flat_BCP = map_BCHW.flatten(start_dim=2)
    return flat_BCP @ flat_BCP.transpose(1, 2) / flat_BCP.shape[2]


def gram_max(pixels_BSS3: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The paper's: style[d] = max_k max_c G_k[c, d], [B, C]; all blocks have equal width."""
    return [torch.stack([gram(m).amax(dim=1) for m in maps]).amax(dim=0)]


def moments(pixels_BSS3: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Channel means and standard deviations of every block, [B, 2 K C]."""
    parts = []
    for map_BCHW in maps:
        mean_BC = map_BCHW.mean(dim=(2, 3))
        variance_BC = map_BCHW.square().mean(dim=(2, 3)) - mean_BC.square()
        parts += [mean_BC, variance_BC.clamp_min(0).sqrt()]
    return [torch.cat(parts, dim=1)]


def grid_means(maps: Sequence[torch.Tensor], cells: int) -> list[torch.Tensor]:
    """Channel means of every block in each cell of a grid of `cells` a side, K of [B, C cells cells].

    A spatial pyramid (Lazebnik et al. 2006) of one level; no statistic of style, as it tells places.
    """
    return [F.adaptive_avg_pool2d(map_BCHW, cells).flatten(1) for map_BCHW in maps]


def gram_roots(pixels_BSS3: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Upper triangle of each block's Gram matrix, signed square root, K of [B, C (C + 1) / 2]."""
    parts = []
    for map_BCHW in maps:
        gram_BCC = gram(map_BCHW)
        row, column = torch.triu_indices(gram_BCC.shape[1], gram_BCC.shape[1])
        upper_BU = gram_BCC[:, row, column]
        parts.append(upper_BU.sign() * upper_BU.abs().sqrt())
    return parts


def joined_gram_roots(
    pixels_BSS3: torch.Tensor, maps: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The same of all blocks side by side, [B, K C (C + 1) / 2]."""
    return [torch.cat(gram_roots(pixels_BSS3, maps), dim=1)]


def palette(pixels_BSS3: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Square roots of the shares of 16 x 16 x 16 colours, [B, 4096]; uint8 pictures [B, S, S, 3].

    The root makes the inner product of two palettes their Bhattacharyya coefficient.
    """
    return [_colour_shares(pixels_BSS3).flatten(1).sqrt()]


def palettes(pixels_BSS3: torch.Tensor, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The palette of 4,096 colours, [B, 4096], and a coarser one, [B, 512], that merges shades."""
    fine_BRGB = _colour_shares(pixels_BSS3)
    half = PALETTE_BINS // 2
    coarse_BRGB = fine_BRGB.unflatten(3, (half, 2)).unflatten(2, (half, 2))
    coarse_BRGB = coarse_BRGB.unflatten(1, (half, 2)).sum(dim=(2, 4, 6))
    return [fine_BRGB.flatten(1).sqrt(), coarse_BRGB.flatten(1).sqrt()]


def _colour_shares(pixels_BSS3: torch.Tensor) -> torch.Tensor:
    """Return the share of pixels of every colour, [B, 16, 16, 16]."""
    # Every second, third, ... pixel of a large picture says as much about its colours.
    step = max(1, pixels_BSS3.shape[1] // _PALETTE_SIDE)
    sampled_BP3 = pixels_BSS3[:, ::step, ::step].flatten(1, 2).to(torch.int64)
    bins_BP3 = sampled_BP3 * PALETTE_BINS // 256
    colour_BP = (bins_BP3[..., 0] * PALETTE_BINS + bins_BP3[..., 1]) * PALETTE_BINS
    colour_BP = colour_BP + bins_BP3[..., 2]
    count_BR = torch.zeros(len(colour_BP), PALETTE_BINS**3, device=colour_BP.device)
    count_BR.scatter_add_(1, colour_BP, torch.ones_like(colour_BP, dtype=count_BR.dtype))
    return (count_BR / colour_BP.shape[1]).unflatten(1, (PALETTE_BINS,) * 3)


def roots_and_palettes(
    pixels_BSS3: torch.Tensor, maps: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Line and texture by every block's Gram matrix, colour by two palettes; each statistic [B, R]."""
    return gram_roots(pixels_BSS3, maps) + palettes(pixels_BSS3, maps)


def difference_histograms(pixels_BSS3: torch.Tensor) -> torch.Tensor:
    """Return roots of the shares of differences between near pixels, [B, 378]: texture and edges.

    Lightness, red against green and yellow against blue; 1, 2 and 4 pixels to the right and down; 21 bins
    of the signed logarithm, as flat parts differ little and outlines much. A picture of twice 96 pixels
    or more is averaged first, so that an edge is as wide in pixels at any size.
    """
    side = pixels_BSS3.shape[1]
    step = max(1, side // _PALETTE_SIDE)
    colour_B3SS = F.avg_pool2d(pixels_BSS3.permute(0, 3, 1, 2).float() / 255, step)
    opponent_33 = colour_B3SS.new_tensor([
        [0.299, 0.587, 0.114],
        [0.5, -0.5, 0],
        [0.25, 0.25, -0.5],
    ])
    opponent_B3SS = torch.einsum("dc,bchw->bdhw", opponent_33, colour_B3SS)
    bins_511 = _difference_bins(pixels_BSS3.device)
    parts = []
    for distance in _DISTANCES:
        for axis in (3, 2):
            length = opponent_B3SS.shape[axis] - distance
            far, near = (opponent_B3SS.narrow(axis, start, length) for start in (distance, 0))
            bin_B3P = bins_511[((far - near) * 255).round().long() + 255].flatten(2)
            count_B3R = torch.zeros(*bin_B3P.shape[:2], _DIFFERENCE_BINS, device=bin_B3P.device)
            count_B3R.scatter_add_(2, bin_B3P, torch.ones_like(bin_B3P, dtype=count_B3R.dtype))
            parts.append(count_B3R.flatten(1) / bin_B3P.shape[2])
    return torch.cat(parts, dim=1).sqrt()


def _difference_bins(device: torch.device) -> torch.Tensor:
    """Return int64 [511]: the bin of each difference from -255 to 255, of equal width in logarithm."""
    difference_511 = torch.arange(-255, 256, device=device) / 255
    signed_511 = difference_511.sign() * torch.log1p(100 * difference_511.abs()) / math.log1p(100)
    return ((signed_511 + 1) / 2 * _DIFFERENCE_BINS).long().clamp_max(_DIFFERENCE_BINS - 1)


Statistic = Callable[[torch.Tensor, Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class StyleHead:
    """Statistics of a head, and their projection to a vector."""

    statistics: Statistic
    projection: str
    """Kind of projection in embedding/image/projection.py."""


STYLE_HEADS = {
    "gram_max": StyleHead(statistics=gram_max, projection="identity"),
    "moments": StyleHead(statistics=moments, projection="identity"),
    "gram_pca": StyleHead(statistics=joined_gram_roots, projection="principal"),
    "palette": StyleHead(statistics=palette, projection="principal"),
    "contrastive": StyleHead(statistics=roots_and_palettes, projection="contrastive"),
}
"""By name: encoder.image.style_head."""
