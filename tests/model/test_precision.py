"""Every ranker and option computes in bf16 where it is told to, close to what fp32 gives."""

import pytest
import torch

from recsys.model.build import RANKERS
from recsys.model.cross import CROSS_FORMS
from recsys.model.fusion import UMCM_FORMS
from tests.model.whole_tables import batch_of, ranker_of

OPTIONS = [
    {"similarity_tiers": 5},
    {"second_order": True},
    {"batch_norm": True},
    *({"umcm": form} for form in UMCM_FORMS),
    *({"cross": form} for form in CROSS_FORMS),
]
CASES = [(name, {}) for name in RANKERS] + [("umair_fps", more) for more in OPTIONS]
IDS = ["+".join([name, *(f"{key}={value}" for key, value in more.items())]) for name, more in CASES]


@pytest.mark.parametrize(("name", "more"), CASES, ids=IDS)
def test_bf16_trains_and_stays_near_fp32(name, more):
    logits = {}
    for precision in ("fp32", "bf16"):
        ranker = ranker_of(name, dense_precision=precision, **more).train()
        loss, scores = ranker(batch_of(ranker, range(24)))
        loss.backward()
        gradients = [p.grad for p in ranker.dense.parameters()]
        assert all(g is not None and g.dtype == torch.float32 for g in gradients)
        logits[precision] = scores.logits_B
    torch.testing.assert_close(logits["bf16"], logits["fp32"], rtol=0.05, atol=0.05)
