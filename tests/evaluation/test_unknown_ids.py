"""Users and items that the vocabulary does not know, from the log to an evaluation's files."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.config import from_config
from recsys.data.dataset import Dataset
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import Recipe
from recsys.evaluation.config import BootstrapConfig, EvaluateConfig
from recsys.evaluation.data import EvaluationData
from recsys.evaluation.evaluate import ScoredSplit, evaluate
from recsys.evaluation.predict import Predictions, users_of
from recsys.evaluation.result import UnknownUsers
from recsys.evaluation.rows import scored_rows
from recsys.evaluation.segments import UNKNOWN
from recsys.evaluation.split import RowUsers
from recsys.metrics.auc import gauc
from recsys.metrics.summary import evaluate_predictions
from recsys.report.evaluation_folder import write_evaluation
from recsys.report.evaluation_tables import print_metrics
from recsys.study.differences import paired_difference, seed_scores

NUM_USERS = 60
CONFIG = EvaluateConfig(bootstrap=BootstrapConfig(num_replicates=100))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A time split in which half of the test rows are of new users.

    Items i0 to i9 are trained; i10 to i14 once only, fewer than asked for; i15 to i19 not at all.
    """
    folder = tmp_path_factory.mktemp("unknown")
    rng = np.random.default_rng(5)
    lines = ["user,item,time,label"]
    for time in range(3600):
        late = time >= 1800
        user = rng.integers(2 * NUM_USERS if late else NUM_USERS)
        item = rng.integers(20 if late else 10) if time >= 5 else 10 + time
        lines.append(f"u{user},i{item},{time},{rng.integers(2)}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    recipe = {
        "name": "unknown",
        "source": str(folder),
        "interactions": {
            "file": "log.csv",
            "user_id": "user",
            "item_id": "item",
            "timestamp": "time",
            "label": "label",
            "item_min_count": 5,
        },
        "split": {"strategy": "time", "fractions": [0.5, 0.1, 0.4]},
    }
    manifest = prepare(
        from_config(Recipe, recipe, "data"), folder / "w", memory_limit="500MB", threads=1
    )
    raw = [line.split(",") for line in lines[1:]]
    return folder / "w", manifest, np.array([r[0] for r in raw]), np.array([r[1] for r in raw])


def predictions_of(world, score_of_user):
    """What a model would say of the test rows: here a number per user."""
    workspace, manifest, users, _ = world
    rows = Dataset(workspace / "prepared", manifest, split="test", features=[]).read(0, 10**6)
    row_id = rows.column("row_id").to_numpy()
    return Predictions(
        row_id=row_id,
        user_row=rows.column("user_row").to_numpy().astype(np.int64),
        item_row=rows.column("item_row").to_numpy().astype(np.int64),
        label=rows.column("label").to_numpy().astype(np.float64),
        score=np.array([score_of_user[user] for user in users[row_id]]),
        weights=np.zeros((len(row_id), 0), np.float32),
    )


def by_own_rate(world):
    """A score that is constant within a user and right about how much the user likes on the whole."""
    workspace, manifest, users, _ = world
    rows = Dataset(workspace / "prepared", manifest, split="test", features=[]).read(0, 10**6)
    label, own = rows.column("label").to_numpy(), users[rows.column("row_id").to_numpy()]
    return {user: label[own == user].mean() for user in np.unique(own)}


def evaluated(world, scores):
    return evaluate(
        data_of(world),
        ScoredSplit(predictions=predictions_of(world, scores), modality_names=[]),
        CONFIG,
    )


def data_of(world):
    workspace, manifest, _, _ = world
    dataset = Dataset(workspace / "prepared", manifest, split="test", features=[])
    return EvaluationData(workspace=workspace, dataset=dataset, tables={})


def test_gauc_of_a_score_constant_within_users_is_one_half_with_unknown_users(world, capsys):
    _, _, users, _ = world
    metrics = evaluated(world, by_own_rate(world)).result
    assert metrics.all.value("auc") > 0.6 and metrics.all.value("gauc") == 0.5
    assert metrics.intervals["gauc"] == (0.5, 0.5)
    predictions = predictions_of(world, by_own_rate(world))
    unknown = predictions.user_row == 0
    assert 400 < unknown.sum() < 1000
    strangers = np.unique(users[predictions.row_id[unknown]])
    assert metrics.unknown_users == UnknownUsers(
        num_rows=np.count_nonzero(unknown), num_users=len(strangers)
    )
    # As if all unknown users were one, who would seem to be ordered well.
    merged = np.where(unknown, 10**6, predictions.user_row)
    assert gauc(predictions.label, predictions.score, merged) > 0.55
    print_metrics(metrics, "t")
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{unknown.sum():,} of {len(unknown):,} rows are of {len(strangers)} users unkn" in shown


