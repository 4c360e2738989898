"""Numbers as inputs, from a log of the shape of Criteo's to scores of requests."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.errors import UserError
from recsys.evaluation.result import read_result
from recsys.serving.recommender import Recommender

RECIPE = """
name: clicks
source: {source}
interactions:
  file: log.csv
  user_id: user
  item_id: item
  label: label
  features:
    clicks: {{kind: dense, scale: log}}
    noise: {{kind: dense}}
    c1: {{hash_rows: 20}}
items:
  file: items.csv
  item_id: item
  features:
    price: {{kind: dense, scale: none}}
split: {{strategy: random, fractions: [0.6, 0.1, 0.3]}}
history: {{max_length: 0, recent_length: 0}}
"""
SMALL = ["model=dcn_v2", "model.modalities=[]", "train.global_batch_size=64", "train.epochs=4"]
SMALL += ["model.deep_dims=[8]", "model.cross_layers=1", "optim.dense_learning_rate=1e-2"]


def write_log(folder, num_rows=1600):
    """Counts with a heavy tail, a fifth of them missing, decide the label; nothing else does."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    counts = np.floor(np.exp(rng.normal(3, 2, num_rows)))
    is_missing = rng.random(num_rows) < 0.2
    logit = np.where(is_missing, -1.5, 1.5 * (np.log1p(counts) - 3))
    label = (rng.random(num_rows) < 1 / (1 + np.exp(-logit))).astype(int)
    log = ["user,item,label,clicks,noise,c1"]
    for row in range(num_rows):
        clicks = "" if is_missing[row] else int(counts[row])
        ids = f"u{rng.integers(30)},i{rng.integers(20)}"
        log.append(f"{ids},{label[row]},{clicks},{rng.normal():.3f},c{rng.integers(50)}")
    (folder / "log.csv").write_text("\n".join(log) + "\n")
    items = ["item,price", *(f"i{item},{item / 10}" for item in range(20))]
    (folder / "items.csv").write_text("\n".join(items) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory, job):
    """Prepared data of the log, and the arguments that name it."""
    folder = tmp_path_factory.mktemp("clicks")
    write_log(folder / "raw")
    (folder / "recipes" / "data").mkdir(parents=True)
    recipe = RECIPE.format(source=folder / "raw")
    (folder / "recipes" / "data" / "clicks.yaml").write_text(recipe)
    place = [f"--config-dir={folder / 'recipes'}", "data=clicks", f"workspace={folder / 'w'}"]
    done = job("prepare", *place)
    assert done.returncode == 0, done.stderr
    assert "dense clicks: log, mean" in done.stdout
    return place, folder / "w"


def evaluated(job, place, name, *more):
    arguments, workspace = place
    for script, settings in (("train", [*SMALL, *more]), ("evaluate", ["split=test"])):
        done = job(script, *arguments, f"run.name={name}", *settings)
        assert done.returncode == 0, done.stderr
    return read_result(workspace / "runs" / name / "eval" / "test" / "metrics.json", "again")


@pytest.mark.slow
def test_counts_are_learned_from_their_logarithm_and_bundles_score_requests_alike(place, job):
    result = evaluated(job, place, "numbers")
    assert result.all.flat()["auc"] > 0.8
    importance = {line.name: line.auc_lost for line in result.importance}
    assert max(importance, key=importance.get) == "clicks"
    assert {"noise", "price"} <= set(importance)
    without = evaluated(job, place, "without", "model.exclude_features=[clicks]")
    assert without.all.flat()["auc"] < 0.6
    arguments, workspace = place
    done = job("export", *arguments, "run.name=numbers", "precision=fp32")
    assert done.returncode == 0, done.stderr
    recommender = Recommender.open(workspace / "bundles" / "current")
    rows = pq.read_table(workspace / "runs" / "numbers" / "eval" / "test" / "predictions.parquet")
    log = (workspace.parent / "raw" / "log.csv").read_text().splitlines()[1:]
    for row in rows.slice(0, 12).to_pylist():
        user, item, _, clicks, noise, c1 = log[row["row_id"]].split(",")
        features = {"clicks": clicks or None, "noise": float(noise), "c1": c1}
        answer = recommender.score(user=user, items=[item], features=features)
        assert answer.items[0].score == pytest.approx(row["score"], abs=1e-5)
    with pytest.raises(UserError, match="clicks: values of type list.*expected one number"):
        recommender.score(user="u1", items=["i1"], features={"clicks": [1, 2]})
    manifest = json.loads((workspace / "prepared" / "manifest.json").read_text())
    assert [f["name"] for f in manifest["dense"]] == ["price", "clicks", "noise"]


def test_a_plan_of_a_recipe_alone_has_the_weights_of_its_numbers(place, job):
    arguments, _ = place
    rows = "rows={user_id: 31, item_id: 21}"
    done = job("plan", *arguments[:2], "model=dcn_v2", "model.modalities=[]", rows)
    assert done.returncode == 0, done.stderr
