"""Settings of embedding tables: everything about one table in one record.

In: a ranker on the meta device and the sections `optim` and `plan` of a run. Out: a mapping from
table name to TableSettings, which constraints, search, estimate and apply read. `resolve_tables` is
the only place that reads the keys of single tables.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig

from recsys.errors import UserError
from recsys.model.ranker import Ranker
from recsys.sharding.optimizers import TABLE_OPTIMIZERS, OptimConfig, TableOptimizer
from recsys.sharding.plan import DENSE_KERNEL, PlanConfig

_PRECISIONS = {DataType.FP32: "fp32", DataType.FP16: "fp16"}
_VALUE_BYTES = {"fp32": 4, "fp16": 2}
_MOST_DENSE = 10
"""Times `small_table_rows`: rows up to which an optimizer that is asked for by name may cost a step
every row of its table."""
_LEARNING_RATES = {"adam": 1e-3, "rowwise_adagrad": 0.05, "sgd": 0.1}


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """One embedding table: its size, and how it is trained, stored and sharded."""

    rows: int
    """Rows, the unknown row included."""
    width: int
    """Columns, as stored."""
    precision: str = "fp32"
    """Of stored values: `fp32` or `fp16`."""
    features: tuple[str, ...] = ()
    """Features that look it up."""
    optimizer: TableOptimizer | None = None
    """None: the table is frozen."""
    sharding: tuple[str, ...] | None = None
    """Sharding types the configuration asks for; None: the planner chooses."""
    kernel: str = "fused"
    """Kernel of a table that is not replicated: `fused`, `fused_uvm` or `fused_uvm_caching`."""
    cache_load_factor: float | None = None
    """Share of a `fused_uvm_caching` table's rows cached on the accelerator; None: the default."""
    ranks: tuple[int, ...] | None = None
    """Ranks that hold the table; None: the planner chooses."""

    @property
    def is_frozen(self) -> bool:
        """True where nothing trains the table."""
        return self.optimizer is None

    @property
    def is_half(self) -> bool:
        """True for a table of fp16 values."""
        return self.precision == "fp16"

    @property
    def num_bytes(self) -> int:
        """Bytes of the values of the whole table."""
        return self.weight_bytes([self.rows, self.width])

    def weight_bytes(self, size: Sequence[int]) -> int:
        """Return the bytes of a shard's values; `size` is [rows, columns]."""
        return size[0] * size[1] * _VALUE_BYTES[self.precision]

    def optimizer_bytes(self, size: Sequence[int]) -> int:
        """Return the bytes of a shard's optimizer state, which is fp32 whatever the table is."""
        name = self.optimizer.name if self.optimizer is not None else None
        if name == "adam":
            return 2 * 4 * size[0] * size[1]
        return 4 * size[0] if name == "rowwise_adagrad" else 0

    def gradient_bytes(self, kernel: str, size: Sequence[int]) -> int:
        """Return the bytes of a shard's stored gradient: replicated trainable tables have one."""
        return 0 if self.is_frozen or kernel != DENSE_KERNEL else self.weight_bytes(size)

    def copy_bytes(self, size: Sequence[int]) -> int:
        """Return the bytes of a shard's copy in host memory, of which a checkpoint is written."""
        return 0 if self.is_frozen else self.weight_bytes(size) + self.optimizer_bytes(size)


def resolve_tables(
    *, model: Ranker, optim: OptimConfig, plan: PlanConfig, device_type: str
) -> dict[str, TableSettings]:
    """Return the settings of every table of the model, trainable ones first.

    Args:
        model: built by recsys.model.build, tables on the meta device.
        device_type: `cpu` or `cuda`.

    Raises:
        UserError: optim.tables names an unknown table or optimizer; adam on CPU for a table that is
            not replicated (FBGEMM has no fused adam there); a penalty on a table that cannot be
            replicated.
    """
    trainable = {c.name: _asked(c, plan) for c in model.inputs.embeddings.embedding_bag_configs()}
    frozen = {}
    if model.inputs.modality is not None:
        configs: Any = model.inputs.modality.tables.embedding_bag_configs()
        frozen = {c.name: _asked(c, plan) for c in configs}
    if unknown := sorted(set(optim.tables) - set(trainable)):
        raise UserError(
            f"optim.tables names {', '.join(unknown)}; the model has the tables "
            f"{', '.join(sorted(trainable))}"
        )
    check_penalties(optim, trainable)
    trained = {
        table: dataclasses.replace(
            settings, optimizer=resolve_optimizer(optim, table, settings, device_type)
        )
        for table, settings in trainable.items()
    }
    return trained | frozen


