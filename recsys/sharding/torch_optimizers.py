"""Optimizers in torch's own form: of the dense part, and of replicated tables.

Called by recsys/sharding/apply.py. Those of all other tables are fused into FBGEMM's backward pass.
"""

from collections.abc import Mapping

import torch
from torch import nn
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from recsys.sharding.optimizers import OptimConfig, TableOptimizer, dense_penalty

ADAGRAD_EPS = 1e-8
"""FBGEMM's default, given to the dense form as well so that plans do not change the training."""
_DENSE = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def replicated_optimizer(chosen: TableOptimizer, parameter: nn.Parameter) -> torch.optim.Optimizer:
    """Return the optimizer of a replicated table: same rule as the fused one."""
    if chosen.name == "adam":
        return torch.optim.Adam(
            [parameter], lr=chosen.learning_rate, weight_decay=chosen.l2, fused=True
        )
    if chosen.name == "rowwise_adagrad":
        return RowWiseAdagrad(
            [parameter], lr=chosen.learning_rate, weight_decay=chosen.l2, eps=ADAGRAD_EPS
        )
    return torch.optim.SGD([parameter], lr=chosen.learning_rate, weight_decay=chosen.l2)


def optimizer_of_dense_part(
    optim: OptimConfig, parameters: Mapping[str, nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer of the dense part; parameters with the same penalty are one group."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        l2 = dense_penalty(optim, name.removeprefix("scorer.dense."), parameter.dim())
        groups.setdefault(l2, []).append(parameter)
    return _DENSE[optim.dense_name](
        [
            {"params": members, "weight_decay": optim.dense_weight_decay + l2}
            for l2, members in groups.items()
        ],
        lr=optim.dense_learning_rate,
        weight_decay=optim.dense_weight_decay,
        fused=True,
    )


def materialise_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Give Adam its state now, not at the first step, so that a checkpoint can fill it."""
    if isinstance(optimizer, torch.optim.Adam):
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
