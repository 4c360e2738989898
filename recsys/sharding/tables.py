"""Settings of embedding tables: everything about one table in one record.

In: a ranker on the meta device and the sections `tables` and `optim` of a run. Out: a mapping from
table name to TableSettings, which constraints, search, estimate and apply read.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig

from recsys.data.id_map import IdsConfig
from recsys.errors import UserError
from recsys.model.modality import TABLE_PREFIX
from recsys.model.ranker import Ranker
from recsys.sharding.optimizers import OptimConfig, TableOptimConfig, TableOptimizer
from recsys.sharding.plan import (
    DATA_PARALLEL,
    DENSE_KERNEL,
    SHARDING_TYPES,
    SSD_KERNEL,
    ShardingType,
)

_PRECISIONS = {DataType.FP32: "fp32", DataType.FP16: "fp16"}
CODED = {2: "2 bits", 4: "4 bits"}
"""Precisions of frozen tables of codes by bits of a number."""
_VALUE_BYTES = {"fp32": 4.0, "fp16": 2.0, "2 bits": 0.25, "4 bits": 0.5}
_MOST_DENSE = 10
"""Times `small_table_rows`: rows up to which an optimizer that is asked for by name may cost a step
every row of its table."""
_LEARNING_RATES = {"adam": 1e-3, "rowwise_adagrad": 0.05, "sgd": 0.1}
_PLACED_ALONE = ("table_wise", "column_wise")
"""Sharding types whose pieces may be on any ranks, so that ranks can be pinned."""
_CACHED = ("fused_uvm_caching", SSD_KERNEL)
"""Kernels with a cache of rows on the accelerator."""
_CACHE_LOAD_FACTOR = 0.2
"""Share of a cached table's rows on the accelerator where the configuration does not say."""


