"""Paired differences: a real gain is told from luck, equal models differ by nothing."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.evaluation.rows import ScoredRows
from recsys.run.config import RunConfig
from recsys.study import comparison
from recsys.study.comparison import VariantRuns
from recsys.study.differences import paired_difference, seed_scores
from recsys.study.runs import StudyRun, read_predictions

NUM_USERS, ROWS_EACH = 120, 20


def scored(rng, quality, noise_seed):
    """Predictions of one training: the label's signal times `quality`, and noise of its own."""
    num_rows = NUM_USERS * ROWS_EACH
    label = (np.arange(num_rows) % 3 == 0).astype(float)
    common = rng.normal(size=num_rows)
    own = np.random.default_rng(noise_seed).normal(size=num_rows)
    return ScoredRows(
        row_id_N=np.arange(num_rows),
        label_N=label,
        score_N=quality * label + common + 0.1 * own,
        unit_N=np.arange(num_rows) // ROWS_EACH,
    )


def model(quality, first_noise, num_seeds=3):
    rows = [
        scored(np.random.default_rng(7), quality, first_noise + seed) for seed in range(num_seeds)
    ]
    return seed_scores(rows, num_replicates=200, seed=0)


def test_model_against_itself_differs_by_exactly_nothing():
    same = model(1.0, 0)
    difference = paired_difference(same, same, seed=0)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.verdict == "within noise"


def test_small_real_gain_is_told_by_pairing():
    """The models share their errors: alone each AUC is far less certain than their difference."""
    worse, better = model(1.0, 0), model(1.1, 100)
    difference = paired_difference(better, worse, seed=0)
    assert difference.mean == pytest.approx((better.auc_S - worse.auc_S).mean())
    assert 0 < difference.low < difference.mean < difference.high
    assert difference.verdict == "better"
    assert paired_difference(worse, better, seed=0).verdict == "worse"
    alone = np.quantile(better.replicates_SR.mean(axis=0), [0.025, 0.975])
    assert difference.high - difference.low < 0.7 * (alone[1] - alone[0])


def test_other_noise_of_the_same_quality_is_within_noise():
    assert paired_difference(model(1.0, 0), model(1.0, 100), seed=0).verdict == "within noise"


def test_models_with_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="3 seeds against 2"):
        paired_difference(model(1.0, 0), model(1.0, 100, num_seeds=2), seed=0)


def test_predictions_of_other_data_are_refused():
    rows = scored(np.random.default_rng(7), 1.0, 0)
    other = ScoredRows(
        row_id_N=rows.row_id_N[1:],
        label_N=rows.label_N[1:],
        score_N=rows.score_N[1:],
        unit_N=rows.unit_N[1:],
    )
    with pytest.raises(ValueError, match="2,400 and 2,399 rows are not of the same data"):
        seed_scores([rows, other], num_replicates=2, seed=0)


def predicted(workspace, name, *, users, unknown=None):
    """A variant of one run that scored six rows; `unknown`: hashes of unknown users, where told."""
    columns = {
        "row_id": [5, 0, 1, 2, 3, 4],
        "user_id": pa.array(users, pa.string()),
        "label": [0, 1, 0, 1, 0, 1],
        "score": np.arange(6) / 6,
    }
    if unknown:
        columns["unknown_user"] = pa.array(unknown, pa.uint64())
    folder = workspace / "runs" / name / "eval" / "test"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    run = StudyRun(workspace=workspace, name=name, overrides=(), config=RunConfig())
    return VariantRuns(runs=[run])


def test_all_variants_resample_the_users_of_a_file_that_tells_them_apart(tmp_path):
    users = ["a", None, None, None, "a", "b"]
    told = [0, 7, 8, 7, 0, 0]
    earlier = predicted(tmp_path, "earlier", users=users)
    newer = predicted(tmp_path, "newer", users=users, unknown=told)
    for variants in ({"a": earlier, "b": newer}, {"b": newer, "a": earlier}):
        common = comparison._common_rows(variants, "test")
        assert common.tells_unknown_users
        # By row id: the unknown users of rows 0 and 2 are one, that of row 1 is another.
        unit = common.unit_N.tolist()
        assert unit[0] == unit[2] != unit[1] and unit[3] == unit[5] and len(set(unit)) == 4
        rows = read_predictions(earlier.runs[0], "test").with_units_of(common)
        assert rows.unit_N.tolist() == unit
    # Where no file tells them apart, each row of an unknown user is a unit; the first file decides.
    only = comparison._common_rows({"a": earlier, "c": earlier}, "test")
    assert not only.tells_unknown_users and len(set(only.unit_N.tolist())) == 5
