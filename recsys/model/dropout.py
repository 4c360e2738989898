"""Dropout (Srivastava et al. 2014) by 16 random bits a number on a CPU, by torch's kernel elsewhere.

Called by towers, UMAIR-FPS and its fusion. Shapes: B rows.
"""

import torch
from torch import nn

_BITS = 16


class Dropout(nn.Dropout):
    """Dropout whose rate is a multiple of 1 / 65,536 on a CPU.

    Torch draws 64 bits for every number, one draw after the other. A quarter of the draws, compared as
    integers, takes a fifth of the time (LOG.md, 2026-11-28). They are draws of torch's generator: its
    seed, or its state in a checkpoint, repeats the masks.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, ...] to the same shape: zeros, and the others divided by the share that is kept."""
        is_plain = input.device.type != "cpu" or torch.compiler.is_compiling()
        if is_plain or not self.training or not 0 < self.p < 1:
            return super().forward(input)
        return input * self.factors(input)

    def factors(self, like: torch.Tensor) -> torch.Tensor:
        """Return what training on a CPU multiplies an input by, [B, ...] as `like` is."""
        if self.p in (0, 1):
            return torch.full_like(like, 1 - self.p)
        # Never 0 or all of them: nothing is divided by 0, and every limit is a number of 16 bits.
        num_kept = min(max(1, round((1 - self.p) * 2**_BITS)), 2**_BITS - 1)
        words = torch.empty(-(-like.numel() * _BITS // 64), dtype=torch.int64)
        bits = words.random_(-(2**63), None).view(torch.int16)[: like.numel()].view(like.shape)
        # In place: truth values are converted to floats seven times as slowly as integers.
        kept = bits.lt_(num_kept - 2 ** (_BITS - 1))
        return kept.to(like.dtype).mul_(2**_BITS / num_kept)
