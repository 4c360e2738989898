"""Logistic regression: logit = b + sum_i w_i x_i.

x are the sparse ids (the mean over a list's), the modality vectors and the interest vectors.
Shapes: B rows.
"""

from dataclasses import dataclass

import torch
from torch import nn

from recsys.model.baselines.inputs import BaselineConfig, FirstOrder, unmeasured
from recsys.model.inputs import DenseInputs, InputSizes


@dataclass(frozen=True, kw_only=True)
class LogisticRegressionConfig(BaselineConfig):
    """Settings of logistic regression."""

    name: str = "lr"
    """`lr`."""
    embedding_dim: int = 4
    """Stored width of every table; the first-order weight is the last of these columns."""

    def problems(self) -> list[str]:
        """Return a text for everything that this model cannot be built with."""
        text = "first_order=false: model.name=lr is made of first-order weights; use true"
        return super().problems() + [text] * (not self.first_order)


class LogisticRegression(nn.Module):
    """First-order terms alone; the ranker adds those of ids."""

    def __init__(self, config: LogisticRegressionConfig, sizes: InputSizes):
        """Only modalities and interests have weights here."""
        super().__init__()
        self.modality_names: list[str] = []
        self.first_order = FirstOrder(sizes)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        return unmeasured(self.first_order(inputs))


RANKERS = ((LogisticRegressionConfig, LogisticRegression),)
