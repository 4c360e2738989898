"""The real commands on a small drawn world: train, evaluate, compare."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from recsys.config import from_config
from recsys.data.planned_manifest import planned_manifest
from recsys.data.recipe import Recipe
from recsys.schema import read_manifest
from tests.small_runs import losses, metrics, options, write_features
from tests.test_files import limited


def test_train_evaluate_compare_tell_their_story(workspace, command, job):
    """Two ranks; the training as a user types it, from another folder."""
    done = command("train", *options(workspace, "story", "train.epochs=2"), ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    for part in ("sharding plan, 2 rank(s)", "validation AUC", "best validation auc", "next:"):
        assert part in done.stdout
    folder = workspace / "runs" / "story"
    for name in ("config.yaml", "plan.json", "metrics.jsonl", "checkpoints/best.json"):
        assert (folder / name).is_file(), name
    assert list((folder / "tensorboard").iterdir())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    norms = [line["train/gradient_norm"] for line in lines if "train/loss" in line]
    assert norms and all(0 < norm < 100 for norm in norms)

    done = job("evaluate", "data=demo", f"workspace={workspace}", "run.name=story", ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    predictions = pq.read_table(folder / "eval" / "test" / "predictions.parquet")
    manifest = read_manifest(workspace)
    assert predictions.num_rows == manifest.splits["test"].num_rows
    assert len(set(predictions.column("row_id").to_pylist())) == predictions.num_rows
    weights = [n for n in predictions.column_names if n.startswith("weight_")]
    assert weights == ["weight_ids", "weight_semantic", "weight_style", "weight_text"]
    total = sum(predictions.column(n).to_numpy() for n in weights)
    np.testing.assert_allclose(total, 1, atol=1e-5)
    metrics = json.loads((folder / "eval" / "test" / "metrics.json").read_text())
    assert metrics["all"]["num_rows"] == predictions.num_rows
    assert 0.5 < metrics["oracle"]["auc"] < 1
    low, high = metrics["intervals"]["auc"]
    assert low < metrics["all"]["auc"] < high
    assert set(metrics["planted"]) == {"semantic", "style", "text"}
    assert {"full", "sampled"} < set(metrics["ranking"])
    assert {"coverage", "diversity_style"} < set(metrics["recommendations"])
    shuffled = {(line["kind"], line["name"]) for line in metrics["importance"]}
    assert {("feature", "item_id"), ("item vector", "style")} < shuffled
    assert all(line["auc_lost"] != 0 for line in metrics["importance"] if "vector" in line["kind"])
    for family in ("training rows of the item", "artist of the item", "age group of the user"):
        counts = [member["num_rows"] for member in metrics["segments"][family].values()]
        assert 0 < sum(counts) <= predictions.num_rows
    report = (folder / "eval" / "test" / "report.html").read_text(encoding="utf-8")
    assert "What it recommends" in report and "data:image/jpeg" in report

    one = job("evaluate", "data=demo", f"workspace={workspace}", "run.name=story", "split=valid")
    assert one.returncode == 0, one.stderr[-2000:]
    done = job("compare", "data=demo", f"workspace={workspace}", "runs=[story]")
    assert done.returncode == 0 and "oracle (true probabilities)" in done.stdout


@pytest.mark.slow
def test_evaluation_does_not_depend_on_ranks_or_plan(workspace, job):
    done = job("train", *options(workspace, "planned", "train.epochs=1", "optim.table.name=sgd"))
    assert done.returncode == 0, done.stderr[-2000:]
    folder = workspace / "runs" / "planned" / "eval" / "test"
    scores, metrics = [], []
    for ranks, sharding in ((0, None), (2, "column_wise"), (2, "row_wise")):
        base = ["data=demo", f"workspace={workspace}", "run.name=planned"]
        if sharding:
            base += [f"tables.{table}.sharding={sharding}" for table in ("user_id", "item_id")]
        done = job("evaluate", *base, ranks=ranks)
        assert done.returncode == 0, done.stderr[-2000:]
        rows = pq.read_table(folder / "predictions.parquet")
        scores.append(rows.column("score").to_numpy())
        assert (np.diff(rows.column("row_id").to_numpy()) > 0).all(), "parts follow each other"
        parts = sorted(path.name for path in (folder / "predictions.parquet").iterdir())
        assert parts == [f"part-{r:05d}-of-{ranks or 1:05d}.parquet" for r in range(ranks or 1)]
        metrics.append(numbers_of(json.loads((folder / "metrics.json").read_text())))
    for other in (1, 2):
        np.testing.assert_allclose(scores[other], scores[0], atol=1e-6)
        # Inputs are shuffled among the rows of a rank's batch, so importance is another draw.
        assert metrics[other].keys() == metrics[0].keys()
        assert len(metrics[0]) > 400
        for name, value in metrics[0].items():
            assert metrics[other][name] == pytest.approx(value, abs=2e-3, nan_ok=True), name


def numbers_of(content, name=""):
    """Every number of an evaluation by its place in metrics.json, without importance and origin."""
    if isinstance(content, (int, float)):
        return {name: content}
    if isinstance(content, dict):
        pairs = [(k, v) for k, v in content.items() if k not in ("importance", "made_from")]
    else:
        pairs = list(enumerate(content)) if isinstance(content, list) else []
    return {k: v for key, part in pairs for k, v in numbers_of(part, f"{name}/{key}").items()}


def test_smoke_experiment_runs_as_documented(workspace, job):
    name = ["data=demo", f"workspace={workspace}", "run.name=smoke", "experiment=smoke"]
    done = job("train", *name)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "epoch 1" in done.stdout and "epoch 2" not in done.stdout


def read_plan_of(folder: Path) -> dict:
    return json.loads((folder / "plan.json").read_text())


def decided(plan: dict) -> dict:
    """The part of a plan that is trained; memory and bandwidths are the cluster's own."""
    return {key: plan[key] for key in ("num_ranks", "communication", "shards")} | {
        "tables": [
            {key: line[key] for key in ("table", "rows", "width", "dtype", "optimizer")}
            for line in plan["tables"]
        ]
    }


