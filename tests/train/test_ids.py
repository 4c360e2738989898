"""Jobs on tables of fixed capacity: train on two ranks, evaluate, refuse what does not fit."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from recsys.errors import UserError
from recsys.run.assembly import build_plannable
from recsys.run.config import read_run_config
from recsys.schema import SplitSpec
from tests import tiny_world
from tests.small_runs import metrics, options

IDS = ["tables.item_id.ids.capacity=60", "tables.item_id.ids.forget.least_recent=true"]
IDS += ["train.exchange_ids_every_steps=1", "train.global_batch_size=64"]


@pytest.mark.slow
def test_a_run_with_a_table_of_half_its_ids_says_what_became_of_them(workspace, job):
    done = job("train", *options(workspace, "half", *IDS, "train.epochs=1"), ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "] ids of item_id: 60 of 60 rows in use, " in done.stdout
    folder = workspace / "runs" / "half"
    lines = [line for line in metrics(workspace, "half") if "ids/item_id/rows_used" in line]
    assert {line["ids/item_id/rows_used"] for line in lines[-3:]} == {60}
    assert lines[-1]["ids/item_id/forgotten"] > 0
    plan = json.loads((folder / "plan.json").read_text())
    assert {t["table"]: t["rows"] for t in plan["tables"]}["item_id"] == 61
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    table_row = load_file(checkpoint / "ids.safetensors")["item_id/table_row"]
    assert sorted(table_row[table_row > 0]) == list(range(1, 61))

    place = ["data=demo", f"workspace={workspace}", "run.name=half", "segments.min_rows=1"]
    done = job("evaluate", *place, "importance_rows=64")
    assert done.returncode == 0, done.stderr[-2000:]
    segments = json.loads((folder / "eval/test/metrics.json").read_text())["segments"]
    rows = {name: member["num_rows"] for name, member in segments["table row of the item"].items()}
    assert rows["its own"] > 0 and rows["row 0: not admitted, or forgotten"] > 0
    assert sum(m["num_rows"] for m in segments["age of the item"].values()) >= sum(rows.values())


def test_a_window_with_more_ids_than_rows_stops_all_ranks_with_one_sentence(workspace, job):
    small = ["tables.item_id.ids.capacity=3", "train.exchange_ids_every_steps=2"]
    done = job("train", *options(workspace, "small", *small), ranks=2)
    assert done.returncode != 0
    assert "error: tables.item_id.ids.capacity=3: the training rows between two" in done.stderr
    assert "Traceback" not in done.stderr


def plannable(manifest, **ids):
    config = read_run_config({"tables": {"item_id": {"ids": {"capacity": 10, **ids}}}})
    return build_plannable(config=config, manifest=manifest, modality_dims={}, device_type="cpu")


def test_a_plan_counts_the_capacity_and_the_unknown_row():
    _, tables = plannable(tiny_world.manifest())
    assert tables["item_id"].rows == 11
    assert tables["user_id"].rows == tiny_world.NUM_USERS


def test_age_without_times_is_refused_with_the_key_to_change():
    manifest = tiny_world.manifest()
    untimed = SplitSpec(num_rows=4, num_positives=2, files=(), file_rows=())
    manifest.splits["train"] = untimed
    with pytest.raises(
        UserError, match=r"tables\.item_id\.ids\.forget\.after_days: the log of 'ti"
    ):
        plannable(manifest, forget={"after_days": 3})
    plannable(manifest, forget={"least_recent": True})


@pytest.mark.parametrize(
    ("table", "ids", "message"),
    [
        ("item_id", {}, r"tables\.item_id\.ids\.capacity: missing"),
        ("item_id", {"capacity": 0}, r"ids\.capacity=0: expected 1 or more"),
        ("item_id", {"capacity": 5, "admit": {"count": 0}}, r"admit\.count=0: expected 1 or more"),
        ("modality_text", {"capacity": 5}, r"tables\.modality_text\.ids: its vectors are frozen"),
    ],
)
def test_what_cannot_be_is_refused(table, ids, message):
    with pytest.raises(UserError, match=message):
        config = read_run_config({"tables": {table: {"ids": ids}}})
        build_plannable(
            config=config,
            manifest=tiny_world.manifest(),
            modality_dims={"text": 5},
            device_type="cpu",
        )


def test_no_id_is_lost_between_the_pipelines_batches_and_the_map(one_process):
    """Ids are noted when their batch is trained, not when the pipeline takes it."""
    from recsys.sharding.id_maps import IdMaps
    from recsys.sharding.tables import TableSettings
    from tests.sharding.ids_worker import IDS as TABLES
    from tests.sharding.ids_worker import drifting_batch

    config = read_run_config({"tables": {"item_id": {"ids": TABLES["item_id"]}}})
    settings = TableSettings(
        rows=25, width=8, features=("item_id", "history"), ids=config.tables["item_id"].ids
    )
    maps = IdMaps(
        {"item_id": settings}, tiny_world.manifest(), exchange_every_steps=2, bound=0.1, seed=0
    )
    features = ["item_id", "history"]
    days = [drifting_batch(range(8), features, step, 1, 8) for step in range(3)]
    taken = maps.watched(iter(days), is_first_pass=True)
    for _ in range(3):
        next(taken)
    maps.stepped()
    state = maps.state()
    items = days[0].features.sparse["item_id"].values().numpy()
    rows, counts = np.unique(items, return_counts=True)
    assert state["item_id/pending_rows"].tolist() == rows.tolist()
    assert state["item_id/pending_counts"].tolist() == counts.tolist()
    lookups = len(days[0].features.sparse.values())
    assert state["item_id/pending_lookups"].tolist() == [lookups, lookups]
