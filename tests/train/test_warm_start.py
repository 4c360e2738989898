"""Warm starts by the real commands: data grown by hand, scored, trained on, cut off, gone on with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from recsys.schema import read_manifest
from tests.grown_data import NEW_ITEMS, NEW_USERS, grow
from tests.small_runs import losses, metrics, options, write_features
from tests.warm_jobs import WARM as JOBS

SCORED = ["ranking.num_users=0", "importance_rows=0"]
SPLITS = ["valid", "test", "window_0001", "window_0002"]
WARM = ["init=base", "train.global_batch_size=64", "train.save_every_steps=1"]
WARM += ["train.keep_last=99", "model.dropout=0.1"]


def evaluate(workspace, job, name, split, *more):
    """Score a split, and return metrics and scores by row."""
    place = ["data=demo", f"workspace={workspace}", f"run.name={name}", f"split={split}"]
    done = job("evaluate", *place, *SCORED, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = workspace / "runs" / name / "eval" / read_split(workspace, split)
    rows = pq.read_table(folder / "predictions.parquet")
    found = json.loads((folder / "metrics.json").read_text())
    return found, rows.column("score").to_numpy()


def read_split(workspace, split):
    return read_manifest(workspace).splits_in_time[-1] if split == "next" else split


def train(workspace, job, name, *more, ranks=0):
    done = job("train", *options(workspace, name, *more), ranks=ranks)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def before(workspace, tmp_path_factory, job):
    """(workspace, scores): of a run `base`, scored on test, and then two windows appended."""
    folder = tmp_path_factory.mktemp("grown") / "w"
    shutil.copytree(workspace, folder, ignore=shutil.ignore_patterns("runs", "truth"))
    train(folder, job, "base", "train.epochs=1", "train.global_batch_size=64")
    scores = {split: evaluate(folder, job, "base", split) for split in ("valid", "test")}
    grow(folder, windows=2)
    write_features(folder)
    return folder, scores


@pytest.fixture(scope="module")
def warm(before, job):
    """Output of the run `warm`."""
    return train(before[0], job, "warm", *WARM)


def test_a_run_made_before_the_window_came_scores_it_and_everything_as_before(before, job):
    folder, scores = before
    _, again = evaluate(folder, job, "base", "test")
    np.testing.assert_array_equal(again, scores["test"][1])
    found, rows = evaluate(folder, job, "base", "next")
    assert len(rows) == found["all"]["num_rows"] == read_manifest(folder).splits["test"].num_rows
    assert (folder / "runs" / "base" / "eval" / "window_0002" / "report.html").is_file()


def test_every_split_is_scored_before_it_is_trained_on(before, warm):
    folder, scores = before
    manifest = read_manifest(folder)
    tables = {table.name: table.num_rows for table in manifest.tables}
    assert f"user_id {tables['user_id'] - NEW_USERS} of {tables['user_id']}" in warm
    assert f"item_id {tables['item_id'] - NEW_ITEMS} of {tables['item_id']}" in warm
    assert f"of {', '.join(SPLITS)} by time" in warm
    said = [line for line in warm.splitlines() if "before training on it" in line]
    assert [line.split(": ")[1].split()[0] for line in said] == SPLITS
    scored = [line for line in metrics(folder, "warm") if "valid/auc" in line]
    starts = np.cumsum([0, *(-(-manifest.splits[name].num_rows // 64) for name in SPLITS)])
    assert [line["step"] for line in scored] == starts[:-1].tolist()
    # Nothing was trained on yet: the parent's own metrics, to the last bit.
    for key, value in scores["valid"][0]["all"].items():
        assert scored[0][f"valid/{key}"] == value, key
    steps = [line["step"] for line in metrics(folder, "warm") if "train/loss" in line]
    assert steps == list(range(1, starts[-1] + 1))
    stored = yaml.safe_load((folder / "runs" / "warm" / "config.yaml").read_text())
    assert stored["data"]["splits"] == SPLITS and stored["parent"]["splits"] == ["train"]
    best = json.loads((folder / "runs" / "warm" / "checkpoints" / "best.json").read_text())
    assert best["checkpoint"] == f"step-{starts[-1]:08d}"


def test_a_warm_start_that_was_cut_off_ends_bit_for_bit_as_the_whole_one(before, warm, job):
    """Once in the middle of a split, once where a split ends and the next one is to be scored."""
    folder = before[0]
    run = folder / "runs" / "warm"
    whole, lines = losses(folder, "warm"), metrics(folder, "warm")
    newest = max((run / "checkpoints").glob("step-*"))
    names = ("dense.safetensors", "tables-rank00000.safetensors", "dense-optimizer.pt")
    content = [(newest / name).read_bytes() for name in names]
    starts = [line["step"] for line in lines if "valid/auc" in line]
    for step in (starts[2], starts[1] + 1):
        for path in (run / "checkpoints").glob("step-*"):
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        assert f"resumed from step-{step:08d}" in train(folder, job, "warm", *WARM)
        assert losses(folder, "warm") == whole
        scored = [line["step"] for line in metrics(folder, "warm") if "valid/auc" in line]
        assert scored == starts
        assert [(newest / name).read_bytes() for name in names] == content


def test_a_warm_start_whose_last_step_is_not_saved_is_stopped_and_not_finished(before, job):
    folder = before[0]
    more = [*WARM, "train.splits=[valid]"]
    worker = Path(__file__).with_name("late_worker.py")
    done = JOBS.run(worker, "step", "0", *options(folder, "late", *more))
    assert done.returncode == 143, done.stderr[-2000:]
    last = losses(folder, "late")[-1][0]
    newest = f"step-{last - 1:08d}"
    assert f"stopped by SIGTERM at step {last}, not saved (" in done.stdout
    assert f"train.stop_within_seconds); the same command goes on from {newest}" in done.stdout
    assert f"resumed from {newest}" in train(folder, job, "late", *more)
    best = json.loads((folder / "runs" / "late" / "checkpoints" / "best.json").read_text())
    assert best["checkpoint"] == f"step-{last:08d}"


@pytest.mark.slow
def test_two_ranks_and_cut_tables_start_and_train_as_one(before, warm, job):
    folder = before[0]
    more = [f"tables.{table}.sharding=row_wise" for table in ("user_id", "item_id")]
    base = ["optim.table.name=rowwise_adagrad", "model.dropout=0"]
    train(folder, job, "flat", *base, "train.epochs=1")
    for name, ranks, sharding in (("one", 0, []), ("two", 2, more)):
        train(folder, job, name, *WARM, *base, "init=flat", *sharding, ranks=ranks)
    one, two = losses(folder, "one"), losses(folder, "two")
    np.testing.assert_allclose([loss for _, loss in two], [loss for _, loss in one], rtol=2e-5)


@pytest.mark.slow
def test_a_replayed_sample_is_the_same_after_a_kill_and_on_two_ranks(before, job):
    """One pass over the newest window and twice as many rows of splits that were trained on."""
    folder = before[0]
    base = ["optim.table.name=rowwise_adagrad", "model.dropout=0"]
    replay = [*WARM, *base, "init=replay_base", "train.splits=[window_0002]", "train.replay=2"]
    train(folder, job, "replay_base", *base, "train.epochs=1")
    num_rows = read_manifest(folder).splits["window_0002"].num_rows
    said = train(folder, job, "replayed", *replay)
    assert f"{num_rows} training rows of window_0002 and {2 * num_rows} earlier ones" in said
    whole = losses(folder, "replayed")
    steps = -(-3 * num_rows // 64)
    assert [step for step, _ in whole] == list(range(1, steps + 1))
    scored = [line for line in metrics(folder, "replayed") if "valid/auc" in line]
    assert [line["step"] for line in scored] == [0]
    assert scored[0]["valid/num_rows"] == num_rows, "the new rows alone, before any training"
    newest = folder / "runs" / "replayed" / "checkpoints" / f"step-{steps:08d}"
    content = (newest / "tables-rank00000.safetensors").read_bytes()
    for path in newest.parent.glob("step-*"):
        if int(path.name.removeprefix("step-")) > 2:
            shutil.rmtree(path)
    assert "resumed from step-00000002" in train(folder, job, "replayed", *replay)
    assert losses(folder, "replayed") == whole
    assert (newest / "tables-rank00000.safetensors").read_bytes() == content
    train(folder, job, "replayed_by_two", *replay, ranks=2)
    two = losses(folder, "replayed_by_two")
    np.testing.assert_allclose([loss for _, loss in two], [loss for _, loss in whole], rtol=2e-5)


@pytest.mark.slow
def test_a_run_is_trained_anew_on_everything_without_validation(before, job):
    folder = before[0]
    said = train(folder, job, "anew", "train.splits=[all]", "train.epochs=2")
    assert "training rows of train, valid, test, window_0001, window_0002, " in said
    assert "validation AUC" not in said and "best validation auc none" in said
    assert not [line for line in metrics(folder, "anew") if "valid/auc" in line]
    evaluate(folder, job, "anew", "next")


@pytest.mark.slow
def test_a_run_made_before_the_window_came_is_exported(before, job):
    folder = before[0]
    done = job("export", "data=demo", f"workspace={folder}", "run.name=base", "precision=fp32")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_ids_of_a_table_of_fixed_capacity_keep_their_rows(before, job):
    """The parent's metrics on a split before anything is trained on, through the map that it left."""
    folder = before[0]
    ids = ["tables.user_id.ids.capacity=58", "train.exchange_ids_every_steps=2"]
    more = [*ids, "train.global_batch_size=64"]
    train(folder, job, "mapped", *more, "train.epochs=1")
    found, _ = evaluate(folder, job, "mapped", "valid")
    said = train(folder, job, "mapped_warm", *more, "init=mapped")
    assert "starts anew" not in said
    scored = next(line for line in metrics(folder, "mapped_warm") if "valid/auc" in line)
    for key, value in found["all"].items():
        assert scored[f"valid/{key}"] == value, key
    said = train(folder, job, "unmapped", "train.global_batch_size=64", "init=mapped")
    assert (
        "user_id starts anew: 58 rows for ids that come and go there, a row for every id here"
        in said
    )
