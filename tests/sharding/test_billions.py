"""Rank 0 of 64 starts on the plan of billions of rows and takes two steps, in one process."""

from pathlib import Path

import pytest

from tests.processes import worker_result

WORKER = Path(__file__).with_name("billions_worker.py")


@pytest.fixture(scope="module")
def stepped():
    """What the worker found, with a 20,000th of the rows and 64 rows a rank."""
    return worker_result(WORKER, 20_000, 64, ranks=0)


@pytest.mark.slow
def test_rank_0_of_64_takes_two_steps_with_the_sharding_types_of_the_plan(stepped):
    assert stepped["ranks"] == 64 and stepped["sharding"] == stepped["planned"]
    assert {t: s for t, s in stepped["sharding"].items() if t.startswith("modality_")} == {
        "modality_semantic": "grid_shard",
        "modality_style": "table_row_wise",
        "modality_text": "grid_shard",
    }
    assert all(0 < loss < 10 for loss in stepped["losses"])


@pytest.mark.slow
def test_what_rank_0_sends_in_a_step_is_what_the_plan_estimates(stepped):
    """Ids, vectors and gradients of vectors; gradients of the dense part are reduced beside them."""
    planned = sum(stepped["ids"].values()) + sum(stepped["vectors"].values())
    sent = sum(n for name, n in stepped["sent"].items() if name != "all_reduce")
    assert 0.8 * planned < sent < 1.1 * planned