def _asked(config: EmbeddingBagConfig, plan: PlanConfig) -> TableSettings:
    """Return a table's settings, its optimizer aside."""
    table = config.name
    kinds, ranks = plan.sharding_types().get(table), plan.ranks.get(table)
    return TableSettings(
        rows=config.num_embeddings,
        width=config.embedding_dim,
        precision=_PRECISIONS[config.data_type],
        features=tuple(config.feature_names),
        sharding=None if kinds is None else tuple(kinds),
        kernel=plan.kernels.get(table, "fused"),
        cache_load_factor=plan.cache_load_factor.get(table),
        ranks=None if ranks is None else tuple(ranks),
    )


def resolve_optimizer(
    optim: OptimConfig, table: str, settings: TableSettings, device_type: str
) -> TableOptimizer:
    """Return the optimizer of one table, with `auto` and the default step size settled.

    Raises:
        UserError: an unknown optimizer, or adam on CPU for a table that is not replicated or too
            large for a dense step.
    """
    asked = optim.tables.get(table, optim.table)
    key = f"optim.tables.{table}" if table in optim.tables else "optim.table"
    name = asked.name
    if name not in TABLE_OPTIMIZERS:
        raise UserError(f"{key}.name={name!r}: expected one of {', '.join(TABLE_OPTIMIZERS)}")
    kinds = settings.sharding
    model_parallel = kinds is not None and "data_parallel" not in kinds
    if name == "auto":
        # Half precision and pinned ranks keep a table from being replicated, too.
        placed = kinds is None and (settings.is_half or settings.ranks is not None)
        small = settings.rows <= optim.small_table_rows
        fits = device_type == "cuda" or not (model_parallel or placed)
        name = "adam" if small and fits else "rowwise_adagrad"
    if name == "adam" and device_type == "cpu" and kinds is not None and model_parallel:
        raise UserError(
            f"{key}.name=adam with plan.sharding.{table}={''.join(kinds[:1])}: fused Adam runs on "
            f"GPU only; on CPU use rowwise_adagrad or sgd, or plan.sharding.{table}="
            f"data_parallel for dense Adam"
        )
    too_large = settings.rows > _MOST_DENSE * optim.small_table_rows
    if name == "adam" and device_type == "cpu" and too_large:
        raise UserError(
            f"{key}.name=adam for {table!r} with {settings.rows:,} rows on CPU: fused Adam runs on "
            f"GPU only and dense Adam costs every row at every step; use rowwise_adagrad or auto"
        )
    rate = asked.learning_rate
    return TableOptimizer(
        name=name, learning_rate=_LEARNING_RATES[name] if rate is None else rate, l2=asked.l2
    )


def check_penalties(optim: OptimConfig, tables: Mapping[str, TableSettings]) -> None:
    """Raise UserError for tables whose L2 penalty cannot be kept: every rank must hold every row.

    Args:
        tables: the trainable ones; their optimizers are not read.

    Raises:
        UserError: lists every such table with its rows and the keys to change.
    """
    problems = []
    for table, settings in tables.items():
        asked = optim.tables.get(table, optim.table)
        if not asked.l2:
            continue
        key = f"optim.tables.{table}.l2" if table in optim.tables else "optim.table.l2"
        rows = settings.rows
        given = f"{key}={asked.l2}: the penalty on {table!r} ({rows:,} rows) is one on every row"
        without = f"set optim.tables.{table}.l2=0"
        if other := _not_replicated_by(table, settings):
            problems.append(
                f"{given}, for which every rank holds the table whole (data_parallel), but "
                f"{other} asks for another form; {without}, or leave that key out"
            )
        most = optim.small_table_rows * (1 if asked.name == "auto" else _MOST_DENSE)
        if rows > most:
            named = f", or name its optimizer (optim.tables.{table}.name=adam)"
            fits_by_name = rows <= _MOST_DENSE * optim.small_table_rows
            problems.append(
                f"{given} at every step, too many for one of more than {most:,} rows "
                f"(optim.small_table_rows={optim.small_table_rows:,}); {without}"
                f"{named if fits_by_name else ''}"
            )
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def _not_replicated_by(table: str, settings: TableSettings) -> str | None:
    """Return the key that keeps a table from being replicated; None where there is none."""
    if settings.sharding is not None and "data_parallel" not in settings.sharding:
        return f"plan.sharding.{table}={', '.join(settings.sharding)}"
    if settings.kernel != "fused":
        return f"plan.kernels.{table}={settings.kernel}"
    if settings.ranks is not None:
        return f"plan.ranks.{table}"
    return "model.half_tables" if settings.is_half else None
