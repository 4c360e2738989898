"""What every ranker must do: learn one batch by heart, agree on one rank and two, save and load.

One worker run per number of ranks examines all of them, with ids only and with all modalities.
"""

from pathlib import Path

import numpy as np
import pytest

from recsys.model.build import RANKERS
from recsys.model.fusion import UMCM_FORMS
from tests.processes import worker_result

WORKER = Path(__file__).with_name("contract_worker.py")
STEPS = 30
FIRST_STEPS = 5
CASES = [f"{name}/{kind}" for name in RANKERS for kind in ("ids", "all")]
CASES += [
    f"umair_fps+{option}/all" for option in (*UMCM_FORMS, "similarity_tiers", "modality_components")
]
CASES.append("dcn_v2+modality_components/all")
CASES += [f"{name}/dense" for name in ("umair_fps", "dcn_v2", "deepfm")]

NORMALISED = [f"{name}+batch_norm" for name in ("umair_fps", "finalmlp", "deepfm")]
"""Trained on padded batches of 32, 18, 10 and 1 real rows: two ranks of 16 rows share them."""


def examine(num_ranks, folder, steps):
    return worker_result(WORKER, folder, steps, ranks=num_ranks)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return examine(2, tmp_path_factory.mktemp("two"), FIRST_STEPS)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    return examine(1, tmp_path_factory.mktemp("one"), STEPS)


def test_no_ranker_escapes_the_contract(two_ranks):
    assert sorted(two_ranks) == sorted(CASES + NORMALISED)


@pytest.mark.parametrize("case", CASES)
def test_every_row_gets_a_score_and_its_weights(two_ranks, case):
    result = two_ranks[case]
    assert len(result["scores"]) == 32 and np.isfinite(result["scores"]).all()
    assert result["weights"] == [16, len(result["modalities"])]
    if case.startswith("umair_fps"):
        expected = ["ids"] if case.endswith("/ids") else ["ids", "semantic", "style", "text"]
        assert result["modalities"] == expected
    else:
        assert result["modalities"] == []


@pytest.mark.parametrize("case", CASES)
def test_one_batch_is_learned_by_heart(one_rank, case):
    losses = one_rank[case]["losses"]
    assert losses[0] == pytest.approx(np.log(2), abs=0.06)
    assert losses[-1] < 0.2


@pytest.mark.parametrize("case", CASES)
def test_one_and_two_ranks_take_the_same_steps(one_rank, two_ranks, case):
    found = one_rank[case]["losses"][:FIRST_STEPS]
    np.testing.assert_allclose(found, two_ranks[case]["losses"], rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_loaded_checkpoint_scores_as_the_model_that_was_saved(two_ranks, case):
    assert two_ranks[case]["loaded"] == two_ranks[case]["scores"]


@pytest.mark.parametrize("name", RANKERS)
def test_modalities_reach_the_model(two_ranks, name):
    """More inputs need more weights; equal inputs are what a comparison rests on."""
    assert two_ranks[f"{name}/all"]["num_dense"] > two_ranks[f"{name}/ids"]["num_dense"]


@pytest.mark.parametrize("case", NORMALISED)
def test_batch_norm_counts_the_real_rows_of_all_ranks(one_rank, two_ranks, case):
    tolerance = 0.03 if case.startswith("deepfm") else 1e-4  # bf16, fp32
    one, two = one_rank[case], two_ranks[case]
    assert one["statistics"]
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=tolerance)
    # A bias before batch norm moves by what Adam makes of rounding, and running means with it.
    tolerance = max(tolerance, 3e-3)
    np.testing.assert_allclose(one["scores"], two["scores"], rtol=tolerance, atol=tolerance)
    for name, values in one["statistics"].items():
        expected = two["statistics"][name]
        np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", NORMALISED)
def test_validation_with_batch_norm_scores_as_the_checkpoint_does(two_ranks, case):
    """Every rank scores with the statistics that rank 0 stores."""
    assert two_ranks[case]["loaded"] == two_ranks[case]["scores"]
