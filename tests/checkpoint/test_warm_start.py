"""Warm start: matched rows with their state and the dense part are the parent's, the rest is fresh."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys.checkpoint.chunks import ChunkReader, read_index
from recsys.checkpoint.read import StoredTables, load_checkpoint
from recsys.model.build import batch_features
from recsys.sharding.pipeline import build_pipeline
from recsys.sharding.shards import TableShard
from tests import tiny_world
from tests.checkpoint.warm_start_worker import MATCHES, USERS, child, save
from tests.processes import run_worker
from tests.sharding.worker import TABLES, settings, train

WORKER = Path(__file__).with_name("warm_start_worker.py")
SLOTS = {"adam": ("exp_avg", "exp_avg_sq"), "rowwise_adagrad": ("sum",)}


def stored(path, table, optimizer):
    """Weights and optimizer state [rows, columns] of a table of a checkpoint, by name."""
    reader = ChunkReader(path, read_index(path)["chunks"])
    rows, columns = reader.extent(table)
    whole = TableShard(
        table=table,
        weight=torch.empty(rows, columns),
        row=0,
        column=0,
        num_rows_of_table=rows,
        num_columns_of_table=columns,
        replicated=False,
    )
    reader.read_weight(whole)
    found = {"weight": whole.weight}
    for slot in SLOTS[optimizer]:
        found[slot] = torch.empty(rows, 1 if slot == "sum" else columns)
        reader.read_slot(whole, slot, found[slot])
    return {name: values.numpy() for name, values in found.items()}


@pytest.fixture(scope="module")
def parents(tmp_path_factory, one_process):
    """Checkpoints of trainings of eight steps, by table optimizer."""
    paths = {}
    for optimizer in SLOTS:
        folder = tmp_path_factory.mktemp(optimizer)
        train(one_process, settings(optimizer), steps=8, save=folder)
        paths[optimizer] = folder / "step-00000008"
    return paths


@pytest.mark.parametrize("optimizer", SLOTS)
def test_matched_rows_have_the_parents_weights_and_state_and_new_ones_a_fresh_models(
    tmp_path, parents, one_process, optimizer
):
    config = settings(optimizer)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=5))
    said, _, sharded = child(one_process, config, parents[optimizer])
    assert said == []
    warm = save(one_process, sharded, tmp_path / "warm")
    _, _, sharded = child(one_process, config, None)
    fresh = save(one_process, sharded, tmp_path / "fresh")
    for table in TABLES:
        match, rows = MATCHES[table], USERS if table == "user_id" else None
        before, now, new = (
            stored(path, table, optimizer) for path in (parents[optimizer], warm, fresh)
        )
        num_rows = rows or len(before["weight"])
        source = match.source_R
        if source is None:
            source = np.where(np.arange(num_rows) < match.num_rows, np.arange(num_rows), -1)
        assert len(now["weight"]) == num_rows and (source < 0).sum() in (0, 10, 12)
        for name, values in now.items():
            np.testing.assert_array_equal(values[source >= 0], before[name][source[source >= 0]])
            np.testing.assert_array_equal(values[source < 0], new[name][source < 0])
        assert (before["weight"] != new["weight"][: len(before["weight"])]).any()
    dense = [load_file(path / "dense.safetensors") for path in (parents[optimizer], warm)]
    assert all(torch.equal(dense[0][name], values) for name, values in dense[1].items())
    states = [
        torch.load(path / "dense-optimizer.pt", weights_only=True)["state"]
        for path in (parents[optimizer], warm)
    ]
    assert states[0].keys() == states[1].keys() != set()
    for place, values in states[0].items():
        assert all(torch.equal(values[name], states[1][place][name]) for name in values)
    assert read_index(warm)["step_counts"] == read_index(parents[optimizer])["step_counts"]


def test_a_start_on_the_same_data_scores_and_trains_as_the_parent_does(parents, one_process):
    """Bit for bit: the next six steps, and the scores before them."""
    config = settings("adam")
    whole, _ = train(one_process, config, steps=14)
    said, ranker, sharded = child(
        one_process,
        config,
        parents["adam"],
        users=tiny_world.NUM_USERS,
        matches={name: dataclasses.replace(MATCHES[name], source_R=None) for name in TABLES}
        | {"item_id": dataclasses.replace(MATCHES["user_id"], num_rows=tiny_world.NUM_ITEMS)},
    )
    assert said == []
    features, losses = batch_features(ranker), []
    steps = build_pipeline("plain", sharded, one_process)
    sharded.model.train()
    batches = (tiny_world.batch(range(32), features, k % 6, 1, 32) for k in range(8, 14))
    for _ in range(6):
        losses.append(steps.progress(batches).loss.item())
    assert losses == whole["losses"][8:]


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_two_ranks_of_any_plan_start_as_one(tmp_path, parents, one_process, sharding):
    parent = parents["rowwise_adagrad"]
    _, _, sharded = child(one_process, settings("rowwise_adagrad"), parent)
    one = save(one_process, sharded, tmp_path / "one")
    run_worker(
        WORKER, "--parent", parent, "--save", tmp_path / "two", "--sharding", sharding, ranks=2
    )
    two = tmp_path / "two" / "step-00000001"
    for table in TABLES:
        ours, theirs = (stored(path, table, "rowwise_adagrad") for path in (one, two))
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])
    dense = [load_file(path / "dense.safetensors") for path in (one, two)]
    assert all(torch.equal(dense[0][name], values) for name, values in dense[1].items())


def test_what_does_not_match_is_named_and_starts_anew(parents, one_process):
    config = settings(
        "rowwise_adagrad",
        model={"exclude_features": ["tags"], "deep_dims": [12]},
        tables={"user_id": {"width": 16}, "item_id": {"optimizer": {"name": "sgd"}}},
    )
    said, _, sharded = child(one_process, config, parents["rowwise_adagrad"])
    _, _, fresh = child(one_process, config, None)
    assert said[:3] == [
        "table user_id starts anew: 8 columns there, 16 here",
        "table tags of the run is not used: the model reads no such table",
        "optimizer state of table item_id starts anew: rowwise_adagrad there, sgd here",
    ]
    named = [sentence.split()[2] for sentence in said[3:]]
    changed = {
        name
        for name, values in sharded.dense_state().items()
        if torch.equal(values, fresh.dense_state()[name]) and values.any()
    }
    assert changed and changed <= set(named)
    assert any("starts anew: [8, " in s and "there, [12, " in s for s in said[3:])
    users = {shard.table: shard.weight for shard in sharded.table_shards()}["user_id"]
    assert torch.equal(users, {s.table: s.weight for s in fresh.table_shards()}["user_id"])


def test_a_run_on_grown_data_takes_later_ids_for_unknown(parents, one_process):
    path, users = parents["adam"], tiny_world.NUM_USERS
    _, _, sharded = child(one_process, settings("adam"), None)
    with pytest.raises(
        ValueError, match="is stored with 40 rows x 8 columns, the model has 50 x 8"
    ):
        load_checkpoint(path, sharded=sharded, env=one_process)
    load_checkpoint(path, sharded=sharded, env=one_process, with_optimizer=False, is_grown=True)
    table = {shard.table: shard.weight for shard in sharded.table_shards()}["user_id"].numpy()
    before = stored(path, "user_id", "adam")["weight"]
    np.testing.assert_array_equal(table[:users], before)
    np.testing.assert_array_equal(table[users:], np.repeat(before[:1], USERS - users, axis=0))
    whole = StoredTables(path, {"user_id": USERS})
    assert whole.shape("user_id") == (USERS, 8) and whole.shape("shoe") == (0, 0)
    np.testing.assert_array_equal(whole.read("user_id", 38, 43).numpy(), table[38:43])
    np.testing.assert_array_equal(whole.read("user_id", 45, 47).numpy(), table[45:47])
