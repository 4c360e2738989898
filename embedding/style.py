"""Style heads: what the early blocks of a network say of how a picture is painted.

Gram statistics of early feature maps F_k [B, C, H, W] (Gatys et al. 2016; UMAIR-FPS,
arXiv 2402.10381), one head beside another behind one interface: maps in, raw vectors out.
Shapes: B pictures, K blocks, C channels, H, W positions, D output width.
"""

from collections.abc import Callable, Sequence

import torch

StyleHead = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def gram(map_BCHW: torch.Tensor) -> torch.Tensor:
    """Return G = F F^T / (H W), [B, C, C]."""
    flat_BCP = map_BCHW.flatten(start_dim=2)
    return flat_BCP @ flat_BCP.transpose(1, 2) / flat_BCP.shape[2]


def gram_max(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """The paper's head: style[d] = max_k max_c G_k[c, d], [B, C]; all blocks have equal width."""
    return torch.stack([gram(m).amax(dim=1) for m in maps]).amax(dim=0)


def moments(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Channel means and standard deviations of every block, [B, 2 K C]."""
    parts = []
    for map_BCHW in maps:
        flat_BCP = map_BCHW.flatten(start_dim=2)
        parts += [flat_BCP.mean(dim=2), flat_BCP.std(dim=2, correction=0)]
    return torch.cat(parts, dim=1)


def gram_root(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Upper triangles of the Gram matrices, signed square root, [B, K C (C + 1) / 2].

    The input of `gram_pca`: its principal components are fitted on a sample of pictures.
    """
    parts = []
    for map_BCHW in maps:
        gram_BCC = gram(map_BCHW)
        row, column = torch.triu_indices(gram_BCC.shape[1], gram_BCC.shape[1])
        upper_BU = gram_BCC[:, row, column]
        parts.append(upper_BU.sign() * upper_BU.abs().sqrt())
    return torch.cat(parts, dim=1)


STYLE_HEADS: dict[str, StyleHead] = {
    "gram_max": gram_max,
    "moments": moments,
    "gram_pca": gram_root,
}
"""Raw outputs by name; embedding/image.py standardises them, and projects those of gram_pca."""
