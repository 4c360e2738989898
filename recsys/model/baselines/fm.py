"""Factorization machine (Rendle, ICDM 2010): logit = b + sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j.

The second sum in linear time: 1/2 sum_d [(sum_f v_fd)^2 - sum_f v_fd^2]. (TorchRec's
FactorizationMachine multiplies all scalars of all vectors with each other, also of different d,
which is another sum.) Shapes: B rows, F fields, D width of a field.
"""

from dataclasses import dataclass

import torch

from recsys.model.baselines.inputs import Baseline, BaselineConfig, Fields, FirstOrder
from recsys.model.inputs import DenseInputs, InputSizes


def second_order(fields_BFD: torch.Tensor) -> torch.Tensor:
    """Return sum_{i<j} <v_i, v_j> of every row [B]."""
    square_of_sum_BD = fields_BFD.sum(dim=1).square()
    sum_of_square_BD = fields_BFD.square().sum(dim=1)
    return 0.5 * (square_of_sum_BD - sum_of_square_BD).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class FactorizationMachineConfig(BaselineConfig):
    """Settings of the factorization machine."""

    name: str = "fm"
    """`fm`."""


class FactorizationMachine(Baseline):
    """First-order terms and the products of all pairs of fields."""

    def __init__(self, config: FactorizationMachineConfig, sizes: InputSizes):
        """The ranker adds the first-order terms of ids."""
        super().__init__(config, sizes)
        self.fields = Fields(self.sizes)
        self.first_order = FirstOrder(self.sizes)

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B]."""
        return self.first_order(inputs) + second_order(self.fields(inputs))


RANKERS = ((FactorizationMachineConfig, FactorizationMachine),)
