"""The L2 penalty of a table is l2 / 2 |W|^2 over every row, under every plan that takes it."""

import dataclasses
from pathlib import Path

import pytest

from recsys.run.assembly import build_plannable, plan_model
from recsys.run.config import read_run_config
from recsys.sharding.apply import check_matches
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.optimizers import TableOptimConfig
from recsys.sharding.tables import TableSettings, check_penalties
from tests import tiny_world
from tests.processes import worker_result
from tests.sharding.penalty_worker import (
    OPTIMIZERS,
    TABLES,
    assert_tables,
    by_the_formula,
    trained_tables,
)

WORKER = Path(__file__).with_name("penalty_worker.py")
MODEL_PARALLEL = ("table_wise", "row_wise", "column_wise", "table_row_wise", "grid_shard")


@pytest.fixture(scope="module")
def two_ranks():
    return worker_result(WORKER, ranks=2)


@pytest.fixture(scope="module")
def formula(one_process):
    """Tables as the slow way makes them, by optimizer."""
    return {name: by_the_formula(one_process, name) for name in OPTIMIZERS}


@pytest.mark.parametrize("sharding", [{}, dict.fromkeys(TABLES, "data_parallel")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_on_one_rank_the_penalty_is_the_formulas(one_process, formula, optimizer, sharding):
    assert_tables(trained_tables(one_process, optimizer, sharding), formula[optimizer])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_on_two_ranks_the_penalty_is_the_formulas(two_ranks, formula, optimizer):
    assert_tables(two_ranks[optimizer], formula[optimizer])


def cluster(device):
    return ClusterConfig(
        name="two",
        device=device,
        hosts=2,
        accelerators_per_host=2,
        accelerator_memory_gib=4.0,
        host_memory_gib=16.0,
    )


def plan(device="cpu", optimizer="auto", **sections):
    """Plan a model whose every table has a penalty."""
    config = read_run_config({
        "model": {"embedding_dim": 8, "modalities": [], **sections.pop("model", {})},
        "optim": {"table": {"name": optimizer, "l2": 0.1}, **sections.pop("optim", {})},
        "train": {"global_batch_size": 64},
        "tables": sections.pop("tables", {}),
    })
    manifest = tiny_world.manifest()
    ranker, tables = build_plannable(
        config=config, manifest=manifest, modality_dims={}, device_type=device
    )
    made = plan_model(
        config=config,
        manifest=manifest,
        ranker=ranker,
        tables=tables,
        cluster=cluster(device),
    )
    return made, tables


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("optimizer", ["auto", *OPTIMIZERS])
def test_every_table_with_a_penalty_is_replicated(device, optimizer):
    made, _ = plan(device, optimizer)
    assert {table.sharding for table in made.tables} == {"data_parallel"}
    either, _ = plan(
        device, optimizer, tables={"user_id": {"sharding": ["row_wise", "data_parallel"]}}
    )
    assert {table.sharding for table in either.tables} == {"data_parallel"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("optimizer", ["auto", "rowwise_adagrad", "sgd"])
@pytest.mark.parametrize(
    ("key", "settings"),
    [
        *((f"sharding={kind}", {"sharding": kind}) for kind in MODEL_PARALLEL),
        ("ranks", {"ranks": [1]}),
        ("kernel=fused_uvm", {"kernel": "fused_uvm"}),
        ("precision=fp16", {"precision": "fp16"}),
    ],
)
def test_every_other_form_is_refused_with_table_rows_and_keys(device, optimizer, key, settings):
    expected = (
        rf"optim.table.l2=0.1: .*'user_id' \(40 rows\).*tables.user_id.{key} "
        r".*tables.user_id.optimizer.l2=0"
    )
    with pytest.raises(ValueError, match=expected):
        plan(device, optimizer, tables={"user_id": settings})
    if "kernel" not in key:  # a GPU's, and for tables that the planner chooses to cut
        without = settings | {"optimizer": {"name": optimizer}}
        made, _ = plan(device, optimizer, tables={"user_id": without})
        shardings = {table.table: table.sharding for table in made.tables}
        assert shardings["user_id"] != "data_parallel"
        assert shardings["item_id"] == "data_parallel"


def test_a_saved_plan_that_cuts_a_penalised_table_is_refused(one_process):
    made, _ = plan(optim={"table": {"name": "sgd"}})
    _, tables = plan(optimizer="sgd")

    def cut_tags(records):
        kinds = {"tags": "row_wise"}
        return tuple(
            dataclasses.replace(r, sharding=kinds.get(r.table, "data_parallel")) for r in records
        )

    made = dataclasses.replace(
        made,
        num_ranks=1,
        cluster=dataclasses.replace(made.cluster, accelerators_per_host=1),
        tables=cut_tags(made.tables),
        shards=cut_tags(made.shards),
    )
    with pytest.raises(ValueError, match=r"'tags' \(9 rows\) has an L2 penalty .* says row_wise"):
        check_matches(made, tables=tables, env=one_process, source="plan.json")


def test_a_large_table_is_refused_and_not_trained_by_another_rule():
    rows = {"users": 2_000, "items": 20_000, "tags": 10}
    tables = {name: TableSettings(rows=number, width=8) for name, number in rows.items()}
    auto = (TableOptimConfig(l2=0.1), "optim.table")
    with pytest.raises(
        ValueError,
        match="'users' \\(2,000 rows\\).*users.optimizer.name=adam .*l2=0.1\\)\n.*20,000",
    ) as told:
        check_penalties(dict.fromkeys(tables, auto), tables, small_table_rows=1_000)
    assert "tags" not in str(told.value)
    named = (TableOptimConfig(name="sgd", l2=0.1), "optim.table")
    with pytest.raises(ValueError, match="'items' .*more than 10,000 rows") as told:
        check_penalties(dict.fromkeys(tables, named), tables, small_table_rows=1_000)
    assert "users" not in str(told.value)
    free = (TableOptimConfig(), "tables.items.optimizer")
    half = TableSettings(rows=10**9, width=8, precision="fp16")
    check_penalties(
        {"users": free, "items": free, "tags": auto},
        tables | {"users": half, "items": half},
        small_table_rows=1_000,
    )
