"""Optimizer settings: of every table, of the dense part, and the learning-rate schedule of all.

The table optimizer decides quality as much as the model does: row-wise Adagrad touches only
looked-up rows and is the one for large tables; Adam with L2 over the whole table is better where a
table is small enough for a step to afford it.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from recsys.errors import UserError


def rate_problems(rates: Mapping[str, float | None]) -> list[str]:
    """Return a text for every step size or penalty that is no finite number, 0 or more, by key."""
    return [
        f"{key}={rate}: expected a finite number, 0 or more"
        for key, rate in rates.items()
        if rate is not None and not 0 <= rate < math.inf
    ]


@dataclass(frozen=True, kw_only=True)
class TableOptimConfig:
    """Optimizer settings of one embedding table."""

    name: Literal["auto", "adam", "rowwise_adagrad", "sgd"] = "auto"
    """`adam`, `rowwise_adagrad`, `sgd`, or `auto`: adam up to `small_table_rows`, else row-wise. Adam
    steps every row of a replicated table (data_parallel), and the looked-up rows of any other."""
    learning_rate: float | None = None
    """Step size; null: 0.001 for adam, 0.05 for rowwise_adagrad, 0.1 for sgd."""
    l2: float = 0.0
    """L2 penalty: l2 / 2 * |W|^2 over every row of the table joins the loss, whatever the optimizer.
    It costs the whole table at every step, so the table is replicated (data_parallel); `auto` refuses
    it for tables above `small_table_rows`, and tables.<table>.optimizer.l2=0 takes it off one."""

    def problems(self) -> list[str]:
        """Return a text for a step size or penalty that is no finite number, 0 or more."""
        return rate_problems({"learning_rate": self.learning_rate, "l2": self.l2})


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizers and schedule of a run."""

    REMOVED: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "tables": ({}, "tables.<table>.optimizer does its job")
    }
    """Keys of earlier versions: off value, and what does their job now (recsys.config)."""
    dense_name: Literal["adam", "adamw"] = "adamw"
    """`adam` (weight decay added to the gradient) or `adamw` (decoupled)."""
    dense_learning_rate: float = 1e-3
    """Step size of the dense part."""
    dense_weight_decay: float = 0.0
    """Weight decay of the dense part."""
    dense_l2: dict[str, float] = field(default_factory=dict)
    """L2 penalty l2 / 2 * |W|^2 on the weight matrices of single parts of the dense part, by name
    (`projections`, `umcm`, `deep`, ...), in the loss; needs dense_name=adam."""
    table: TableOptimConfig = field(default_factory=TableOptimConfig)
    """Optimizer of every table that has none of its own (tables.<table>.optimizer)."""
    small_table_rows: int = 100_000
    """Largest table, in rows, that `auto` gives to dense adam."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises linearly from 0; none where a run goes on from another
    (`init`) on data that grew, since the state of its optimizers goes on too."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: `constant`, `linear` to 0, or `cosine` to 0, over the planned steps."""
    plateau_factor: float = 1.0
    """Factor on the learning rate each time the validation metric does not improve; 1: none."""
    max_grad_norm: float | None = None
    """Longer gradients of the dense part are scaled down to this norm; null: none. Tables have none."""

    def problems(self) -> list[str]:
        """Return a text for every number that is none of its kind, and for penalties without adam."""
        rates = {
            "dense_learning_rate": self.dense_learning_rate,
            "dense_weight_decay": self.dense_weight_decay,
            **{f"dense_l2.{part}": l2 for part, l2 in self.dense_l2.items()},
        }
        found = rate_problems(rates)
        if self.dense_l2 and self.dense_name != "adam":
            found.append(
                f"dense_l2 with optim.dense_name={self.dense_name}: adamw keeps decay apart from the "
                f"gradient and has no penalty in the loss; use optim.dense_name=adam"
            )
        if not 0 < self.plateau_factor <= 1:
            found.append(f"plateau_factor={self.plateau_factor}: expected 0 < factor <= 1")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            found.append(f"max_grad_norm={self.max_grad_norm}: expected above 0, or null")
        return found


@dataclass(frozen=True, kw_only=True)
class TableOptimizer:
    """A table's optimizer after `auto` and the defaults are settled."""

    name: str
    learning_rate: float
    l2: float


def dense_penalty(config: OptimConfig, name: str, num_dims: int) -> float:
    """Return the L2 penalty of a dense parameter; biases and norms, which are no matrices, have none.

    Args:
        name: of the parameter, below the dense part: `projections.linear.text.weight`.
    """
    return config.dense_l2.get(name.split(".")[0], 0.0) if num_dims > 1 else 0.0


def check_dense_penalties(config: OptimConfig, parts: list[str]) -> None:
    """Raise UserError where optim.dense_l2 names a part that the model does not have.

    Raises:
        UserError: names it, and the model's parts.
    """
    unknown = sorted(set(config.dense_l2) - set(parts))
    if unknown:
        raise UserError(
            f"optim.dense_l2 names {', '.join(unknown)}; the model has the parts {', '.join(parts)}"
        )


def without_penalties(config: OptimConfig) -> OptimConfig:
    """Return the optimizers of a model that is only read: no penalty asks for a form of its tables."""
    return dataclasses.replace(
        config,
        dense_l2={},
        table=dataclasses.replace(config.table, l2=0.0),
    )


def learning_rate_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """Return the factor on every base learning rate for 0-based `step`.

    Linear warm-up to 1 over `warmup_steps`, then constant, linear or cosine decay to 0 at
    `total_steps`.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    progress = min(1.0, progress)
    if config.decay == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
