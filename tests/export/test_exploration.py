"""Posterior of exploration: the inverse of the Hessian, by a slow and obvious sum over training rows."""

import numpy as np
import pytest
import torch

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer
from recsys.export.export import open_source
from recsys.export.reference import columns_of, sample_batches
from recsys.run.scoring import read_run
from recsys.schema import read_manifest


def test_posterior_is_the_inverse_hessian_of_the_training_rows(tiny_workspace, tiny_bundle):
    manifest = read_manifest(tiny_workspace)
    source = open_source(tiny_workspace, read_run(tiny_workspace, "tiny", manifest), manifest)
    bundle = Bundle.open(tiny_bundle)
    scorer = BundleScorer(bundle)
    width = bundle.spec.widths.retrieval
    precision, curvatures = np.eye(width), []
    batches = sample_batches(
        source.prepared, manifest, source.ranker, split="train", num_rows=10**9
    )
    for batch in batches:
        users = scorer.encode_columns(columns_of(batch, manifest, []), batch.num_real)
        rows = batch.item_row_B[: batch.num_real]
        logits, _ = scorer.score(users, torch.arange(batch.num_real), rows)
        items = bundle.items.take("retrieval", rows).numpy().astype(np.float64)
        for row, logit in enumerate(logits.tolist()):
            p = 1 / (1 + np.exp(-logit))
            x = scorer.retrieval(users)[row].numpy() * items[row]
            precision += p * (1 - p) * np.outer(x, x)
            curvatures.append(p * (1 - p))
    assert len(curvatures) == manifest.splits["train"].num_rows
    factor = np.load(tiny_bundle / "explore" / "factor.npy").astype(np.float64)
    assert factor @ factor.T == pytest.approx(np.linalg.inv(precision), abs=1e-4)
    curvature = np.load(tiny_bundle / "explore" / "curvature.npy")
    assert curvature == pytest.approx(np.mean(curvatures), abs=1e-6)
