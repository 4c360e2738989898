"""Rows of weight 0 do not exist for a model: not for its loss, its gradients or its batch norm."""

import pytest
import torch

from recsys.model.build import RANKERS
from tests.model.whole_tables import batch_of, ranker_of

NORMALISED = [name for name, (config, _) in RANKERS.items() if hasattr(config(), "batch_norm")]
OPTIONS = [("umair_fps", {"umcm": "mixture"}), ("umair_fps", {"similarity_tiers": 4})]
CASES = [(name, {}) for name in NORMALISED] + OPTIONS


def train_once(name, more, num_padding, rows=range(10)):
    """Loss, scores, gradients and buffers of one batch."""
    ranker = ranker_of(name, batch_norm=True, **more).train()
    loss, scores = ranker(batch_of(ranker, rows, num_padding))
    loss.backward()
    gradients = {n: p.grad for n, p in ranker.named_parameters() if "modality" not in n}
    return loss, scores, gradients, dict(ranker.dense.named_buffers())


@pytest.mark.parametrize(("name", "more"), CASES)
def test_a_padded_batch_trains_as_the_batch_without_padding(name, more):
    loss, scores, gradients, buffers = train_once(name, more, 0)
    padded_loss, padded_scores, padded_gradients, padded_buffers = train_once(name, more, 6)
    assert any("running_var" in buffer for buffer in buffers)
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_scores.logits_B[:10], scores.logits_B)
    assert padded_scores.weights_BM.shape == (16, scores.weights_BM.shape[1])
    torch.testing.assert_close(padded_buffers, buffers)
    torch.testing.assert_close(padded_gradients, gradients)


@pytest.mark.parametrize("name", ["umair_fps", "deepfm"])
def test_without_batch_norm_padding_changes_nothing_either(name):
    ranker = ranker_of(name).train()
    plain, _ = ranker(batch_of(ranker, range(10)))
    padded, _ = ranker(batch_of(ranker, range(10), 6))
    torch.testing.assert_close(padded, plain)
