"""Runs whose config.yaml has the settings of single tables where earlier versions kept them."""

import json
import shutil

import pytest

from recsys.run.config import read_run_config
from recsys.run.earlier_keys import with_tables
from recsys.sharding.optimizers import TableOptimConfig
from recsys.sharding.tables import TableConfig
from tests.run.test_earlier_versions import BRIEF, LOSSES, RUN, SETTINGS
from tests.small_runs import losses

EARLIER = {
    "model": {"embedding_dim": 8, "table_dims": {"tags": 12}, "half_tables": ["user_id"]},
    "optim": {"tables": {"tags": {"name": "sgd", "l2": 0.1}, "item_id": {}}},
    "plan": {
        "sharding": {"user_id": "row_wise", "item_id": ["row_wise", "table_wise"]},
        "kernels": {"user_id": "fused_uvm_caching"},
        "cache_load_factor": {"user_id": 0.25},
        "ranks": {"modality_text": [0, 1]},
        "search": "fast",
    },
}


def test_every_earlier_key_of_a_table_is_a_key_of_its_section_now():
    config = read_run_config(EARLIER, stored=True)
    assert config.tables == {
        "tags": TableConfig(width=12, optimizer=TableOptimConfig(name="sgd", l2=0.1)),
        "item_id": TableConfig(optimizer=TableOptimConfig(), sharding=["row_wise", "table_wise"]),
        "user_id": TableConfig(
            precision="fp16",
            sharding=["row_wise"],
            kernel="fused_uvm_caching",
            cache_load_factor=0.25,
        ),
        "modality_text": TableConfig(ranks=[0, 1]),
    }
    assert config.model.embedding_dim == 8 and config.plan.search == "fast"


def test_a_job_that_is_given_an_earlier_key_is_told_what_does_its_job():
    with pytest.raises(ValueError) as raised:
        read_run_config(EARLIER)
    for key, now in (
        ("model.table_dims", "width"),
        ("model.half_tables", "precision=fp16"),
        ("optim.tables", "optimizer"),
        ("plan.sharding", "sharding"),
        ("plan.kernels", "kernel"),
        ("plan.cache_load_factor", "cache_load_factor"),
        ("plan.ranks", "ranks"),
    ):
        assert f"{key}: was removed; tables.<table>.{now} does its job" in str(raised.value)


def test_what_is_no_table_by_name_is_left_to_be_refused():
    for sections in ({"plan": {"sharding": "row_wise"}}, {"model": {"half_tables": 3}}):
        assert with_tables(sections) == sections | {"tables": {}}
        with pytest.raises(ValueError, match="was removed; tables.<table>"):
            read_run_config(sections, stored=True)
    both = {"tables": {"tags": {"width": 8}}, "model": {"table_dims": {"tags": 12}}}
    with pytest.raises(ValueError, match="model.table_dims: was removed"):
        read_run_config(both, stored=True)


def test_a_run_that_used_the_earlier_keys_is_evaluated_and_goes_on(tmp_path, repository, job):
    workspace = tmp_path / "workspace"
    shutil.copytree(repository / "tests" / "fixtures" / "earlier_version", workspace)
    file = workspace / "runs/old/config.yaml"
    stored = file.read_text()
    for empty, used in (
        ("table_dims: {}", "table_dims: {user_id: 4}"),
        ("  tables: {}", "  tables: {item_id: {name: adam, learning_rate: null, l2: 0.0}}"),
        ("sharding: {}", "sharding: {user_id: [table_wise, data_parallel]}"),
    ):
        assert stored.count(empty) == 1
        stored = stored.replace(empty, used)
    file.write_text(stored)
    done = job("evaluate", *RUN, f"workspace={workspace}", "split=test", *BRIEF)
    assert done.returncode == 0, done.stderr
    scores = json.loads((workspace / "runs/old/eval/test/metrics.json").read_text())["all"]
    assert scores["auc"] == pytest.approx(0.6212121212121212, rel=1e-5)

    goes_on = ["train", *RUN, f"workspace={workspace}", *SETTINGS, "train.epochs=2"]
    done = job(*goes_on)
    assert done.returncode == 1 and "tables was {'user_id': {'width': 4}" in done.stderr
    done = job(*goes_on, "tables.user_id.width=4", "tables.item_id.optimizer.name=adam")
    assert done.returncode == 0, done.stderr
    assert "resumed from step-00000005" in done.stdout
    assert [loss for _, loss in losses(workspace, "old")[5:]] == pytest.approx(LOSSES, rel=1e-5)
