"""The same training on one rank and two, under every plan, through both pipelines."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.processes import worker_result
from tests.slow_cases import slow_but

WORKER = Path(__file__).with_name("worker.py")


@cache
def run(num_ranks, *options):
    """Losses and scores of one worker run; equal runs are made once."""
    return worker_result(WORKER, *options, ranks=num_ranks, seconds=200)


def agree(one, other, tolerance):
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=tolerance)
    np.testing.assert_allclose(one["scores"], other["scores"], rtol=0, atol=20 * tolerance)


@pytest.mark.parametrize("optimizer", slow_but(["adam", "rowwise_adagrad"], "rowwise_adagrad"))
def test_one_and_two_ranks_agree_for_twenty_steps(optimizer):
    agree(run(1, "--optimizer", optimizer), run(2, "--optimizer", optimizer), 1e-5)


@pytest.mark.slow
def test_three_ranks_and_one_agree_on_a_batch_that_three_does_not_divide():
    """10, 11 and 11 of 32 rows: the place that rank 0 leaves open must change nothing."""
    options = ("--optimizer", "rowwise_adagrad", "--pipeline", "sparse_dist")
    agree(run(1, "--optimizer", "rowwise_adagrad"), run(3, *options), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_a_rank_without_any_row_trains_along(optimizer):
    """Two rows on three ranks: one rank has none of them, and looks nothing up."""
    options = ("--optimizer", optimizer, "--global-batch", "2")
    agree(run(1, *options), run(3, *options), 1e-5)


@pytest.mark.parametrize(
    "sharding", slow_but(["table_wise", "row_wise", "data_parallel"], "row_wise", "data_parallel")
)
def test_every_plan_trains_alike(sharding):
    """Column-wise shards keep their own row-wise Adagrad state and train otherwise by design."""
    reference = run(1, "--optimizer", "rowwise_adagrad")
    agree(reference, run(2, "--optimizer", "rowwise_adagrad", "--sharding", sharding), 1e-5)


@pytest.mark.slow
def test_column_wise_trains_alike_with_sgd():
    agree(
        run(1, "--optimizer", "sgd"),
        run(2, "--optimizer", "sgd", "--sharding", "column_wise"),
        1e-5,
    )


def test_plan_that_mixes_sharding_types_scores_alike():
    """TorchRec's mean pooling is wrong here; lists are summed and divided by us instead."""
    options = ("--optimizer", "sgd", "--sharding", "column_wise", "--tables", "user_id,item_id")
    agree(run(1, "--optimizer", "sgd"), run(2, *options), 1e-5)


@pytest.mark.slow
def test_overlapped_pipeline_equals_the_plain_one():
    options = ("--optimizer", "rowwise_adagrad", "--replicate-bytes", "1000000")
    plain = run(2, *options)
    overlapped = run(2, *options, "--pipeline", "sparse_dist")
    assert plain["losses"] == overlapped["losses"]
    assert plain["scores"] == overlapped["scores"]


def test_replicated_modality_tables_equal_the_sharded_ones():
    sharded = run(2, "--optimizer", "rowwise_adagrad")
    whole = run(2, "--optimizer", "rowwise_adagrad", "--replicate-bytes", "1000000")
    agree(sharded, whole, 1e-6)


def test_checkpoint_moves_across_plans_and_ranks_with_equal_predictions(tmp_path):
    """2 ranks table-wise -> 1 rank -> 2 ranks column-wise -> 2 ranks data-parallel."""
    options = ("--optimizer", "rowwise_adagrad")
    saved = run(
        2, *options, "--sharding", "table_wise", "--steps", "6", "--save", str(tmp_path / "a")
    )
    previous = tmp_path / "a" / "step-00000006"
    for name, num_ranks, sharding in (
        ("b", 1, "table_wise"),
        ("c", 2, "column_wise"),
        ("d", 2, "data_parallel"),
        ("e", 2, "row_wise"),
    ):
        moved = run(
            num_ranks,
            *options,
            *("--sharding", sharding, "--steps", "0"),
            *("--load", str(previous), "--save", str(tmp_path / name)),
        )
        np.testing.assert_allclose(moved["scores"], saved["scores"], rtol=0, atol=1e-6)
        previous = tmp_path / name / "step-00000006"


@pytest.mark.parametrize("optimizer", slow_but(["adam", "rowwise_adagrad"], "rowwise_adagrad"))
def test_training_continues_with_its_optimizer_state_on_another_plan(tmp_path, optimizer):
    whole = run(1, "--optimizer", optimizer, "--steps", "12")
    sharding = () if optimizer == "adam" else ("--sharding", "row_wise")
    run(2, "--optimizer", optimizer, *sharding, "--steps", "6", "--save", str(tmp_path / "half"))
    rest = run(
        1,
        *("--optimizer", optimizer, "--sharding", "data_parallel"),
        *("--steps", "6", "--first-step", "6"),
        *("--load", str(tmp_path / "half" / "step-00000006")),
    )
    np.testing.assert_allclose(rest["losses"], whole["losses"][6:], rtol=1e-5)


def test_resume_on_the_same_ranks_is_bit_equal_with_dropout(tmp_path):
    options = ("--optimizer", "rowwise_adagrad", "--dropout", "0.3", "--pipeline", "sparse_dist")
    whole = run(2, *options, "--steps", "10")
    run(2, *options, "--steps", "4", "--save", str(tmp_path / "part"))
    rest = run(
        2,
        *options,
        *("--steps", "6", "--first-step", "4"),
        *("--load", str(tmp_path / "part" / "step-00000004")),
    )
    assert rest["losses"] == whole["losses"][4:]
    assert rest["scores"] == whole["scores"]


def test_changed_table_optimizer_is_refused(tmp_path):
    run(1, "--optimizer", "rowwise_adagrad", "--steps", "1", "--save", str(tmp_path))
    with pytest.raises(AssertionError, match="optimizer changed .*rowwise_adagrad to sgd"):
        run(1, "--optimizer", "sgd", "--steps", "1", "--load", str(tmp_path / "step-00000001"))
