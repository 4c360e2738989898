"""Two stages of serving in an evaluation: the bundle's candidates against all items."""

import json

import pytest

from recsys.evaluation.result import from_json, read_result, to_json
from recsys.evaluation.two_stages import bundle_of


@pytest.fixture(scope="module")
def evaluated(tiny_bundle, tiny_workspace, job):
    done = job("evaluate", "data=demo", f"workspace={tiny_workspace}", "run.name=tiny")
    assert done.returncode == 0, done.stderr
    return done.stdout, tiny_workspace / "runs" / "tiny" / "eval" / "test"


def test_where_all_items_are_candidates_the_pipeline_is_the_full_ranking(evaluated, tiny_bundle):
    said, folder = evaluated
    result = read_result(folder / "metrics.json", "evaluate again")
    stages = result.two_stages
    assert stages.bundle == tiny_bundle.name
    # 120 items, 500 candidates: everything is retrieved.
    assert stages.values["candidate_recall"] == 1
    full = result.rankings.full
    assert {n: stages.values[n] for n in full.values} == pytest.approx(full.values)
    assert f"500 candidates of bundle {tiny_bundle.name}" in said
    assert "Two stages" in (folder / "report.html").read_text()
    content = json.loads(json.dumps(to_json(result)))
    assert from_json(content).two_stages == stages


def test_fewer_candidates_lose_some_of_the_best_items(
    evaluated, tiny_bundle, tiny_workspace, job, monkeypatch
):
    import numpy as np

    from recsys.data.dataset import Dataset
    from recsys.evaluation import two_stages
    from recsys.evaluation.candidates import draw_candidates
    from recsys.evaluation.config import EvaluateConfig
    from recsys.schema import read_manifest

    config = EvaluateConfig()
    manifest = read_manifest(tiny_workspace)
    features = [feature.name for feature in manifest.features]
    dataset = Dataset(tiny_workspace / "prepared", manifest, split="test", features=features)
    rng = np.random.default_rng(0)
    candidates = draw_candidates(dataset, config=config.ranking, seed=0)
    # Scores that the bundle knows nothing of: its candidates hold their share of the best by chance.
    score_N = rng.random(len(candidates.user_row_N))
    monkeypatch.setattr(two_stages, "NUM_CANDIDATES", 30)
    found = two_stages.evaluate_two_stages(candidates, score_N, tiny_bundle, {}, config)
    assert 0.15 < found.values["candidate_recall"] < 0.4
    low, high = found.intervals["candidate_recall"]
    assert low < found.values["candidate_recall"] < high


def test_a_bundle_of_another_checkpoint_is_not_taken(tiny_bundle, tiny_workspace, tmp_path):
    step = int(tiny_bundle.name.split("-")[1])
    found = bundle_of(tiny_workspace, "tiny", tmp_path / f"step-{step:08d}")
    assert found == tiny_bundle
    assert bundle_of(tiny_workspace, "tiny", tmp_path / f"step-{step + 1:08d}") is None
    assert bundle_of(tmp_path, "tiny", tmp_path / f"step-{step:08d}") is None
