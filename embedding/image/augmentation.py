"""Random crops and mirrors of pictures: augmentation that keeps artist and content recognisable.

No colour jitter, no blur, no rotation: they would change an artist's palette, strokes and texture.
Shapes: B pictures, S side.
"""

import torch
import torch.nn.functional as F


def random_crops(
    pixels_BSS3: torch.Tensor, generator: torch.Generator, *, min_side: float, max_side: float = 1.0
) -> torch.Tensor:
    """Return a crop of every picture, scaled back to S and mirrored every other time.

    Args:
        pixels_BSS3: uint8 [B, S, S, 3].
        min_side: least side of a crop, as a part of S; its proportions vary by a tenth.
        max_side: greatest; above 1 the border is repeated outwards.

    Returns:
        uint8 [B, S, S, 3].
    """
    count = len(pixels_BSS3)

    def uniform(low: float, high: float) -> torch.Tensor:
        """Return float32 [B]."""
        return low + (high - low) * torch.rand(count, generator=generator)

    side_B = uniform(min_side, max_side)
    stretch_B = uniform(-0.1, 0.1).exp()
    mirror_B = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    # grid_sample's matrix: what it reads at x is picture[theta x].
    theta_B23 = torch.zeros(count, 2, 3)
    theta_B23[:, 0, 0] = side_B * stretch_B * mirror_B
    theta_B23[:, 1, 1] = side_B / stretch_B
    room_B = (1 - side_B).abs()
    theta_B23[:, 0, 2] = uniform(-1, 1) * room_B
    theta_B23[:, 1, 2] = uniform(-1, 1) * room_B
    values_B3SS = pixels_BSS3.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(theta_B23, list(values_B3SS.shape), align_corners=False)
    cropped_B3SS = F.grid_sample(
        values_B3SS, grid.to(values_B3SS.device), padding_mode="border", align_corners=False
    )
    return cropped_B3SS.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
