"""Logistic regression: logit = b + sum_i w_i x_i.

x are the sparse ids (the mean over a list's), the modality vectors and the interest vectors.
Shapes: B rows.
"""

import torch
from torch import nn

from recsys.model.baselines.inputs import FirstOrder, unmeasured
from recsys.model.inputs import DenseInputs


class LogisticRegression(nn.Module):
    """First-order terms alone."""

    def __init__(self, *, first_order: FirstOrder):
        """Args: first_order: b and the weights of modalities; the ranker adds those of ids."""
        super().__init__()
        self.modality_names: list[str] = []
        self.first_order = first_order

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        return unmeasured(self.first_order(inputs))
