"""Logistic regression: logit = b + sum_i w_i x_i.

x are the sparse ids (the mean over a list's), the modality vectors and the interest vectors.
Shapes: B rows.
"""

from dataclasses import dataclass

import torch

from recsys.model.baselines.inputs import Baseline, BaselineConfig, FirstOrder
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


class LogisticRegression(Baseline):
    """First-order terms alone; the ranker adds those of ids."""

    def __init__(self, config: LogisticRegressionConfig, sizes: InputSizes):
        """Only modalities and interests have weights here."""
        super().__init__(config, sizes)
        self.first_order = FirstOrder(self.sizes)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        return self.first_order(inputs)


RANKERS = ((LogisticRegressionConfig, LogisticRegression),)