@dataclass(frozen=True, kw_only=True)
class TablePlacementConfig:
    """Placement of one table: constraints of the planner."""

    sharding: list[ShardingType] | None = None
    """One sharding type, or a list of them for the planner to choose from; null: all that fit."""
    kernel: Literal["fused", "fused_uvm", "fused_uvm_caching", "key_value"] = "fused"
    """`fused`, or on GPU `fused_uvm` (the table in main memory), `fused_uvm_caching` (and a cache on the
    accelerator) or `key_value` (on SSD, and a cache), which is planned and not trained (docs/ids.md)."""
    cache_load_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a `fused_uvm_caching` or `key_value` table's rows on the accelerator; null: 0.2."""
    ranks: list[int] | None = None
    """Ranks that hold a table_wise or column_wise table; null: the planner chooses."""

    def problems(self) -> list[str]:
        """Return a text for everything that does not go together."""
        kinds, ranks = self.sharding, self.ranks
        found = []
        if kinds == []:
            found.append(f"sharding=[]: expected one of {', '.join(SHARDING_TYPES)}, or null")
        if self.cache_load_factor is not None and self.kernel not in _CACHED:
            found.append(f"cache_load_factor: only with kernel={' or '.join(_CACHED)}")
        if self.kernel == SSD_KERNEL and DATA_PARALLEL in (kinds or ()):
            found.append(
                "sharding=data_parallel with kernel=key_value: every rank keeps a replicated table in "
                "its own memory; change one of the two"
            )
        if ranks is not None and (not ranks or len(set(ranks)) < len(ranks) or min(ranks) < 0):
            found.append(f"ranks={ranks}: expected different ranks, 0 or more")
        if ranks is not None and any(kind not in _PLACED_ALONE for kind in kinds or ()):
            found.append(
                f"ranks with sharding={', '.join(kinds or ())}: only "
                f"{' and '.join(_PLACED_ALONE)} tables can be pinned"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class TableConfig(TablePlacementConfig):
    """Settings of one table; a frozen modality table has a placement and nothing else."""

    width: Annotated[int, Field(ge=4, multiple_of=4)] | None = None
    """Columns, as stored; null: model.embedding_dim."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Of stored values: `fp16` takes half the memory of `fp32`; the optimizer's state stays fp32."""
    optimizer: TableOptimConfig | None = None
    """In place of all of optim.table; null: optim.table."""
    ids: IdsConfig | None = None
    """Ids that come and go in a table of fixed capacity; null: every id of the vocabulary has a row."""

    @property
    def num_rows(self) -> int | None:
        """Rows of a table of fixed capacity, the unknown row included; None: as the vocabulary."""
        return None if self.ids is None else self.ids.capacity + 1

    def problems(self) -> list[str]:
        """Return a text for everything that does not go together."""
        found = super().problems()
        if self.precision == "fp16" and DATA_PARALLEL in (self.sharding or ()):
            found.append(
                "sharding=data_parallel with precision=fp16: a replicated table is held in fp32; "
                "change one of the two"
            )
        return found

    def only_read(self, device_type: str) -> "TableConfig":
        """Return the settings under which a trained table is read, on any number of ranks.

        No penalty asks for a form of the table. Pinned ranks belong to the world they were chosen for,
        and kernels that keep a table in main memory to GPUs.
        """
        placement: dict[str, Any] = {"ranks": None}
        if device_type != "cuda":
            placement |= {"kernel": "fused", "cache_load_factor": None}
        if self.optimizer is not None:
            placement["optimizer"] = dataclasses.replace(self.optimizer, l2=0.0)
        return dataclasses.replace(self, **placement)


@dataclass(frozen=True, kw_only=True)
class TableSettings:
    """One embedding table: its size, and how it is trained, stored and sharded."""

    rows: int
    """Rows, the unknown row included."""
    width: int
    """Columns, as stored."""
    precision: str = "fp32"
    """Of stored values: `fp32`, `fp16`, or of a frozen table of codes `2 bits` or `4 bits`."""
    features: tuple[str, ...] = ()
    """Features that look it up."""
    optimizer: TableOptimizer | None = None
    """None: the table is frozen."""
    ids: IdsConfig | None = None
    """Which ids of the vocabulary have the rows; None: all of them, each its own."""
    sharding: tuple[str, ...] | None = None
    """Sharding types the configuration asks for; None: the planner chooses."""
    kernel: str = "fused"
    """Kernel of a table that is not replicated: one of TablePlacementConfig.kernel."""
    cache_load_factor: float | None = None
    """Share of a table's rows cached on the accelerator; None: the default."""
    ranks: tuple[int, ...] | None = None
    """Ranks that hold the table; None: the planner chooses."""

    @property
    def is_frozen(self) -> bool:
        """True where nothing trains the table."""
        return self.optimizer is None

    @property
    def is_half(self) -> bool:
        """True for a table of fp16 values, or of fewer bits."""
        return self.precision != "fp32"

    @property
    def is_on_ssd(self) -> bool:
        """True for a table on SSD."""
        return self.kernel == SSD_KERNEL

    @property
    def cached_share(self) -> float:
        """Share of the rows cached on the accelerator; 0 where the kernel has no cache."""
        return (self.cache_load_factor or _CACHE_LOAD_FACTOR) if self.kernel in _CACHED else 0.0

    @property
    def is_coded(self) -> bool:
        """True for a frozen table of codes."""
        return self.precision in CODED.values()

    @property
    def num_bytes(self) -> int:
        """Bytes of the values of the whole table."""
        return self.weight_bytes([self.rows, self.width])

    def weight_bytes(self, size: Sequence[int]) -> int:
        """Return the bytes of a shard's values; `size` is [rows, columns]."""
        return int(size[0] * size[1] * _VALUE_BYTES[self.precision])

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
        """Return the bytes of a shard's copy in host memory, of which a checkpoint is written.

        Tables on SSD have none: they are planned and not trained.
        """
        return (
            0
            if self.is_frozen or self.is_on_ssd
            else self.weight_bytes(size) + self.optimizer_bytes(size)
        )


def resolve_tables(
    *,
    model: Ranker,
    tables: Mapping[str, TableConfig],
    optim: OptimConfig,
    device_type: str,
    unread: Collection[str] = (),
) -> dict[str, TableSettings]:
    """Return the settings of every table of the model, trainable ones first.

    Args:
        model: built by recsys.model.build with the same `tables`, on the meta device.
        tables: settings of single tables, by name.
        device_type: `cpu` or `cuda`.
        unread: tables of the data that the model does not read; they may have a width, a precision and
            a capacity, which have no effect.

    Raises:
        UserError: a name of no table of the model; training settings of a frozen table; adam on CPU
            for a table that is not replicated (FBGEMM has no fused adam there); a penalty on a table
            that cannot be replicated.
    """
    trainable = {c.name: _asked(c, tables) for c in model.inputs.embeddings.embedding_bag_configs()}
    frozen = {}
    if model.inputs.modality is not None:
        configs: Any = model.inputs.modality.tables.embedding_bag_configs()
        coded = {TABLE_PREFIX + name: bits for name, bits in model.inputs.modality.bits.items()}
        frozen = {c.name: _asked(c, tables, CODED.get(coded.get(c.name, 16))) for c in configs}
    problems = [
        *_unknown_tables(tables, [*trainable, *frozen], unread),
        *_trained_frozen_tables(tables, frozen),
    ]
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))
    optimizers = {table: _own_or_shared(table, tables, optim) for table in trainable}
    check_penalties(optimizers, trainable, small_table_rows=optim.small_table_rows)
    trained = {
        table: dataclasses.replace(
            settings,
            optimizer=resolve_optimizer(
                *optimizers[table],
                table,
                settings,
                device_type=device_type,
                small_table_rows=optim.small_table_rows,
            ),
        )
        for table, settings in trainable.items()
    }
    return trained | frozen


