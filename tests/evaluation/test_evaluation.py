"""What an evaluation says: metrics, candidates, comparison of runs; and the page it writes."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from launch.evaluate import KEYS
from launch.evaluate import job as evaluate
from recsys.evaluation.candidates import Candidates, RankingConfig
from recsys.evaluation.evaluate import (
    HEADLINE,
    BootstrapConfig,
    EvaluateConfig,
    check_evaluation,
    evaluate_candidates,
    evaluate_importance,
    evaluate_rows,
    planted_shares,
)
from recsys.evaluation.predict import Predictions, by_score
from recsys.evaluation.segments import ItemCounts, Segment
from recsys.job import typed_arguments
from recsys.metrics.summary import evaluate_predictions
from recsys.report.evaluation_page import DataCounts, Recommendation, SampleUser, write_report
from recsys.report.evaluation_tables import print_metrics
from recsys.report.items import Item
from recsys.run.config import read_run_config
from recsys.run.folder import open_run_folder
from recsys.schema import Manifest, SplitSpec, read_manifest, write_manifest
from tests.feature_tables import write_table

CONFIG = EvaluateConfig(
    bootstrap=BootstrapConfig(num_replicates=20), ranking=RankingConfig(ks=[1, 3], num_negatives=2)
)
HOSTILE = "<script>alert('x')</script> $a_1$ & \"quotes\""
NAMES = ["ids", "semantic", "style", "text"]


def rows(rng, count=600, weights=4):
    label = (rng.random(count) < 0.3).astype(np.float64)
    return Predictions(
        row_id=rng.permutation(count),
        user_row=rng.integers(1, 30, count),
        item_row=rng.integers(1, 20, count),
        label=label,
        score=np.clip(0.2 + 0.3 * label + 0.4 * rng.random(count), 0, 1),
        weights=rng.dirichlet(np.ones(max(weights, 1)), count)[:, :weights].astype(np.float32),
    )


def evaluated(
    predictions, segments=(), names=NAMES, item_counts=None, has_users=True, unknown_users=None
):
    predictions = by_score(predictions)
    return evaluate_rows(
        predictions,
        segments=segments,
        item_counts=item_counts,
        user_rows_N=predictions.user_row if has_users else None,
        unknown_users_N=unknown_users,
        modality_names=names if predictions.weights.shape[1] else [],
        config=CONFIG,
    )


def test_headline_metrics_are_those_of_all_rows_and_lie_in_their_intervals(rng):
    predictions = rows(rng)
    counts = ItemCounts(train_count_I=np.arange(20) % 3, drawn_count_I=np.zeros(20, np.int64))
    metrics = evaluated(predictions, item_counts=counts)
    expected = evaluate_predictions(
        labels_N=predictions.label,
        probabilities_N=predictions.score,
        user_rows_N=predictions.user_row,
    )
    assert metrics["all"] == pytest.approx(expected)
    assert set(metrics["intervals"]) == set(HEADLINE)
    for name in HEADLINE:
        low, high = metrics["intervals"][name]
        assert low < metrics["all"][name] < high, name
    unseen = metrics["items_unseen_in_training"]["num_rows"]
    assert unseen == np.count_nonzero(predictions.item_row % 3 == 0)
    assert metrics["weights"]["style"]["mean"] == pytest.approx(0.25, abs=0.02)


def test_small_and_empty_segments_say_so_and_have_no_metrics(rng):
    predictions = by_score(rows(rng))
    masks = {
        "large": np.ones(600, bool),
        "few": np.arange(600) < 40,
        "one class": predictions.label == 0,
        "empty": np.zeros(600, bool),
    }
    found = evaluated(predictions, [Segment("kind", name, mask) for name, mask in masks.items()])
    members = found["segments"]["kind"]
    assert members["large"]["auc"] == pytest.approx(found["all"]["auc"])
    low, high = members["large"]["auc_interval"]
    assert low < found["all"]["auc"] < high
    assert set(members["large"]["weights"]) == set(NAMES)
    assert "expected 100 rows and 10 of each class" in members["few"]["note"]
    assert members["one class"]["note"].startswith(f"too small: {(predictions.label == 0).sum()}")
    assert members["empty"] == {
        "num_rows": 0,
        "num_positives": 0,
        "note": "too small: 0 rows, 0 positives; expected 100 rows and 10 of each class",
    }
    assert all("auc" not in members[name] for name in ("few", "one class", "empty"))


def test_a_split_of_one_class_has_no_auc_and_still_its_losses(rng, capsys):
    predictions = rows(rng, 200)
    predictions.label[:] = 0
    metrics = evaluated(predictions)
    assert math.isnan(metrics["all"]["auc"]) and metrics["all"]["log_loss"] > 0
    assert np.isnan(metrics["intervals"]["auc"]).all()
    print_metrics(metrics, "one class")
    assert "200" in capsys.readouterr().out


def test_equal_scores_rank_like_chance(rng):
    predictions = rows(rng)
    predictions.score[:] = 0.3
    metrics = evaluated(predictions)
    assert metrics["all"]["auc"] == 0.5 and metrics["intervals"]["auc"] == [0.5, 0.5]
    assert metrics["all"]["gauc"] == 0.5


def test_nan_scores_are_refused_with_their_count(rng):
    predictions = rows(rng)
    predictions.score[:3] = np.nan
    with pytest.raises(ValueError, match="3 of 600 scores are NaN"):
        by_score(predictions)


def test_a_user_with_one_row_counts_in_auc_and_not_in_gauc(rng):
    predictions = rows(rng)
    predictions.user_row[:] = np.arange(600) + 1
    metrics = evaluated(predictions)
    assert math.isnan(metrics["all"]["gauc"]) and np.isnan(metrics["intervals"]["gauc"]).all()
    low, high = metrics["intervals"]["auc"]
    assert low < metrics["all"]["auc"] < high


def test_without_users_rows_are_resampled(rng):
    predictions = rows(rng, weights=0)
    predictions.user_row[:] = 0
    metrics = evaluated(predictions, has_users=False)
    assert "unknown_users" not in metrics
    low, high = metrics["intervals"]["auc"]
    assert low < metrics["all"]["auc"] < high
    assert math.isnan(metrics["all"]["gauc"]) and "weights" not in metrics


@pytest.fixture
def ranked(tmp_path):
    """Users 1 and 2, items 1 to 5; what is scored is known by hand."""
    candidates = Candidates(
        user_row_N=np.array([1, 1, 1, 1, 2, 2, 2]),
        item_row_N=np.array([1, 2, 3, 4, 1, 3, 5]),
        relevant_N=np.array([False, True, False, False, True, False, False]),
        template_N=np.zeros(7, np.int64),
        is_full=True,
    )
    scored = Predictions(
        row_id=np.array([6, 5, 4, 3, 2, 1, 0]),
        user_row=np.zeros(7, np.int64),
        item_row=np.zeros(7, np.int64),
        label=np.zeros(7),
        score=np.array([0.3, 0.2, 0.9, 0.1, 0.7, 0.5, 0.2]),
        weights=np.zeros((7, 0), np.float32),
    )
    vectors = np.zeros((6, 2), np.float32)
    vectors[1:] = [[1, 0], [0, 1], [1, 0], [0, 1], [1, 1]]
    return candidates, scored, {"style": write_table(tmp_path / "style", vectors)}


def test_rankings_and_lists_of_two_users_by_hand(ranked):
    candidates, scored, tables = ranked
    # user 1: items 3 (0.7), 2 (0.5, liked), 1, 4; user 2: items 1 (0.9, liked), 5, 3.
    found, best = evaluate_candidates(
        candidates,
        scored,
        train_count=np.array([0, 9, 1, 3, 0, 0]),
        profile_count_U={1: 5.0},
        tables=tables,
        config=EvaluateConfig(ranking=RankingConfig(ks=[3, 1], num_negatives=1)),
    )
    assert {user: pairs.tolist() for user, pairs in best.items()} == {1: [2, 1, 0], 2: [4, 6, 5]}
    full, sampled = found["ranking"]["full"], found["ranking"]["sampled"]
    assert full["recall@1"] == 0.5 and full["recall@3"] == 1 and full["mrr"] == 0.75
    assert sampled["recall@3"] == 1 and sampled["recall@1"] in (0.5, 1)
    lists = found["recommendations"]
    assert (lists["k"], lists["coverage"]) == (1, 2 / 5)
    assert lists["popularity_lift"] == pytest.approx(3 / 5 - 1)
    assert math.isnan(lists["diversity_style"]), "lists of one"


def test_drawn_candidates_give_no_lists(ranked):
    candidates, scored, tables = ranked
    drawn = Candidates(**{**candidates.__dict__, "is_full": False})
    found, best = evaluate_candidates(
        drawn, scored, train_count=np.ones(6), profile_count_U={}, tables=tables, config=CONFIG
    )
    assert set(found) == {"ranking"} and "full" not in found["ranking"] and len(best) == 2


def test_diversity_reads_the_vectors_of_the_recommended_items(ranked):
    candidates, scored, tables = ranked
    config = EvaluateConfig(ranking=RankingConfig(ks=[3]))
    found, _ = evaluate_candidates(
        candidates, scored, train_count=np.ones(6), profile_count_U={}, tables=tables, config=config
    )
    # user 1: items 3, 2, 1 at 0, 90, 0 degrees; user 2: items 1, 5, 3 at 0, 45, 0.
    first = (1 + 0 + 1) / 3
    second = 2 * (1 - math.sqrt(0.5)) / 3
    expected = (first + second) / 2
    assert found["recommendations"]["diversity_style"] == pytest.approx(expected, abs=1e-3)


def test_an_input_that_matters_loses_auc_and_stands_first(rng):
    whole = rows(rng)
    useless = Predictions(**{**whole.__dict__, "score": whole.score[::-1].copy()})
    same = Predictions(**whole.__dict__)
    lines = evaluate_importance(
        whole,
        {("feature", "same"): same, ("item vector", "style"): useless},
        user_rows_N=whole.user_row,
        unknown_users_N=None,
        config=CONFIG,
    )
    assert [line["name"] for line in lines] == ["style", "same"]
    assert lines[0]["auc_lost"] > 0.2 and lines[0]["interval"][0] > 0
    assert lines[0]["log_loss_added"] > 0
    assert (lines[1]["auc_lost"], lines[1]["interval"]) == (0, [0, 0])


def test_learned_weights_that_follow_the_sensitivities_correlate(rng, tmp_path):
    sensitivities = rng.dirichlet(np.ones(3), 30)
    users = [f"u{user}" for user in range(30)]
    truth = tmp_path / "users.parquet"
    columns = {f"sensitivity_{n}": 2.5 * sensitivities[:, k] for k, n in enumerate(NAMES[1:])}
    pq.write_table(pa.table({"user_id": users, **columns}), truth)
    predictions = rows(rng)
    ids = np.array([None, *users[1:]], dtype=object)  # user row r is user number r
    weights = np.hstack([np.full((600, 1), 0.4), 0.6 * sensitivities[predictions.user_row]])
    predictions.weights = weights.astype(np.float32)
    shares = planted_shares(predictions, NAMES, truth, ids)
    assert list(shares) == NAMES[1:]
    for planted, learned, r in shares.values():
        np.testing.assert_allclose(planted, learned, atol=1e-6)
        assert r == pytest.approx(1)
    assert planted_shares(predictions, NAMES, tmp_path / "none.parquet", ids) == {}
    with pytest.raises(ValueError, match="no sensitivities of 1 of 29 users"):
        planted_shares(predictions, NAMES, truth, np.where(ids == "u3", "other", ids))


# ---------------------------------------------------------------- comparing two runs


@pytest.fixture
def workspace(tmp_path):
    """Two evaluated runs, one that was only trained, and the manifest they belong to."""
    rng = np.random.default_rng(3)
    split = SplitSpec(num_rows=2000, num_positives=600, files=(), file_rows=())
    (tmp_path / "prepared").mkdir()
    splits = dict.fromkeys(("train", "valid", "test"), split)
    write_manifest(
        tmp_path / "prepared",
        Manifest(
            name="two", tables=(), features=(), splits=splits, num_user_rows=51, num_item_rows=0
        ),
    )
    for name in ("weak", "strong", "other"):
        config = read_run_config({"run": {"name": name}, "model": {"modalities": []}})
        open_run_folder(tmp_path, config, read_manifest(tmp_path))
    label = (rng.random(2000) < 0.3).astype(np.uint8)
    users = [f"u{user}" for user in rng.integers(0, 50, 2000)]
    for name, signal in (("weak", 0.05), ("strong", 0.3)):
        folder = tmp_path / "runs" / name / "eval" / "test"
        folder.mkdir(parents=True)
        score = np.clip(0.2 + signal * label + 0.4 * rng.random(2000), 0, 1)
        table = pa.table({
            "row_id": np.arange(2000),
            "user_id": users,
            "label": label,
            "score": score,
        })
        pq.write_table(table, folder / "predictions.parquet")
    return tmp_path


def run(workspace, repository, *arguments):
    """The job with its configuration as the command line makes it."""
    with initialize_config_dir(version_base=None, config_dir=str(repository / "configs")):
        given = typed_arguments([f"workspace={workspace}", *arguments], KEYS)
        evaluate(compose("evaluate", overrides=given))


def test_comparing_two_runs_gives_difference_interval_and_verdict(workspace, repository, capsys):
    run(workspace, repository, "compare=[weak,strong]", "bootstrap.num_replicates=50")
    shown = capsys.readouterr().out
    assert "strong against weak, same users" in shown
    path = workspace / "runs" / "strong" / "eval" / "test" / "against-weak.json"
    found = json.loads(path.read_text())
    line = found["metrics"]["auc"]
    assert (found["first"], found["second"], line["verdict"]) == ("weak", "strong", "second")
    assert line["difference"] == pytest.approx(line["second"] - line["first"])
    assert 0 < line["low"] < line["difference"] < line["high"]


def test_predictions_of_different_data_are_not_compared(workspace, repository):
    path = workspace / "runs" / "strong" / "eval" / "test" / "predictions.parquet"
    table = pq.read_table(path)
    other = table.set_column(2, "label", pa.array(1 - table.column("label").to_numpy()))
    for changed, name in ((other, "label"), (table.slice(1), "row_id")):
        pq.write_table(changed, path)
        with pytest.raises(ValueError, match=f"differ in {name}: these are predictions of diff"):
            run(workspace, repository, "compare=[weak,strong]")


def test_a_run_without_predictions_says_what_to_run(workspace, repository):
    with pytest.raises(ValueError, match="evaluate.py with run.name=other split=valid first"):
        run(workspace, repository, "compare=[other,weak]", "split=valid")


def test_settings_that_cannot_be_met_are_named_all_at_once():
    config = EvaluateConfig(
        split="tset",
        compare=["one"],
        bootstrap=BootstrapConfig(num_replicates=1, level=95),
        ranking=RankingConfig(ks=[]),
        sample_users=-1,
    )
    with pytest.raises(ValueError) as caught:
        check_evaluation(config, ["train", "valid", "test"])
    for part in (
        "split='tset': expected one of train, valid, test",
        "compare=['one']: expected the names of two runs",
        "bootstrap.num_replicates=1",
        "bootstrap.level=95",
        "ranking.ks=[]",
        "sample_users=-1",
    ):
        assert part in str(caught.value)


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """Collects what a browser would load and what a reader sees."""

    def __init__(self):
        super().__init__()
        self.loads, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def written(tmp_path, rng, **changes):
    predictions = by_score(rows(rng))
    masks = {HOSTILE: predictions.item_row < 10, "rest": predictions.item_row >= 10}
    metrics = evaluated(predictions, [Segment("artist", name, m) for name, m in masks.items()])
    metrics["importance"] = [
        {"kind": "feature", "name": "item_id", "auc_lost": 0.1, "interval": [0.0, 0.2]}
    ]
    item = Item(item_id="i1", title=HOSTILE, artist="Ada", picture=Image.new("RGB", (8, 8), "red"))
    share = rng.random(30)
    given = {
        "title": f"demo / {HOSTILE}",
        "metrics": metrics,
        "predictions": predictions,
        "modality_names": NAMES,
        "level": 0.95,
        "counts": DataCounts(facts={"items": "19"}, by_item=np.arange(20), by_user=np.ones(5)),
        "users": [
            SampleUser(
                user_id="u1",
                num_liked=3,
                liked=[item],
                recommended=[
                    Recommendation(
                        item=item,
                        score=0.75,
                        weights=dict(zip(NAMES, [0.1, 0.2, 0.3, 0.4], strict=True)),
                        is_positive=True,
                    )
                ],
                planted={"semantic": 0.25, "style": 0.75},
            )
        ],
        "oracle_scores": predictions.score,
        "planted": {"style": (share, share, 1.0)},
        **changes,
    }
    write_report(tmp_path / "report.html", **given)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    return text, parsed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), np.random.default_rng(1))


def test_the_page_loads_nothing_and_runs_nothing(whole):
    text, parsed = whole
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert all(load.startswith(("data:image/jpeg", "#")) for load in parsed.loads)
    assert not re.search(r"url\(['\"]?(?!#)", text)
    assert "default-src 'none'" in text


def test_the_page_takes_its_colours_and_letters_from_its_style_sheet(whole):
    text, parsed = whole
    assert "prefers-color-scheme:dark" in text
    assert parsed.tags.count("svg") >= 8
    # The stand-ins of ink, soft ink and lines are replaced, and nothing is drawn in plain black.
    assert text.count("var(--ink)") > 8 and "var(--line)" in text
    assert not re.search(r"#0[147]0[258]0[369]\b", text)
    assert "#000000" not in text and "DejaVu" not in text


def test_the_page_says_what_it_was_given(whole):
    _, parsed = whole
    shown = " ".join(" ".join(parsed.text).split())
    for part in (
        "AUC",
        "95% interval",
        "Calibration",
        "Modality weights",
        "style: r = +1.00",
        "user u1",
        "3 liked before; drawn to care for content 25%, style 75%",
        "liked it",
        "0.75",
        "Interactions by item",
    ):
        assert part in shown, part
    assert HOSTILE in shown, "as text"


def test_a_page_without_users_weights_or_truth_is_whole(tmp_path, rng):
    predictions = by_score(rows(rng, weights=0))
    _, parsed = written(
        tmp_path,
        rng,
        metrics=evaluated(predictions),
        predictions=predictions,
        modality_names=[],
        counts=DataCounts(facts={}, by_item=None, by_user=None),
        users=[],
        oracle_scores=None,
        planted=None,
    )
    shown = " ".join(parsed.text)
    assert "ROC curve" in shown
    assert "Modality weights" not in shown and "What it recommends" not in shown


def test_a_page_of_one_class_has_no_curve_and_no_error(tmp_path, rng):
    predictions = rows(rng)
    predictions.label[:] = 1
    predictions = by_score(predictions)
    _, parsed = written(
        tmp_path, rng, predictions=predictions, metrics=evaluated(predictions), oracle_scores=None
    )
    assert "ROC curve" in " ".join(parsed.text)