def test_intervals_over_unknown_users_are_those_over_their_raw_ids(world):
    # Where the model is bad at new users, one unit of all of them would decide the replicate.
    scores = {f"u{user}": 0.5 if user < NUM_USERS else 0.95 for user in range(2 * NUM_USERS)}
    _, _, users, _ = world
    evaluation = evaluated(world, scores)
    found = evaluation.result.intervals["log_loss"]
    # The same rows drawn by hand, by raw id.
    p = evaluation.predictions
    losses = -np.log(np.where(p.label == 1, p.score, 1 - p.score))
    own, codes = np.unique(users[p.row_id], return_inverse=True)
    sums, counts = np.bincount(codes, losses), np.bincount(codes)
    drawn = np.random.default_rng(0).integers(own.size, size=(2000, own.size))
    expected = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    assert found == pytest.approx(tuple(expected.tolist()), abs=0.25 * (expected[1] - expected[0]))


def test_predictions_tell_unknown_users_apart_and_both_comparisons_read_it(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr("recsys.evaluation.rows._PIECE_ROWS", 100)
    _, _, users, _ = world
    evaluation = evaluated(world, by_own_rate(world))
    write_evaluation(tmp_path / "eval", "t", evaluation, data_of(world), CONFIG)
    assert [p.name for p in (tmp_path / "eval" / "predictions.parquet").iterdir()] == [
        "part-00000-of-00001.parquet"
    ]
    table = pq.read_table(tmp_path / "eval" / "predictions.parquet")
    row_id = table.column("row_id").to_numpy()
    assert (np.diff(row_id) > 0).all()
    known = [name is not None for name in table.column("user_id").to_pylist()]
    assert table.column("user_id").to_pylist() == [
        user if is_known else None for user, is_known in zip(users[row_id], known, strict=True)
    ]
    told = table.column("unknown_user").to_numpy()
    assert ((told == 0) == known).all()
    rows = scored_rows(table)
    own = np.unique(users[row_id], return_inverse=True)[1]
    pairs = set(zip(rows.unit_N.tolist(), own.tolist(), strict=True))
    assert len(pairs) == len(set(rows.unit_N)) == len(np.unique(own)), "a unit is a user"
    scores = seed_scores([rows], num_replicates=10, seed=0)
    found = paired_difference(scores, scores, seed=0)
    assert found.mean == found.low == found.high == 0


def test_predictions_of_before_take_each_unknown_row_for_a_unit(world, tmp_path):
    evaluation = evaluated(world, by_own_rate(world))
    evaluation.users = RowUsers(
        user_row_N=evaluation.users.user_row_N, unknown_user_N=None
    )  # what data prepared before has
    write_evaluation(tmp_path / "eval", "t", evaluation, data_of(world), CONFIG)
    table = pq.read_table(tmp_path / "eval" / "predictions.parquet")
    assert "unknown_user" not in table.column_names
    rows = scored_rows(table)
    unknown = rows.user_row_N == 0
    units, counts = np.unique(rows.unit_N[unknown], return_counts=True)
    assert unknown.any() and (counts == 1).all()
    assert not np.isin(units, rows.unit_N[~unknown]).any()


def test_a_split_of_unknown_users_alone_still_has_users(world):
    _, manifest, _, _ = world
    predictions = predictions_of(world, by_own_rate(world))
    strangers = predictions.take(np.flatnonzero(predictions.user_row == 0))
    rows = users_of(strangers, manifest)
    assert rows is not None and not rows.any(), "what validation counts while it trains"
    metrics = evaluate_predictions(
        labels_N=strangers.label, probabilities_N=strangers.score, user_rows_N=rows
    )
    assert metrics.num_unknown_user_rows == metrics.num_rows and np.isnan(metrics.value("gauc"))


def test_items_unknown_to_the_vocabulary_are_not_seen_in_training(world, capsys):
    workspace, _, _, items = world
    metrics = evaluated(world, by_own_rate(world)).result
    of_rows = items[predictions_of(world, by_own_rate(world)).row_id]
    number = np.array([int(item[1:]) for item in of_rows])
    assert metrics.by_item_kind["unknown_to_the_vocabulary"].num_rows == (number >= 10).sum() > 500
    assert metrics.by_item_kind["seen_in_training"].num_rows == (number < 10).sum()
    assert metrics.by_item_kind["unseen_in_training"].num_rows == 0
    by_rows = metrics.segments["training rows of the item"]
    assert by_rows[UNKNOWN].num_rows == (number >= 10).sum()
    assert sum(found.num_rows for found in by_rows.values()) == number.size
    by_past = metrics.segments["earlier positives of the user"]
    assert by_past[UNKNOWN].num_rows == metrics.unknown_users.num_rows
    print_metrics(metrics, "t")
    shown = capsys.readouterr().out
    assert "items unknown to" in shown and "unseen" not in shown
    assert json.loads((workspace / "prepared" / "manifest.json").read_text())["rows_unknown"]
