"""Gradients of the dense part: their norm at every step, clipping, and the names of those that broke.

In: a sharded ranker. Out: norms by step and parameter for the run's log. It hangs on
the dense optimizer, so that both pipelines of recsys/sharding/pipeline.py pass by it. Shapes: S
steps, P dense parameters.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from recsys.errors import NonFiniteError
from recsys.sharding.apply import ShardedRanker

_SHOWN = 3
"""Parameters named in a message; the others are counted."""


class Gradients:
    """Watches the dense optimizer: measures before every step and clips where that is asked for.

    Gradients of tables are no part of it. Those of sharded tables live in FBGEMM's backward pass,
    which applies them row by row, and never exist as tensors; replicated tables have optimizers of
    their own. A gradient that is not finite there came from, or reaches, the dense part and the loss.
    The dense gradient is averaged over the ranks before the step, so every rank sees the same norm.
    """

    def __init__(self, sharded: ShardedRanker, *, max_norm: float | None):
        """Hang on the dense optimizer of `sharded`.

        Args:
            max_norm: longer dense gradients are scaled down to this length; None: none is.
        """
        self.max_norm = max_norm
        names = {id(p): name for name, p in sharded.model.named_parameters()}
        groups = sharded.dense_optimizer.param_groups
        self._parameters = [p for group in groups for p in group["params"]]
        self.names = [_shown_name(names[id(p)]) for p in self._parameters]
        self._zero = torch.zeros((), device=self._parameters[0].device)
        self._pending: list[torch.Tensor] = []
        sharded.dense_optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # Norms stay on the device: looking at one here would make every step wait for it.
        gradients = [self._zero if p.grad is None else p.grad for p in self._parameters]
        norms_P = torch.stack(torch._foreach_norm(gradients))
        self._pending.append(norms_P)
        if self.max_norm is not None:
            total = torch.linalg.vector_norm(norms_P)
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self.max_norm, total)

    def take(self) -> list[list[float]]:
        """Return the norms [S][P] of the steps since the last call, as they were before clipping."""
        pending, self._pending = self._pending, []
        return torch.stack(pending).tolist() if pending else []


def total_norm(norms_P: Sequence[float]) -> float:
    """Return the norm of the whole gradient from those of its parts; NaN or infinite where one is."""
    return math.sqrt(sum(norm * norm for norm in norms_P))


def check_finite(
    losses_S: Sequence[float], norms_SP: Sequence[Sequence[float]], names: Sequence[str], step: int
) -> None:
    """Refuse a loss or a gradient that is not finite.

    Args:
        names: of the P parameters.
        step: number of the first of the S steps.

    Raises:
        NonFiniteError: names the first such step, the loss, and the parameters.
    """
    for offset, (loss, norms_P) in enumerate(zip(losses_S, norms_SP, strict=True)):
        bad = [name for name, norm in zip(names, norms_P, strict=True) if not math.isfinite(norm)]
        if math.isfinite(loss) and not bad:
            continue
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        shown = f"; the gradient of {', '.join(bad[:_SHOWN])}{more} is not finite" if bad else ""
        raise NonFiniteError(
            f"the loss is {loss} at step {step + offset}{shown}; training stops on every rank and "
            f"the last checkpoint is from before. Lower optim.dense_learning_rate or "
            f"optim.table.learning_rate, set optim.max_grad_norm, or add optim.warmup_steps"
        )


def _shown_name(name: str) -> str:
    """Return a parameter's name without the wrappers around the model."""
    return name[name.index("dense.") :] if "dense." in name else name
