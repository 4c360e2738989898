"""Evaluation of a split: metrics of rows and segments, candidates, importance, planted weights."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import from_config
from recsys.evaluation.candidates import Candidates, RankingConfig
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.importance import evaluate_importance
from recsys.evaluation.planted import planted_shares
from recsys.evaluation.predict import by_score
from recsys.evaluation.ranking import evaluate_candidates
from recsys.evaluation.result import SegmentResult
from recsys.evaluation.segments import ItemCounts, Segment
from recsys.metrics.bootstrap import unit_keys
from recsys.metrics.registry import METRICS
from recsys.metrics.summary import evaluate_predictions
from recsys.report.evaluation_tables import print_metrics
from tests.evaluation.drawn_predictions import CONFIG, NAMES, evaluated, rows
from tests.feature_tables import write_table


def test_headline_metrics_are_those_of_all_rows_and_lie_in_their_intervals(rng):
    predictions = rows(rng)
    counts = ItemCounts(train_count_I=np.arange(20) % 3, drawn_count_I=np.zeros(20, np.int64))
    metrics = evaluated(predictions, item_counts=counts)
    expected = evaluate_predictions(
        labels_N=predictions.label,
        probabilities_N=predictions.score,
        user_rows_N=predictions.user_row,
    )
    assert metrics.all.flat() == pytest.approx(expected.flat())
    assert list(metrics.intervals) == list(METRICS)
    for name in METRICS:
        low, high = metrics.intervals[name]
        assert low < metrics.all.value(name) < high, name
    unseen = metrics.by_item_kind["unseen_in_training"].num_rows
    assert unseen == np.count_nonzero(predictions.item_row % 3 == 0)
    assert metrics.weights["style"].mean == pytest.approx(0.25, abs=0.02)


def test_small_and_empty_segments_say_so_and_have_no_metrics(rng):
    predictions = by_score(rows(rng))
    masks = {
        "large": np.ones(600, bool),
        "few": np.arange(600) < 40,
        "one class": predictions.label == 0,
        "empty": np.zeros(600, bool),
    }
    found = evaluated(predictions, [Segment("kind", name, mask) for name, mask in masks.items()])
    members = found.segments["kind"]
    assert members["large"].metrics.value("auc") == pytest.approx(found.all.value("auc"))
    low, high = members["large"].auc_interval
    assert low < found.all.value("auc") < high
    assert set(members["large"].weights) == set(NAMES)
    assert "expected 100 rows and 10 of each class" in members["few"].note
    assert members["one class"].note.startswith(f"too small: {(predictions.label == 0).sum()}")
    assert members["empty"] == SegmentResult(
        num_rows=0,
        num_positives=0,
        metrics=None,
        note="too small: 0 rows, 0 positives; expected 100 rows and 10 of each class",
    )
    assert all(members[name].metrics is None for name in ("few", "one class", "empty"))


def test_a_split_of_one_class_has_no_auc_and_still_its_losses(rng, capsys):
    predictions = rows(rng, 200)
    predictions.label[:] = 0
    metrics = evaluated(predictions)
    assert math.isnan(metrics.all.value("auc")) and metrics.all.value("log_loss") > 0
    assert np.isnan(metrics.intervals["auc"]).all()
    print_metrics(metrics, "one class")
    assert "200" in capsys.readouterr().out


def test_equal_scores_rank_like_chance(rng):
    predictions = rows(rng)
    predictions.score[:] = 0.3
    metrics = evaluated(predictions)
    assert metrics.all.value("auc") == 0.5 and metrics.intervals["auc"] == (0.5, 0.5)
    assert metrics.all.value("gauc") == 0.5


def test_nan_scores_are_refused_with_their_count(rng):
    predictions = rows(rng)
    predictions.score[:3] = np.nan
    with pytest.raises(ValueError, match="3 of 600 scores are NaN"):
        by_score(predictions)


def test_a_user_with_one_row_counts_in_auc_and_not_in_gauc(rng):
    predictions = rows(rng)
    predictions.user_row[:] = np.arange(600) + 1
    metrics = evaluated(predictions)
    assert math.isnan(metrics.all.value("gauc")) and np.isnan(metrics.intervals["gauc"]).all()
    low, high = metrics.intervals["auc"]
    assert low < metrics.all.value("auc") < high


def test_without_users_rows_are_resampled(rng):
    predictions = rows(rng, weights=0)
    predictions.user_row[:] = 0
    metrics = evaluated(predictions, has_users=False)
    assert metrics.unknown_users is None
    low, high = metrics.intervals["auc"]
    assert low < metrics.all.value("auc") < high
    assert math.isnan(metrics.all.value("gauc")) and not metrics.weights


@pytest.fixture
def ranked(tmp_path):
    """Users 1 and 2, items 1 to 5; what is scored is known by hand."""
    candidates = Candidates(
        user_row_N=np.array([1, 1, 1, 1, 2, 2, 2]),
        item_row_N=np.array([1, 2, 3, 4, 1, 3, 5]),
        relevant_N=np.array([False, True, False, False, True, False, False]),
        template_N=np.zeros(7, np.int64),
        templates=pa.table({"user_row": [1, 2]}),
        is_full=True,
    )
    scores = np.array([0.2, 0.5, 0.7, 0.1, 0.9, 0.2, 0.3])
    vectors = np.zeros((6, 2), np.float32)
    vectors[1:] = [[1, 0], [0, 1], [1, 0], [0, 1], [1, 1]]
    return candidates, scores, {"style": write_table(tmp_path / "style", vectors)}


def test_rankings_and_lists_of_two_users_by_hand(ranked):
    candidates, scores, tables = ranked
    # user 1: items 3 (0.7), 2 (0.5, liked), 1, 4; user 2: items 1 (0.9, liked), 5, 3.
    found = evaluate_candidates(
        candidates,
        scores,
        train_count_I=np.array([0, 9, 1, 3, 0, 0]),
        profile_count_U={1: 5.0},
        tables=tables,
        config=EvaluateConfig(ranking=RankingConfig(ks=[3, 1], num_negatives=1)),
    )
    assert {user: pairs.tolist() for user, pairs in found.best.items()} == {
        1: [2, 1, 0],
        2: [4, 6, 5],
    }
    full, sampled = found.rankings.full.values, found.rankings.sampled.values
    assert full["recall@1"] == 0.5 and full["recall@3"] == 1 and full["mrr"] == 0.75
    assert sampled["recall@3"] == 1 and sampled["recall@1"] in (0.5, 1)
    lists = found.lists.values
    assert (found.lists.k, lists["coverage"]) == (1, 2 / 5)
    assert lists["popularity_lift"] == pytest.approx(3 / 5 - 1)
    assert math.isnan(lists["diversity_style"]), "lists of one"


def test_drawn_candidates_give_no_lists(ranked):
    candidates, scores, tables = ranked
    drawn = Candidates(**{**candidates.__dict__, "is_full": False})
    found = evaluate_candidates(
        drawn, scores, train_count_I=np.ones(6), profile_count_U={}, tables=tables, config=CONFIG
    )
    assert found.lists is None and found.rankings.full is None and len(found.best) == 2


def test_diversity_reads_the_vectors_of_the_recommended_items(ranked):
    candidates, scores, tables = ranked
    config = EvaluateConfig(ranking=RankingConfig(ks=[3]))
    found = evaluate_candidates(
        candidates,
        scores,
        train_count_I=np.ones(6),
        profile_count_U={},
        tables=tables,
        config=config,
    )
    # user 1: items 3, 2, 1 at 0, 90, 0 degrees; user 2: items 1, 5, 3 at 0, 45, 0.
    first = (1 + 0 + 1) / 3
    second = 2 * (1 - math.sqrt(0.5)) / 3
    expected = (first + second) / 2
    assert found.lists.values["diversity_style"] == pytest.approx(expected, abs=1e-3)


def test_an_input_that_matters_loses_auc_and_stands_first(rng):
    whole = rows(rng)
    lines = evaluate_importance(
        whole,
        {("feature", "same"): whole.score, ("item vector", "style"): whole.score[::-1]},
        unit_keys(whole.row_id, whole.user_row),
        CONFIG,
    )
    assert [line.name for line in lines] == ["style", "same"]
    assert lines[0].auc_lost > 0.2 and lines[0].interval[0] > 0
    assert lines[0].log_loss_added > 0
    assert (lines[1].auc_lost, lines[1].interval) == (0, (0, 0))


def test_learned_weights_that_follow_the_sensitivities_correlate(rng, tmp_path):
    sensitivities = rng.dirichlet(np.ones(3), 30)
    users = [f"u{user}" for user in range(30)]
    truth = tmp_path / "users.parquet"
    columns = {f"sensitivity_{n}": 2.5 * sensitivities[:, k] for k, n in enumerate(NAMES[1:])}
    pq.write_table(pa.table({"user_id": users, **columns}), truth)
    predictions = rows(rng)
    ids = np.array([None, *users[1:]], dtype=object)  # user row r is user number r

    def ids_of(rows):
        return ids[rows].tolist()

    weights = np.hstack([np.full((600, 1), 0.4), 0.6 * sensitivities[predictions.user_row]])
    predictions.weights = weights.astype(np.float32)
    shares = planted_shares(predictions, NAMES, truth, ids_of)
    assert list(shares) == NAMES[1:]
    for share in shares.values():
        np.testing.assert_allclose(share.planted_U, share.learned_U, atol=1e-6)
        assert share.correlation == pytest.approx(1)
    assert planted_shares(predictions, NAMES, tmp_path / "none.parquet", ids_of) == {}
    with pytest.raises(ValueError, match="no sensitivities of 1 of 29 users"):
        ids[3] = "other"
        planted_shares(predictions, NAMES, truth, ids_of)


def test_settings_that_cannot_be_met_are_named_all_at_once():
    given = {
        "bootstrap": {"num_replicates": 1, "level": 95},
        "ranking": {"ks": []},
        "sample_users": -1,
    }
    with pytest.raises(ValueError) as caught:
        from_config(EvaluateConfig, given, "")
    for part in (
        "bootstrap.num_replicates=1: expected 2 or more",
        "bootstrap.level=95: expected less than 1",
        "ranking.ks=[]",
        "sample_users=-1",
    ):
        assert part in str(caught.value)


def test_a_removed_key_says_what_does_its_job_now():
    with pytest.raises(ValueError, match=r"compare: was removed; .*launch/compare.py runs=\[a,b\]"):
        from_config(EvaluateConfig, {"compare": ["a", "b"]}, "")
