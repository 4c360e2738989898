"""Progressive validation: its result from scores by hand, and the real job on a small drawn world."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.errors import UserError
from recsys.evaluation.result import EvaluationResult, write_result
from recsys.metrics.auc import auc
from recsys.metrics.entropy import normalised_entropy
from recsys.metrics.summary import evaluate_predictions
from recsys.overrides import override
from recsys.report.progressive import write_progressive
from recsys.run.config import RunConfig
from recsys.schema import read_manifest
from recsys.study.progressive import Cost, ProgressiveConfig, ScoredWindow, _Walk, walk
from recsys.study.progressive_result import progressive_result
from recsys.study.runs import StudyRun
from tests.data.small_log import prepared, recipe, write_source
from tests.forked_jobs import run_forked
from tests.grown_data import grow
from tests.run.test_lineage import grown
from tests.small_runs import SMALL, make_workspace, write_features

WINDOWS = ["window_0001", "window_0002"]


def scored_by_hand(folder, rng):
    """Scores of two windows by three arms and two seeds: refreshed best, anew on the last alone."""
    found, kept = [], {}
    for number, window in enumerate(WINDOWS):
        users = rng.integers(1, 30, size=300)
        labels = rng.integers(2, size=300)
        for arm, noise in (("refreshed", 0.5), ("never", 3.0), ("anew", 0.5)):
            if arm == "anew" and not number:
                continue
            for seed in range(2):
                run = StudyRun(
                    workspace=folder, name=f"{arm}{seed}-{number}", overrides=(), config=RunConfig()
                )
                target = run.folder / "eval" / window
                target.mkdir(parents=True)
                logits = labels - 0.5 + noise * rng.normal(size=300)
                scores = 1 / (1 + np.exp(-logits))
                columns = {
                    "row_id": 1000 * number + np.arange(300),
                    "user_id": [f"u{user}" for user in users],
                    "unknown_user": np.zeros(300, dtype=np.uint64),
                    "label": labels.astype(np.uint8),
                    "score": scores,
                }
                pq.write_table(pa.table(columns), target / "predictions.parquet")
                row_metrics = evaluate_predictions(
                    labels_N=labels, probabilities_N=scores, user_rows_N=users
                )
                result = EvaluationResult(all=row_metrics, intervals={"auc": (0.1 * seed, 0.9)})
                write_result(target / "metrics.json", result)
                kept[arm, seed, window] = labels, scores
                cost = Cost(seconds=2, cpu_seconds=3 + 27 * (arm == "anew"), num_rows=300)
                cost = None if arm == "never" else cost
                found.append(ScoredWindow(arm=arm, seed=seed, window=window, run=run, cost=cost))
    return found, kept


def test_a_result_has_windows_totals_differences_and_costs(tmp_path, rng):
    scored, kept = scored_by_hand(tmp_path, rng)
    result = progressive_result(scored)
    assert (result.num_seeds, result.windows) == (2, WINDOWS)
    lines = {(line.arm, line.window): line for line in result.lines}
    assert ("anew", "window_0001") not in lines and len(lines) == 5
    for (arm, window), line in lines.items():
        aucs = [auc(*kept[arm, seed, window]) for seed in range(2)]
        np.testing.assert_allclose(line.values["auc"], np.mean(aucs))
        np.testing.assert_allclose(line.bounds["auc"], (0.05, 0.9))
    totals = {total.arm: total for total in result.totals}
    both = [
        [
            np.concatenate(parts)
            for parts in zip(*(kept["never", s, w] for w in WINDOWS), strict=True)
        ]
        for s in range(2)
    ]
    np.testing.assert_allclose(totals["never"].values["auc"], np.mean([auc(*b) for b in both]))
    entropies = [normalised_entropy(*b) for b in both]
    np.testing.assert_allclose(totals["never"].values["normalised_entropy"], np.mean(entropies))
    assert totals["refreshed"].cpu_seconds == 6 and np.isnan(totals["never"].cpu_seconds)
    against = {difference.reference: difference for difference in result.differences}
    assert against["never"].auc.low > 0 and against["never"].auc.verdict == "better"
    assert against["never"].num_windows == 2 and against["never"].normalised_entropy < 0
    assert against["anew"].num_windows == 1 and against["anew"].auc.verdict == "within noise"
    assert against["anew"].cpu_ratio == 0.1 and against["anew"].rows_ratio == 1
    write_progressive(tmp_path / "out", "By hand", result)
    page = (tmp_path / "out" / "progressive.html").read_text(encoding="utf-8")
    assert "refreshed against never, 2 windows: AUC +0." in page and "10.0% of its CPU time" in page
    assert len((tmp_path / "out" / "progressive.csv").read_text().splitlines()) == 6
    stored = json.loads((tmp_path / "out" / "progressive.json").read_text())
    assert stored["windows"] == WINDOWS and len(stored["lines"]) == 5


@pytest.mark.parametrize(
    ("refresh_on", "expected"),
    [("new", ["window_0001"]), ("all", ["train", "valid", "test", "window_0001"])],
)
def test_runs_that_go_on_are_trained_on_new_rows_or_on_all_so_far(
    tmp_path, monkeypatch, refresh_on, expected
):
    _, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    grown(workspace, *WINDOWS)
    config = ProgressiveConfig(refresh=["train.epochs=1"], refresh_on=refresh_on)
    asked = []
    monkeypatch.setattr(_Walk, "_trained", lambda self, name, *own: asked.append((name, own)))
    parent = StudyRun(workspace=workspace, name="before", overrides=(), config=RunConfig())
    _Walk(None, workspace, config, 0)._going_on("window_0001", parent, ["window_0001"])
    ((name, own),) = asked
    assert name == "window_0001"
    assert own == ("train.epochs=1", "init=before", override("train.splits", expected))


def test_data_without_a_window_is_refused_with_what_makes_one(tmp_path):
    _, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    with pytest.raises(UserError, match="no window to score; append new days .*append=true"):
        walk(None, workspace, ProgressiveConfig())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_windows_are_walked_once_and_new_ones_are_added(tmp_path, job):
    workspace = make_workspace(tmp_path / "w", job)
    shutil.rmtree(workspace / "truth")
    grow(workspace, windows=2)
    write_features(workspace)
    settings = ",".join(f'"{text}"' for text in [*SMALL, "train.epochs=2"])
    arguments = ["data=demo", f"workspace={workspace}", "name=p", f"overrides=[{settings}]"]
    arguments += ["anew=true", "anew_every=2"]
    done = run_forked("progressive", *arguments, timeout_seconds=400)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = {path.name for path in (workspace / "runs").iterdir()}
    names = ["base", "start", *WINDOWS, "anew-window_0001"]
    assert runs == {f"p-seed0-{name}" for name in names}
    found = json.loads((workspace / "progressive" / "p" / "progressive.json").read_text())
    lines = {(line["arm"], line["window"]): line for line in found["lines"]}
    assert set(lines) == {
        *(("refreshed", window) for window in WINDOWS),
        *(("never", window) for window in WINDOWS),
        ("anew", "window_0001"),
    }
    # Before anything was refreshed, both are the same model.
    first = [lines[arm, "window_0001"]["values"] for arm in ("refreshed", "never")]
    assert first[0] == first[1]
    assert lines["refreshed", "window_0002"]["cpu_seconds"] > 0
    num_rows = read_manifest(workspace).splits["window_0001"].num_rows
    assert lines["refreshed", "window_0002"]["num_trained_rows"] == num_rows
    kept = {path: path.stat().st_mtime_ns for path in (workspace / "runs").rglob("step-*/*.json")}

    # One more window: what is finished is not made again.
    manifest = read_manifest(workspace)
    grown = grow(workspace, windows=1, first=3)
    assert grown.chain[-1].identity == manifest.identity
    write_features(workspace)
    done = run_forked("progressive", *arguments, timeout_seconds=400)
    assert done.returncode == 0, done.stderr[-2000:]
    now = {path: path.stat().st_mtime_ns for path in (workspace / "runs").rglob("step-*/*.json")}
    assert {path: now[path] for path in kept} == kept and len(now) > len(kept)
    found = json.loads((workspace / "progressive" / "p" / "progressive.json").read_text())
    assert found["windows"] == [*WINDOWS, "window_0003"]
