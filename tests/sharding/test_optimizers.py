"""Table optimizers: auto goes by rows, fused Adam on CPU is refused, schedules by hand."""

import pytest

from recsys.run.assembly import build_plannable
from recsys.run.config import read_run_config
from recsys.sharding.optimizers import (
    OptimConfig,
    TableOptimConfig,
    learning_rate_factor,
    without_penalties,
)
from recsys.sharding.tables import TableSettings, resolve_optimizer
from tests import tiny_world


def resolve(config, sharding=None, device="cpu"):
    tables = {
        name: TableSettings(rows=rows, width=8, sharding=(sharding or {}).get(name))
        for name, rows in (("small", 100), ("large", 5_000_000))
    }
    return {t: resolve_optimizer(config, t, settings, device) for t, settings in tables.items()}


def test_auto_gives_small_tables_adam_and_large_ones_rowwise_adagrad():
    chosen = resolve(OptimConfig(small_table_rows=1000))
    assert chosen["small"].name == "adam" and chosen["small"].learning_rate == 1e-3
    assert chosen["large"].name == "rowwise_adagrad" and chosen["large"].learning_rate == 0.05


def test_auto_takes_rowwise_adagrad_for_a_model_parallel_table_on_cpu():
    chosen = resolve(OptimConfig(), {"small": ("table_wise",)})
    assert chosen["small"].name == "rowwise_adagrad"
    assert resolve(OptimConfig(), {"small": ("table_wise",)}, "cuda")["small"].name == "adam"


def test_fused_adam_on_cpu_is_refused_with_the_remedy():
    config = OptimConfig(tables={"small": TableOptimConfig(name="adam")})
    with pytest.raises(ValueError, match="fused Adam runs on GPU only; on CPU use rowwise_adagrad"):
        resolve(config, {"small": ("row_wise",)})
    with pytest.raises(ValueError, match="'large' with 5,000,000 rows on CPU: fused Adam runs on"):
        resolve(OptimConfig(table=TableOptimConfig(name="adam")))


def test_half_precision_and_pinned_ranks_leave_auto_no_dense_adam_on_cpu():
    for placed in ({"precision": "fp16"}, {"ranks": (0,)}):
        settings = TableSettings(rows=100, width=8, **placed)
        assert resolve_optimizer(OptimConfig(), "t", settings, "cpu").name == "rowwise_adagrad"
        assert resolve_optimizer(OptimConfig(), "t", settings, "cuda").name == "adam"


def test_unknown_table_and_optimizer_are_refused():
    config = read_run_config({"model": {"modalities": []}, "optim": {"tables": {"other": {}}}})
    with pytest.raises(ValueError, match="optim.tables names other; the model has the tables"):
        build_plannable(
            config=config, manifest=tiny_world.manifest(), modality_dims={}, device_type="cpu"
        )
    with pytest.raises(ValueError, match="optim.table.name='lamb': expected one of auto, adam"):
        resolve(OptimConfig(table=TableOptimConfig(name="lamb")))


def test_warm_up_rises_to_one_and_linear_decay_ends_at_zero():
    config = OptimConfig(warmup_steps=4, decay="linear")
    factors = [learning_rate_factor(config, step, 8) for step in range(9)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_cosine_is_half_way_down_in_the_middle():
    config = OptimConfig(decay="cosine")
    assert learning_rate_factor(config, 50, 100) == pytest.approx(0.5)


def test_a_model_that_is_only_read_has_no_penalties():
    config = OptimConfig(
        table=TableOptimConfig(l2=0.1), tables={"small": TableOptimConfig(name="sgd", l2=0.2)}
    )
    read = without_penalties(config)
    assert read.table == TableOptimConfig()
    assert read.tables == {"small": TableOptimConfig(name="sgd")}