def test_plan_shown_is_the_plan_trained(workspace, job):
    """plan.py cluster=cpu_2, a training that plans for itself, and one that takes the saved plan."""
    more = ["optim.table.name=rowwise_adagrad", "plan.replicate_modality_bytes=0"]
    more += ["tables.user_id.sharding=table_wise"]
    shown = workspace / "plans" / "cpu_2"
    done = job("plan", *options(workspace, "unused", "cluster=cpu_2", *more))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.index("fits cpu_2") < done.stdout.index("sharding plan, 2 rank(s)")
    page = (shown / "plan.html").read_text()
    assert "modality_text" in page and "http" not in page.split("</style>")[1]
    done = job("train", *options(workspace, "auto", "train.epochs=1", *more), ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    plan = read_plan_of(shown)
    assert decided(read_plan_of(workspace / "runs" / "auto")) == decided(plan)
    assert {line["sharding"] for line in plan["tables"]} != {"replicated"}

    # The saved plan, and the same with a table moved to the other rank.
    moved = json.loads(json.dumps(plan))
    for line in moved["shards"]:
        if line["table"] == "user_id":
            line["rank"] = 1 - line["rank"]
    (workspace / "moved.json").write_text(json.dumps(moved))
    saved = f"plan={workspace / 'moved.json'}"
    # Without the other keys of the section, which the saved plan stands for.
    done = job("train", *options(workspace, "saved", "train.epochs=1", more[0], saved), ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert read_plan_of(workspace / "runs" / "saved") == moved
    np.testing.assert_allclose(losses(workspace, "saved"), losses(workspace, "auto"), rtol=1e-5)


def test_plan_for_another_model_is_refused_on_every_rank_at_once(workspace, job):
    """Rank 0 alone reads the plan; the other rank must not wait for the process group's timeout."""
    done = job("plan", *options(workspace, "unused", "cluster=cpu_2"))
    assert done.returncode == 0, done.stderr[-2000:]
    started = time.monotonic()
    changes = ["model.embedding_dim=12", f"plan={workspace / 'plans' / 'cpu_2' / 'plan.json'}"]
    done = job("train", *options(workspace, "bad3", "run.overwrite=true", *changes), ranks=2)
    assert done.returncode != 0 and time.monotonic() - started < 120
    assert done.stderr.count("table 'user_id' has width 12 and the plan says 8") >= 2
    assert "Traceback" not in done.stderr.split("error:")[1]


def test_a_table_on_ssd_is_refused_before_there_is_a_run(workspace, job):
    done = job("train", *options(workspace, "on_ssd", "tables.user_id.kernel=key_value"))
    assert done.returncode == 1
    assert "tables.user_id.kernel=key_value: tables on SSD are planned" in done.stderr
    assert not (workspace / "runs" / "on_ssd").exists()


def test_planned_manifest_of_a_recipe_has_the_tables_that_prepare_makes(workspace):
    manifest = read_manifest(workspace)
    recipe = from_config(Recipe, manifest.recipe, "recipe")
    drawn = planned_manifest(recipe, {table.name: table.num_rows for table in manifest.tables})
    # The types of columns are those of files, which a plan does not read.
    untyped = [dataclasses.replace(f, column_type=None) for f in manifest.features]
    assert untyped != list(manifest.features)
    manifest = dataclasses.replace(manifest, features=tuple(untyped))
    for name in ("tables", "features", "history", "num_user_rows", "num_item_rows", "has_texts"):
        assert getattr(drawn, name) == getattr(manifest, name), name


def test_finished_run_is_left_alone_and_never_overwritten_silently(workspace, job):
    base = options(workspace, "once", "train.epochs=1")
    assert job("train", *base).returncode == 0
    lines = metrics(workspace, "once")
    assert [line["train/cpu_seconds"] > 0 for line in lines if "train/cpu_seconds" in line] == [
        True
    ]
    again = job("train", *base)
    assert again.returncode == 0 and "is finished" in again.stdout
    assert metrics(workspace, "once") == lines
    refused = job("train", *base, "run.resume=never")
    assert refused.returncode == 1 and "holds a run already" in refused.stderr
    other = job("train", *base, "model.dropout=0.5")
    assert other.returncode == 1
    assert "model.dropout was 0.0, is 0.5" in other.stderr or "model.dropout was" in other.stderr


def test_a_resume_with_other_epochs_follows_the_learning_rate_of_the_new_length(workspace, job):
    """Linear decay, three passes after one: every step has the rate that its own start asked for."""
    more = ["optim.decay=linear", "optim.warmup_steps=0", "train.patience=0"]
    for epochs in (1, 3):
        done = job("train", *options(workspace, "longer", f"train.epochs={epochs}", *more))
        assert done.returncode == 0, done.stderr[-2000:]
    assert "now falls to 0 (linear) over 3 epochs instead of 1" in done.stdout
    lines = [line for line in metrics(workspace, "longer") if "train/loss" in line]
    total = len(lines)
    assert [line["step"] for line in lines] == list(range(1, total + 1)) and total % 3 == 0
    expected = [1 - step / (total // 3) for step in range(total // 3)]
    expected += [1 - step / total for step in range(total // 3, total)]
    factors = [line["train/learning_rate_factor"] for line in lines]
    np.testing.assert_allclose(factors, expected, rtol=1e-9)
    stored = yaml.safe_load((workspace / "runs" / "longer" / "config.yaml").read_text())
    assert stored["extended"] == ["train.epochs was 1, is 3"]


BAD_SETTINGS = {
    "unknown key": (["+model.colour=red"], "model.colour: unknown key"),
    "width": (["model.embedding_dim=10"], "model.embedding_dim=10 for table"),
    "fused adam": (
        ["optim.table.name=adam", "tables.user_id.sharding=row_wise"],
        "fused Adam runs on GPU only",
    ),
    "unknown table": (["tables.shop.sharding=row_wise"], "tables.shop: no such table"),
    "moved key": (
        ["plan.sharding.user_id=row_wise"],
        "plan.sharding: was removed; tables.<table>.sharding does its job",
    ),
    "feature": (["model.features=[user_id,shoe]"], "name shoe; the data set"),
    "umcm": (["model.umcm=magic"], "model.umcm='magic': expected one of attention"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_setting_is_one_sentence_and_a_failure(workspace, job, case):
    changes, sentence = BAD_SETTINGS[case]
    done = job("train", *options(workspace, "bad", "run.overwrite=true"), *changes)
    assert done.returncode == 1, done.stdout
    assert sentence in done.stderr and "Traceback" not in done.stderr


def test_planning_error_on_rank_zero_reaches_every_rank_at_once(workspace, job):
    started = time.monotonic()
    changes = ["tables.user_id.ranks=[7]"]
    done = job("train", *options(workspace, "bad2", "run.overwrite=true"), *changes, ranks=2)
    assert done.returncode != 0 and time.monotonic() - started < 60
    assert "tables.user_id.ranks=[7]: expected different ranks from 0 to 1" in done.stderr


def test_features_of_other_items_are_refused(workspace, job):
    write_features(workspace, items_checksum="0" * 64)
    done = job("train", *options(workspace, "other"))
    write_features(workspace)
    assert done.returncode == 1 and "made for other items" in done.stderr


def test_exploding_loss_stops_every_rank_and_names_the_step(workspace, job):
    more = ["optim.dense_learning_rate=1e30", "optim.warmup_steps=0", "train.epochs=3"]
    done = job("train", *options(workspace, "nan", *more), ranks=2)
    assert done.returncode != 0
    assert "the loss is" in done.stderr and "at step" in done.stderr
    assert "the gradient of dense." in done.stderr and "is not finite; training" in done.stderr
    # Whoever started it can tell it from a training that failed otherwise; a new attempt forgets it.
    diverged = workspace / "runs" / "nan" / "diverged.json"
    assert "the loss is" in json.loads(diverged.read_text())["reason"]


@pytest.mark.slow
def test_deterministic_runs_leave_equal_checkpoints(workspace, job):
    """The loop, the loader's thread and the exchange between two ranks included."""
    contents = []
    for name in ("fixed1", "fixed2"):
        more = ["run.deterministic=true", "model.dropout=0.2", "train.epochs=2"]
        more += ["optim.max_grad_norm=0.05", "tables.user_id.sharding=row_wise"]
        done = job("train", *options(workspace, name, *more), ranks=2)
        assert done.returncode == 0, done.stderr[-2000:]
        newest = max((workspace / "runs" / name / "checkpoints").glob("step-*"))
        files = sorted(newest.glob("*.safetensors"))
        contents.append([losses(workspace, name), [(f.name, f.read_bytes()) for f in files]])
    assert len(contents[0][1]) == 3 and contents[0] == contents[1]


def test_missing_prepared_data_says_what_to_run(tmp_path, job):
    done = job("train", "data=demo", f"workspace={tmp_path}", "run.name=x")
    assert done.returncode == 1 and "launch/prepare.py" in done.stderr


def test_settings_that_do_not_fit_the_data_leave_no_run_behind(workspace, job):
    """Else the run of this name would be one of other settings, and refused again when mended."""
    broken = ["optim.table.l2=0.1", "tables.user_id.sharding=row_wise"]
    done = job("train", *options(workspace, "mended", *broken))
    assert done.returncode == 1 and "set tables.user_id.optimizer.l2=0" in done.stderr
    assert not (workspace / "runs" / "mended").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_bytes", "setting", "place"),
    [
        (40_000, "train.log_every_steps=100000", "checkpoints"),
        (20_000, "train.log_every_steps=1", "metrics.jsonl"),
    ],
)
def test_a_full_disk_is_one_sentence_with_the_path(workspace, command, num_bytes, setting, place):
    name = f"full-{place}"
    done = command("train", *options(workspace, f"whole-{place}", "train.epochs=1"))
    assert done.returncode == 0, done.stderr[-2000:]
    whole = workspace / "runs" / f"whole-{place}"
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    more = ["train.epochs=1", "train.global_batch_size=8", "model.embedding_dim=64", setting]
    with limited(num_bytes):  # a child has the limits of its parent
        done = command("train", *options(workspace, name, *more))
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith(f"error: {workspace / 'runs' / name / place}: "), sentence
    assert "cannot be written" in sentence and " free" in sentence
    left = [path.name for path in (workspace / "runs" / name).rglob("*step-*")]
    assert left == []
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