def _unknown_tables(
    tables: Mapping[str, TableConfig], known: list[str], unread: Collection[str]
) -> Iterator[str]:
    """Yield a text for every name of no table of the model."""
    for name, config in tables.items():
        form_only = TableConfig(width=config.width, precision=config.precision, ids=config.ids)
        if name not in known and not (name in unread and config == form_only):
            yield f"tables.{name}: no such table; the model has {', '.join(sorted(known))}"


def _trained_frozen_tables(
    tables: Mapping[str, TableConfig], frozen: Collection[str]
) -> Iterator[str]:
    """Yield a text for every setting of a frozen table that only trained ones have."""
    for name in frozen:
        config = tables.get(name, TableConfig())
        for key in ("width", "precision", "optimizer", "ids"):
            if getattr(config, key) != getattr(TableConfig(), key):
                yield f"tables.{name}.{key}: its vectors are frozen, as launch/embed.py made them"


def _own_or_shared(
    table: str, tables: Mapping[str, TableConfig], optim: OptimConfig
) -> tuple[TableOptimConfig, str]:
    """Return the optimizer that the configuration gives a table, and its key."""
    own = tables[table].optimizer if table in tables else None
    return (optim.table, "optim.table") if own is None else (own, f"tables.{table}.optimizer")


def _asked(
    table: EmbeddingBagConfig, tables: Mapping[str, TableConfig], codes: str | None = None
) -> TableSettings:
    """Return a table's settings, its optimizer aside; codes: precision of a table of codes."""
    config = tables.get(table.name, TableConfig())
    return TableSettings(
        rows=table.num_embeddings,
        width=table.embedding_dim,
        precision=codes or _PRECISIONS[table.data_type],
        features=tuple(table.feature_names),
        ids=config.ids,
        sharding=None if config.sharding is None else tuple(config.sharding),
        kernel=config.kernel,
        cache_load_factor=config.cache_load_factor,
        ranks=None if config.ranks is None else tuple(config.ranks),
    )


