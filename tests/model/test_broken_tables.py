"""A table of NaN shows in scores and loss, so that a run that diverged is stopped and named."""

import numpy as np
import pytest
import torch

from recsys.evaluation.predict import Predictions, by_score
from recsys.model.build import RANKERS
from recsys.train.gradients import check_finite
from tests.model.whole_tables import batch_of, ranker_of


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", sorted(RANKERS))
def test_a_user_table_of_nan_is_told_apart_from_a_model(name, precision):
    # Without the shortcuts past the towers, on which NaN comes through in any case.
    plain = {} if name == "lr" else {"first_order": False, "match": False}
    ranker = ranker_of(name, dense_precision=precision, **plain).train()
    ranker.inputs.embeddings.embedding_bags["user_id"].weight.data.fill_(torch.nan)
    loss, scores = ranker(batch_of(ranker, range(10)))
    assert scores.logits_B.isnan().all()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 7"):
        check_finite([loss.item()], [[]], [], 7)
    nothing = np.zeros(10, dtype=np.int64)
    with pytest.raises(ValueError, match="10 of 10 scores are NaN: the model diverged"):
        by_score(
            Predictions(
                nothing, nothing, nothing, nothing, scores.logits_B.double().numpy(), nothing
            )
        )
