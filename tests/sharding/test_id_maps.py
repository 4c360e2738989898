"""Id maps of sharded tables: ranks agree, freed rows begin anew, and checkpoints move across plans."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.processes import worker_result
from tests.sharding.test_plans import SHARDINGS
from tests.slow_cases import slow_but

WORKER = Path(__file__).with_name("ids_worker.py")
UNTIL = 20


def run(stages, num_ranks, num_hosts=1):
    """What the worker says of every stage."""
    arguments = ("--stages", json.dumps(stages), "--hosts", num_hosts)
    return worker_result(WORKER, *arguments, ranks=num_ranks)


@cache
def every_sharding(num_ranks, num_hosts=1):
    """One training under every sharding type."""
    stages = [{"sharding": kind, "until": UNTIL, "check": True} for kind in SHARDINGS]
    return dict(zip(SHARDINGS, run(stages, num_ranks, num_hosts), strict=True))


@cache
def whole():
    """One rank, one plan, and nothing in between."""
    return run([{"until": UNTIL}], 1)[0]


def assert_resets(result, sharding):
    assert set(result["shardings"].values()) >= {sharding}
    assert result["problems"] == []
    assert result["agree"]
    last = result["noted"][-1]
    assert last["ids/item_id/forgotten"] >= 10 and last["ids/user_id/forgotten"] >= 10


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_freed_rows_begin_anew_with_their_optimizer_state_and_no_other_row_does(sharding):
    result = every_sharding(2)[sharding]
    assert_resets(result, sharding)
    assert result["maps"] == whole()["maps"]
    if "column" not in sharding and sharding != "grid_shard":
        # Column-wise shards keep their own row-wise Adagrad state and train otherwise by design.
        np.testing.assert_allclose(result["losses"], np.array(whole()["losses"]) * 2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("sharding", SHARDINGS)
def test_freed_rows_begin_anew_on_four_ranks_of_two_hosts(sharding):
    result = every_sharding(4, 2)[sharding]
    assert_resets(result, sharding)
    assert result["maps"] == whole()["maps"]


def test_what_the_log_says_adds_up():
    lines, maps = whole()["noted"], whole()["maps"]
    assert len(lines) == (UNTIL - 1) // 3
    last = lines[-1]
    assert last["ids/item_id/rows_used"] == np.count_nonzero(maps["item_id"])
    for table in ("item_id", "user_id"):
        given, taken = last[f"ids/{table}/admitted"], last[f"ids/{table}/forgotten"]
        assert given - taken == last[f"ids/{table}/rows_used"]
        assert lines[0][f"ids/{table}/unknown_share"] == 1
        assert 0 < last[f"ids/{table}/unknown_share"] < 1
    sentences = whole()["summary"]
    assert sentences[1].startswith("ids of item_id: ") and " of 24 rows in use" in sentences[1]


@pytest.mark.slow
def test_occupancy_is_flat_over_thirty_days_of_training_on_a_drifting_catalogue():
    """An item of 14 is new every day, and forgotten four days after its last row."""
    lines = run([{"until": 34}], 1)[0]["noted"]
    assert len(lines) == 11
    assert {line["ids/item_id/rows_used"] for line in lines} <= {16, 17, 18}
    assert lines[-1]["ids/item_id/admitted"] == 45 and lines[-1]["ids/item_id/forgotten"] == 28
    assert {line["ids/item_id/turned_away"] for line in lines} == {0}
    assert {line["ids/user_id/rows_used"] for line in lines[2:]} == {16}, "its capacity"


def test_training_goes_on_over_ranks_and_plans_as_if_undisturbed(tmp_path):
    """1 rank table-wise, 2 ranks table-wise and then row-wise, 4 ranks to the end; saves amid windows.

    Bit for bit where the ranks and the plan are those of a run that was not stopped there.
    """
    first = run([{"until": 7, "save": str(tmp_path / "a")}], 1)[0]
    moved = {"load": f"{tmp_path}/a/step-00000007"}
    resumed = {"load": f"{tmp_path}/b/step-00000013", "until": 16}
    unstopped, second, same, third = run(
        [
            {**moved, "until": 16},
            {**moved, "until": 13, "save": str(tmp_path / "b")},
            resumed,
            {**resumed, "sharding": "row_wise", "save": str(tmp_path / "c")},
        ],
        2,
    )
    by_rows = {"sharding": "row_wise"}
    assert second["losses"] + same["losses"] == unstopped["losses"]
    assert same["maps"] == unstopped["maps"] == third["maps"]
    fourth = run([{**by_rows, "until": UNTIL, "load": f"{tmp_path}/c/step-00000016"}], 4)[0]
    assert first["losses"] == whole()["losses"][:7]
    found = [*np.array(second["losses"] + third["losses"]) / 2, *np.array(fourth["losses"]) / 4]
    np.testing.assert_allclose(found, whole()["losses"][7:], rtol=1e-5)
    assert fourth["maps"] == whole()["maps"]
    assert fourth["noted"][-1] == whole()["noted"][-1]
    assert fourth["summary"] == whole()["summary"]


@pytest.mark.parametrize("optimizer", slow_but(["rowwise_adagrad", "adam"], "rowwise_adagrad"))
def test_resume_is_bit_equal_amid_and_between_windows_through_the_overlapped_pipeline(
    tmp_path, optimizer
):
    keys = {"pipeline": "sparse_dist", "optimizer": optimizer}
    keys |= {"sharding": "data_parallel" if optimizer == "adam" else "row_wise"}
    parts = [
        {**keys, "until": 8, "save": str(tmp_path)},  # amid a window
        {**keys, "until": 12, "load": f"{tmp_path}/step-00000008", "save": str(tmp_path)},
        {**keys, "until": UNTIL, "load": f"{tmp_path}/step-00000012"},  # at the end of one
    ]
    undisturbed, *parted = run([{**keys, "until": UNTIL}, *parts], 2)
    assert sum((part["losses"] for part in parted), []) == undisturbed["losses"]
    assert parted[-1]["maps"] == undisturbed["maps"]
    assert parted[-1]["summary"] == undisturbed["summary"]
