"""Optimizers: one per table (fused, or dense on replicated tables), one for the dense part, one
learning-rate schedule for all.

The table optimizer decides quality as much as the model does: row-wise Adagrad touches only
looked-up rows and is the one for large tables; Adam with L2 over the whole table is better where a
table is small enough for a step to afford it.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from recsys.errors import UserError

TABLE_OPTIMIZERS = ("auto", "adam", "rowwise_adagrad", "sgd")


@dataclass(frozen=True, kw_only=True)
class TableOptimConfig:
    """How one embedding table is trained."""

    name: str = "auto"
    """`adam`, `rowwise_adagrad`, `sgd`, or `auto`: adam up to `small_table_rows`, else row-wise."""
    learning_rate: float | None = None
    """Step size; null: 0.001 for adam, 0.05 for rowwise_adagrad, 0.1 for sgd."""
    l2: float = 0.0
    """L2 penalty: l2 / 2 * |W|^2 over every row of the table joins the loss, whatever the optimizer.
    It costs the whole table at every step, so the table is replicated (data_parallel); `auto` refuses
    it for tables above `small_table_rows`."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizers and schedule of a run."""

    dense_name: str = "adamw"
    """`adam` (weight decay added to the gradient) or `adamw` (decoupled)."""
    dense_learning_rate: float = 1e-3
    """Step size of the dense part."""
    dense_weight_decay: float = 0.0
    """Weight decay of the dense part."""
    dense_l2: dict[str, float] = field(default_factory=dict)
    """L2 penalty l2 / 2 * |W|^2 on the weight matrices of single parts of the dense part, by name
    (`projections`, `umcm`, `deep`, ...), in the loss; needs dense_name=adam."""
    table: TableOptimConfig = field(default_factory=TableOptimConfig)
    """Optimizer of every table not named in `tables`."""
    tables: dict[str, TableOptimConfig] = field(default_factory=dict)
    """Optimizers of single tables, by table name."""
    small_table_rows: int = 100_000
    """Largest table, in rows, that `auto` gives to dense adam."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: str = "constant"
    """After warm-up: `constant`, `linear` to 0, or `cosine` to 0, over the planned steps."""
    plateau_factor: float = 1.0
    """Factor on the learning rate each time the validation metric does not improve; 1: none."""
    max_grad_norm: float | None = None
    """Longer gradients of the dense part are scaled down to this norm; null: none. Tables have none."""


@dataclass(frozen=True, kw_only=True)
class TableOptimizer:
    """A table's optimizer after `auto` and the defaults are settled."""

    name: str
    learning_rate: float
    l2: float


_MOST_DENSE = 10
"""Times `small_table_rows`: rows up to which an optimizer that is asked for by name may cost a step
every row of its table."""
_DEFAULT_LEARNING_RATES = {"adam": 1e-3, "rowwise_adagrad": 0.05, "sgd": 0.1}


def resolve_table_optimizers(
    config: OptimConfig, table_rows: dict[str, int], sharding: dict[str, str], device_type: str
) -> dict[str, TableOptimizer]:
    """Return the optimizer of every table.

    Args:
        config: the run's optimizer section.
        table_rows: rows by table name.
        sharding: sharding types the config asks for, by table name (others are free).
        device_type: `cpu` or `cuda`.

    Raises:
        UserError: unknown optimizer or table; adam on CPU for a table that is not replicated
            (FBGEMM has no fused adam there).
    """
    unknown = sorted(set(config.tables) - set(table_rows))
    if unknown:
        raise UserError(
            f"optim.tables names {', '.join(unknown)}; the model has the tables "
            f"{', '.join(sorted(table_rows))}"
        )
    resolved = {}
    for table, rows in table_rows.items():
        asked = config.tables.get(table, config.table)
        key = f"optim.tables.{table}" if table in config.tables else "optim.table"
        name = asked.name
        if name not in TABLE_OPTIMIZERS:
            raise UserError(f"{key}.name={name!r}: expected one of {', '.join(TABLE_OPTIMIZERS)}")
        model_parallel = sharding.get(table, "data_parallel") != "data_parallel"
        if name == "auto":
            small = rows <= config.small_table_rows
            fits = device_type == "cuda" or not model_parallel
            name = "adam" if small and fits else "rowwise_adagrad"
        if name == "adam" and device_type == "cpu" and model_parallel:
            raise UserError(
                f"{key}.name=adam with plan.sharding.{table}={sharding[table]}: fused Adam runs on "
                f"GPU only; on CPU use rowwise_adagrad or sgd, or plan.sharding.{table}="
                f"data_parallel for dense Adam"
            )
        too_large = rows > _MOST_DENSE * config.small_table_rows
        if name == "adam" and device_type == "cpu" and too_large:
            raise UserError(
                f"{key}.name=adam for {table!r} with {rows:,} rows on CPU: fused Adam runs on GPU "
                f"only and dense Adam costs every row at every step; use rowwise_adagrad or auto"
            )
        rate = asked.learning_rate
        resolved[table] = TableOptimizer(
            name=name,
            learning_rate=_DEFAULT_LEARNING_RATES[name] if rate is None else rate,
            l2=asked.l2,
        )
    return resolved


