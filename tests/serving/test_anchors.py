"""Anchor items on a bundle of a model without a direct term: retrieval vectors order as its logits do."""

import numpy as np
import pytest
import torch

from recsys.bundle.scorer import Profile
from recsys.serving.anchors import _spread_rows
from recsys.serving.recall import candidate_recall
from recsys.serving.recommender import Recommender
from tests.serving.tiny import export, train


@pytest.fixture(scope="module")
def recommender(tiny_workspace, job):
    train(tiny_workspace, job, "whole", "model=dcn_v2")
    return Recommender.open(export(tiny_workspace, job, "whole", "precision=fp32"))


def test_fitted_vectors_order_items_as_the_model_does(recommender):
    bundle, scorer = recommender.bundle, recommender.scorer
    assert not bundle.spec.widths.retrieval
    users = scorer.encode([Profile(user_row=row) for row in range(1, 21)])
    fitted_UR = recommender.router.user_vectors(users, None)
    rows = torch.arange(1, bundle.items.num_stored)
    items_NR = recommender.router._anchors.items_NR[rows].float()
    of_row = torch.arange(20).repeat_interleave(len(rows))
    logits, _ = scorer.score(users, of_row, rows.repeat(20))
    for fitted, exact in zip(fitted_UR @ items_NR.T, logits.view(20, -1), strict=True):
        assert np.corrcoef(fitted.numpy(), exact.numpy())[0, 1] > 0.98
    assert candidate_recall(recommender, range(1, 21), k=10, num_candidates=40) > 0.95


def test_an_added_item_gets_a_vector_and_lists_have_no_weights(recommender):
    vector = recommender.bundle.items.modality("text", torch.tensor([5]))[0][0].numpy()
    assert recommender.recommend(user=None, k=3).items[0].weights == {}
    card = recommender.add_item("new", text=recommender.bundle.catalogue.card(5)["text"])
    assert card.is_new
    row = int(recommender.bundle.item_rows(["new"])[0])
    added = recommender.bundle.items.modality("text", torch.tensor([row]))[0][0].numpy()
    np.testing.assert_allclose(added, vector, atol=2e-2)
    users = recommender.scorer.encode([Profile(user_row=3)])
    fitted = recommender.router.user_vectors(users, None)[0]
    exact, _ = recommender.scorer.score(users, torch.tensor([0, 0]), torch.tensor([row, 5]))
    scores = recommender.router._direct.scores(fitted, np.array([row, 5]))
    assert scores[0] - scores[1] == pytest.approx(float(exact[0] - exact[1]), abs=0.1)
    found = recommender.recommend(likes=["new"], k=100, exclude_seen=False)
    assert "new" in [item.id for item in found.items]


def test_spread_rows_span_the_space(rng):
    vectors = torch.from_numpy(rng.standard_normal((40, 5))).float()
    rows = _spread_rows(vectors, 12)
    assert len(set(rows.tolist())) == 12
    assert 0 not in rows.tolist()
    assert torch.linalg.matrix_rank(vectors[rows[:5]]) == 5
