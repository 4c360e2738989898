"""Dropout (Srivastava et al. 2014) with torch's own masks, drawn in less time on a CPU.

Called by towers, UMAIR-FPS and its fusion. Shapes: B rows.
"""

import torch
from torch import nn


def _draws_in_a_row() -> bool:
    """Return whether a mask of torch's is one uniform number after the other; with MKL it is not."""
    of_torch, of_numbers = (torch.empty(64, dtype=torch.float64) for _ in range(2))
    of_torch.bernoulli_(0.5, generator=torch.Generator().manual_seed(0))
    of_numbers.uniform_(generator=torch.Generator().manual_seed(0))
    return torch.equal(of_torch > 0, of_numbers < 0.5)


_DRAWS_IN_A_ROW = _draws_in_a_row()


class Dropout(nn.Dropout):
    """Dropout whose output is that of torch.nn.Dropout from the same seed, bit for bit.

    On an AMD processor torch compares every number with the rate as it draws it: half of the branches of
    a mask of one half are taken wrongly, which doubles its time (LOG.md, 2026-11-28). Here numbers are
    drawn first and compared together.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [B, ...] to the same shape: zeros, and the others divided by the share that is kept."""
        is_plain = not _DRAWS_IN_A_ROW or input.is_cuda or torch.compiler.is_compiling()
        if is_plain or not self.training or not 0 < self.p < 1:
            return super().forward(input)
        return input * self.factors(input)

    def factors(self, like: torch.Tensor) -> torch.Tensor:
        """Return what training on a CPU multiplies an input by, [B, ...] as `like` is."""
        if self.p in (0, 1):  # torch draws nothing either
            return torch.full_like(like, 1 - self.p)
        if not _DRAWS_IN_A_ROW:
            return torch.empty_like(like).bernoulli_(1 - self.p).div_(1 - self.p)
        kept = torch.empty_like(like, dtype=torch.float64).uniform_() < 1 - self.p
        return kept.to(like.dtype).div_(1 - self.p)