def resolve_optimizer(
    asked: TableOptimConfig,
    key: str,
    table: str,
    settings: TableSettings,
    *,
    device_type: str,
    small_table_rows: int,
) -> TableOptimizer:
    """Return the optimizer of one table, with `auto` and the default step size settled.

    Args:
        key: of `asked` in the configuration.
        small_table_rows: rows up to which `auto` takes dense adam.

    Raises:
        UserError: adam on CPU for a table that is not replicated or too large for a dense step.
    """
    name: str = asked.name
    kinds = settings.sharding
    model_parallel = kinds is not None and "data_parallel" not in kinds
    if name == "auto":
        # Half precision and pinned ranks keep a table from being replicated, too.
        placed = kinds is None and (settings.is_half or settings.ranks is not None)
        small = settings.rows <= small_table_rows and not settings.is_on_ssd
        fits = device_type == "cuda" or not (model_parallel or placed)
        name = "adam" if small and fits else "rowwise_adagrad"
    if name == "adam" and device_type == "cpu" and kinds is not None and model_parallel:
        raise UserError(
            f"{key}.name=adam with tables.{table}.sharding={''.join(kinds[:1])}: fused Adam runs on "
            f"GPU only; on CPU use rowwise_adagrad or sgd, or tables.{table}.sharding="
            f"data_parallel for dense Adam"
        )
    too_large = settings.rows > _MOST_DENSE * small_table_rows
    if name == "adam" and device_type == "cpu" and too_large:
        raise UserError(
            f"{key}.name=adam for {table!r} with {settings.rows:,} rows on CPU: fused Adam runs on "
            f"GPU only and dense Adam costs every row at every step; use rowwise_adagrad or auto"
        )
    rate = asked.learning_rate
    return TableOptimizer(
        name=name, learning_rate=_LEARNING_RATES[name] if rate is None else rate, l2=asked.l2
    )


def check_penalties(
    optimizers: Mapping[str, tuple[TableOptimConfig, str]],
    tables: Mapping[str, TableSettings],
    *,
    small_table_rows: int,
) -> None:
    """Raise UserError for tables whose L2 penalty cannot be kept: every rank must hold every row.

    Args:
        optimizers: asked for every table, and their keys.
        tables: the trainable ones; their optimizers are not read.
        small_table_rows: rows up to which `auto` takes dense adam.

    Raises:
        UserError: lists every such table with its rows and the keys to change.
    """
    problems = []
    for table, settings in tables.items():
        asked, key = optimizers[table]
        if not asked.l2:
            continue
        rows = settings.rows
        given = f"{key}.l2={asked.l2}: the penalty on {table!r} ({rows:,} rows) is one on every row"
        without = f"set tables.{table}.optimizer.l2=0"
        if other := _not_replicated_by(table, settings):
            problems.append(
                f"{given}, for which every rank holds the table whole (data_parallel), but "
                f"{other} asks for another form; {without}, or leave that key out"
            )
        most = small_table_rows * (1 if asked.name == "auto" else _MOST_DENSE)
        if rows > most:
            own = f"tables.{table}.optimizer"
            named = f", or name its optimizer ({own}.name=adam {own}.l2={asked.l2})"
            fits_by_name = rows <= _MOST_DENSE * small_table_rows
            problems.append(
                f"{given} at every step, too many for one of more than {most:,} rows "
                f"(optim.small_table_rows={small_table_rows:,}); {without}"
                f"{named if fits_by_name else ''}"
            )
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def _not_replicated_by(table: str, settings: TableSettings) -> str | None:
    """Return the key that keeps a table from being replicated; None where there is none."""
    if settings.sharding is not None and "data_parallel" not in settings.sharding:
        return f"tables.{table}.sharding={', '.join(settings.sharding)}"
    if settings.kernel != "fused":
        return f"tables.{table}.kernel={settings.kernel}"
    if settings.ranks is not None:
        return f"tables.{table}.ranks"
    return f"tables.{table}.precision=fp16" if settings.is_half else None