def check_penalties(
    config: OptimConfig, table_rows: Mapping[str, int], sharded_by: Mapping[str, str]
) -> None:
    """Raise UserError for tables whose L2 penalty cannot be kept: every rank must hold every row.

    Args:
        table_rows: rows by table name.
        sharded_by: the key that keeps a table from being replicated, by table name.

    Raises:
        UserError: lists every such table with its rows and the keys to change.
    """
    problems = []
    for table, rows in table_rows.items():
        asked = config.tables.get(table, config.table)
        if not asked.l2:
            continue
        key = f"optim.tables.{table}.l2" if table in config.tables else "optim.table.l2"
        given = f"{key}={asked.l2}: the penalty on {table!r} ({rows:,} rows) is one on every row"
        without = f"set optim.tables.{table}.l2=0"
        if table in sharded_by:
            problems.append(
                f"{given}, for which every rank holds the table whole (data_parallel), but "
                f"{sharded_by[table]} asks for another form; {without}, or leave that key out"
            )
        most = config.small_table_rows * (1 if asked.name == "auto" else _MOST_DENSE)
        if rows > most:
            named = f", or name its optimizer (optim.tables.{table}.name=adam)"
            fits_by_name = rows <= _MOST_DENSE * config.small_table_rows
            problems.append(
                f"{given} at every step, too many for one of more than {most:,} rows "
                f"(optim.small_table_rows={config.small_table_rows:,}); {without}"
                f"{named if fits_by_name else ''}"
            )
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


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
        tables={name: dataclasses.replace(t, l2=0.0) for name, t in config.tables.items()},
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


def check_optim(config: OptimConfig) -> None:
    """Raise UserError for a value outside its choices.

    Raises:
        UserError: lists every offending key.
    """
    problems = []
    if config.dense_name not in ("adam", "adamw"):
        problems.append(f"optim.dense_name={config.dense_name!r}: expected adam or adamw")
    if config.decay not in ("constant", "linear", "cosine"):
        problems.append(f"optim.decay={config.decay!r}: expected constant, linear or cosine")
    rates = {"dense_learning_rate": config.dense_learning_rate}
    rates["dense_weight_decay"] = config.dense_weight_decay
    rates |= {f"dense_l2.{part}": l2 for part, l2 in config.dense_l2.items()}
    if config.dense_l2 and config.dense_name != "adam":
        problems.append(
            f"optim.dense_l2 with optim.dense_name={config.dense_name}: adamw keeps decay apart from "
            f"the gradient and has no penalty in the loss; use optim.dense_name=adam"
        )
    named = {f"tables.{name}": table for name, table in config.tables.items()}
    for key, table in ({"table": config.table} | named).items():
        rates[f"{key}.l2"] = table.l2
        if table.learning_rate is not None:
            rates[f"{key}.learning_rate"] = table.learning_rate
    problems += [
        f"optim.{key}={rate}: expected a finite number, 0 or more"
        for key, rate in rates.items()
        if not 0 <= rate < math.inf
    ]
    if config.warmup_steps < 0:
        problems.append(f"optim.warmup_steps={config.warmup_steps}: expected 0 or more")
    if not 0 < config.plateau_factor <= 1:
        problems.append(f"optim.plateau_factor={config.plateau_factor}: expected 0 < factor <= 1")
    if config.max_grad_norm is not None and not config.max_grad_norm > 0:
        problems.append(f"optim.max_grad_norm={config.max_grad_norm}: expected above 0, or null")
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
