"""Every sharding type scores alike, and ranks hold what their plan says."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.processes import worker_result

WORKER = Path(__file__).with_name("plans_worker.py")
SHARDINGS = ("data_parallel", "table_wise", "row_wise", "column_wise", "table_row_wise")
SHARDINGS += ("table_column_wise", "grid_shard")


@cache
def run(num_ranks, num_hosts=1):
    """What the worker printed; it goes through all cases in one process a rank."""
    return worker_result(WORKER, "--hosts", num_hosts, ranks=num_ranks)


def assert_alike(result, case, tolerance):
    expected = run(2)["scores"]["table_wise"]
    np.testing.assert_allclose(result["scores"][case], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_sharding_type_scores_alike_on_two_ranks(sharding):
    result = run(2)
    planned = result["shardings"][sharding]
    assert planned["user_id"] == planned["item_id"] == sharding
    assert_alike(result, sharding, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_sharding_type_scores_alike_on_four_ranks_of_two_hosts(sharding):
    assert_alike(run(4, 2), sharding, 1e-6)


@pytest.mark.parametrize("sharding", SHARDINGS[1:])
def test_frozen_tables_of_any_sharding_type_score_alike_on_two_ranks(sharding):
    case = f"frozen_{sharding}"
    frozen = {n: s for n, s in run(2)["shardings"][case].items() if n.startswith("modality_")}
    assert len(frozen) == 3 and set(frozen.values()) == {sharding}
    assert_alike(run(2), case, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS[1:])
def test_frozen_tables_of_any_sharding_type_score_alike_on_four_ranks_of_two_hosts(sharding):
    assert_alike(run(4, 2), f"frozen_{sharding}", 1e-6)


def test_pinned_tables_score_alike():
    assert_alike(run(2), "pinned", 1e-6)


def test_ranks_take_one_pipeline_where_only_one_of_them_has_a_piece_of_a_table():
    sends_rows = run(2)["sends_rows"]
    assert sends_rows["one_holder"] == [True, True]
    assert sends_rows["data_parallel"] == [True, True]  # its frozen tables are cut
    assert_alike(run(2), "one_holder", 1e-6)


def test_half_precision_of_exchange_and_tables_changes_scores_little_but_does_change_them():
    for case, most in (("half_communication", 1e-4), ("half_tables", 1e-4)):
        assert_alike(run(2), case, most)
        assert run(2)["scores"][case] != run(2)["scores"]["row_wise"]


@cache
def halved(num_ranks, num_hosts):
    """Scores with vectors and gradients sent in half precision, by case."""
    names = ",".join(f"half_frozen_{kind}" for kind in SHARDINGS[1:])
    options = ("--hosts", num_hosts, "--cases", names, "--only-scores")
    return worker_result(WORKER, *options, ranks=num_ranks)


@pytest.mark.slow
@pytest.mark.parametrize("ranks_and_hosts", [(2, 1), (4, 2)])
@pytest.mark.parametrize("sharding", SHARDINGS[1:])
def test_half_precision_of_the_exchange_changes_little_under_any_sharding_type(
    ranks_and_hosts, sharding
):
    result, case = halved(*ranks_and_hosts), f"half_frozen_{sharding}"
    assert_alike(result, case, 5e-4)
    assert result["scores"][case] != run(*ranks_and_hosts)["scores"][f"frozen_{sharding}"]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(
    "optimizer", ["rowwise_adagrad", pytest.param("adam", marks=pytest.mark.slow)]
)
def test_rank_holds_what_its_plan_says(num_ranks, optimizer):
    """Bytes of all live tensors after three steps, against tables, state, gradients, dense part."""
    held = run(num_ranks)["held"][optimizer]
    assert len(held) == num_ranks
    for planned, found in held:
        assert planned > 5e6
        assert abs(found - planned) < 0.05 * planned


@cache
def coded(num_ranks, num_hosts, kinds):
    """Scores and plans with tables of codes, held whole and of some sharding types; and decoded."""
    names = ",".join(["decoded", "codes_replicated", *(f"codes_{kind}" for kind in kinds)])
    options = ("--hosts", num_hosts, "--cases", names, "--only-scores")
    return worker_result(WORKER, *options, ranks=num_ranks)


def check_coded(result, kinds):
    scores = result["scores"]
    np.testing.assert_allclose(scores["codes_replicated"], scores["decoded"], rtol=0, atol=2e-4)
    for kind in kinds:
        frozen = {n: s for n, s in result["shardings"][f"codes_{kind}"].items() if "modality" in n}
        assert len(frozen) == 3 and set(frozen.values()) == {kind}
        np.testing.assert_allclose(
            scores[f"codes_{kind}"], scores["codes_replicated"], rtol=0, atol=1e-6
        )


def test_tables_of_codes_score_as_decoded_ones_whole_and_cut_by_rows_and_columns():
    kinds = ("row_wise", "column_wise")
    check_coded(coded(2, 1, kinds), kinds)


@pytest.mark.slow
def test_tables_of_codes_of_any_sharding_type_score_alike_on_four_ranks_of_two_hosts():
    check_coded(coded(4, 2, SHARDINGS[1:]), SHARDINGS[1:])
