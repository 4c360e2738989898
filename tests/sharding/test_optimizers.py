"""Table optimizers: auto goes by rows, fused Adam on CPU is refused, schedules by hand."""

import math

import pytest
from torch.nn.parallel import DistributedDataParallel

from recsys.run.config import read_run_config
from recsys.sharding.optimizers import (
    OptimConfig,
    TableOptimConfig,
    learning_rate_factor,
    without_penalties,
)
from recsys.sharding.plan import TABLES_PATH
from recsys.sharding.shards import kernels_of
from recsys.sharding.tables import TableConfig, TableSettings, resolve_optimizer
from tests.sharding.worker import TABLES, settings, train


def resolve(asked=None, sharding=None, device="cpu", small_table_rows=100_000):
    """The optimizers of two tables of which `asked`, of all tables or by name, is asked."""
    tables = {
        name: TableSettings(rows=rows, width=8, sharding=(sharding or {}).get(name))
        for name, rows in (("small", 100), ("large", 5_000_000))
    }
    by_name = asked if isinstance(asked, dict) else dict.fromkeys(tables, asked)
    return {
        name: resolve_optimizer(
            by_name.get(name) or TableOptimConfig(),
            "optim.table",
            name,
            settings,
            device_type=device,
            small_table_rows=small_table_rows,
        )
        for name, settings in tables.items()
    }


def test_auto_gives_small_tables_adam_and_large_ones_rowwise_adagrad():
    chosen = resolve(small_table_rows=1000)
    assert chosen["small"].name == "adam" and chosen["small"].learning_rate == 1e-3
    assert chosen["large"].name == "rowwise_adagrad" and chosen["large"].learning_rate == 0.05


def test_auto_takes_rowwise_adagrad_for_a_model_parallel_table_on_cpu():
    chosen = resolve(sharding={"small": ("table_wise",)})
    assert chosen["small"].name == "rowwise_adagrad"
    on_gpu = resolve(sharding={"small": ("table_wise",)}, device="cuda")
    assert on_gpu["small"].name == "adam"


def test_fused_adam_on_cpu_is_refused_with_the_remedy():
    adam = TableOptimConfig(name="adam")
    with pytest.raises(ValueError, match="fused Adam runs on GPU only; on CPU use rowwise_adagrad"):
        resolve({"small": adam}, {"small": ("row_wise",)})
    with pytest.raises(ValueError, match="'large' with 5,000,000 rows on CPU: fused Adam runs on"):
        resolve(adam)


def test_half_precision_and_pinned_ranks_leave_auto_no_dense_adam_on_cpu():
    for placed in ({"precision": "fp16"}, {"ranks": (0,)}):
        settings = TableSettings(rows=100, width=8, **placed)
        for device, name in (("cpu", "rowwise_adagrad"), ("cuda", "adam")):
            chosen = resolve_optimizer(
                TableOptimConfig(),
                "optim.table",
                "t",
                settings,
                device_type=device,
                small_table_rows=1000,
            )
            assert chosen.name == name


def test_unknown_optimizer_and_rates_are_refused_by_the_keys_of_all_tables_and_of_one():
    bad = {"name": "lamb", "l2": -1.0}
    with pytest.raises(ValueError) as raised:
        read_run_config({"optim": {"table": bad}, "tables": {"tags": {"optimizer": bad}}})
    for key in ("optim.table", "tables.tags.optimizer"):
        assert f"{key}.name='lamb': expected auto, adam, " in str(raised.value)
    with pytest.raises(ValueError) as raised:
        read_run_config({
            "optim": {"table": {"l2": -1.0}},
            "tables": {"tags": {"optimizer": {"learning_rate": math.inf}}},
        })
    assert "optim.table.l2=-1.0: expected a finite number" in str(raised.value)
    assert "tables.tags.optimizer.learning_rate=inf: expected a finite" in str(raised.value)


def test_warm_up_rises_to_one_and_linear_decay_ends_at_zero():
    config = OptimConfig(warmup_steps=4, decay="linear")
    factors = [learning_rate_factor(config, step, 8) for step in range(9)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_cosine_is_half_way_down_in_the_middle():
    config = OptimConfig(decay="cosine")
    assert learning_rate_factor(config, 50, 100) == pytest.approx(0.5)


def test_a_model_that_is_only_read_has_no_penalties():
    assert (
        without_penalties(OptimConfig(table=TableOptimConfig(l2=0.1))).table == TableOptimConfig()
    )
    own = TableConfig(width=8, optimizer=TableOptimConfig(name="sgd", l2=0.2))
    read = TableConfig(width=8, optimizer=TableOptimConfig(name="sgd"))
    assert own.only_read("cpu") == own.only_read("cuda") == read


def test_a_forward_that_is_not_trained_on_counts_no_step(one_process):
    """The worker scores a batch after its steps."""
    _, sharded = train(one_process, settings("rowwise_adagrad"), steps=3)
    assert sharded.step_counts() == dict.fromkeys(TABLES, 3)


def test_a_step_count_can_be_loaded_over_a_trained_one(one_process):
    """FBGEMM computes with a copy of the count on the CPU."""
    _, sharded = train(one_process, settings("rowwise_adagrad"), steps=3)
    sharded.load_step_counts(dict.fromkeys(TABLES, 7))
    tables = sharded.model.module.get_submodule(TABLES_PATH)
    kernels = [kernel for _, kernel, _ in kernels_of(tables)]
    assert kernels and {int(kernel.iter_cpu) for kernel in kernels} == {7}
    assert sharded.step_counts() == dict.fromkeys(TABLES, 7)


def test_replicated_tables_of_a_world_of_one_are_averaged_with_nobodys_gradients(one_process):
    """Adam steps every row of them, so that a missing gradient would show in the step counts."""
    _, sharded = train(one_process, settings("adam"), steps=3)
    tables = sharded.model.module.get_submodule(TABLES_PATH)
    replicated = [is_copy for _, _, is_copy in kernels_of(tables)]
    assert any(replicated) and sharded.step_counts() == dict.fromkeys(TABLES, 3)
    assert not [one for one in sharded.model.modules() if isinstance(one, DistributedDataParallel)]
    assert not [one for one in tables._lookups if isinstance(one, DistributedDataParallel)]
