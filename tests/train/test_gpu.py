"""The real commands on a GPU, with one rank of torchrun: train, resume, evaluate."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.small_runs import losses, metrics, options

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


def validation(workspace, name):
    return [line["valid/auc"] for line in metrics(workspace, name) if "valid/auc" in line]


def test_evaluation_on_a_gpu_is_the_validation_of_the_training(workspace, job):
    """With the defaults: nccl, the overlapped pipeline, pinned batches, a checkpoint beside the steps."""
    done = job("train", *options(workspace, "card", "train.epochs=1"), ranks=1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "on 1 rank(s), cuda" in done.stdout
    folder = workspace / "runs" / "card"
    peaks = [line["memory/peak_gib"] for line in metrics(workspace, "card") if "train/loss" in line]
    assert peaks and all(0 < peak < 10 for peak in peaks)

    base = ["data=demo", f"workspace={workspace}", "run.name=card", "split=valid"]
    done = job("evaluate", *base, ranks=1)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((folder / "eval" / "valid" / "metrics.json").read_text())
    assert found["all"]["auc"] == pytest.approx(max(validation(workspace, "card")), abs=1e-6)

    # A run of one device is scored on the other.
    predictions = folder / "eval" / "valid" / "predictions.parquet"
    on_card = pq.read_table(predictions).column("score").to_numpy()
    done = job("evaluate", *base, "run.device=cpu")
    assert done.returncode == 0, done.stderr[-2000:]
    on_cpu = pq.read_table(predictions).column("score").to_numpy()
    np.testing.assert_allclose(on_card, on_cpu, atol=1e-5)


def test_training_on_a_gpu_has_the_losses_of_a_cpu(workspace, job):
    for device in ("cuda", "cpu"):
        more = ["train.epochs=1", f"run.device={device}", "optim.table.name=rowwise_adagrad"]
        more += ["model.dropout=0"]  # drawn by the device
        done = job("train", *options(workspace, device, *more))
        assert done.returncode == 0, done.stderr[-2000:]
    found, expected = (dict(losses(workspace, device)) for device in ("cuda", "cpu"))
    assert sorted(found) == sorted(expected)
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-4), step
