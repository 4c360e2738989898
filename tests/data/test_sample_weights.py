"""Sample weights: from a column of the log to the factor of a row's loss, in training alone."""

import pytest
import torch

from recsys.data.dataset import Dataset
from recsys.data.loader import Loader
from recsys.data.passes import PooledSplits
from recsys.model.loss import bce_loss
from tests.data.small_log import INTERACTIONS, prepared, recipe, write_source

HEAD, *LINES = INTERACTIONS.splitlines()
WEIGHTS = ["0", "0.5", "2", "1e-1", "3", "4", "0", "1", "1.25", "7", "8", "9"]


def weighted(tmp_path, weights, **changes):
    lines = [f"{line},{weight}" for line, weight in zip(LINES, weights, strict=True)]
    log = "\n".join([f"{HEAD},trust", *lines, ""])
    source = write_source(tmp_path / "raw", interactions=log)
    return prepared(tmp_path, recipe(source, interactions__weight="trust", **changes))


def weights_of(workspace, manifest, split):
    dataset = Dataset(workspace / "prepared", manifest, split=split, features=["item_id"])
    loader = Loader(
        dataset,
        global_batch_size=4,
        rank=0,
        world_size=1,
        num_lanes=1,
        shuffle=split == "train",
        seed=0,
    )
    return {
        int(row): (float(weight), place < batch.num_real)
        for batch in loader.batches(epoch=0)
        for place, (row, weight) in enumerate(
            zip(batch.row_id_B.tolist(), batch.weights_B.tolist(), strict=True)
        )
    }


def test_training_rows_have_their_weight_and_other_splits_one(tmp_path):
    manifest, workspace = weighted(tmp_path, WEIGHTS)
    assert manifest.has_weights
    found = weights_of(workspace, manifest, "train")
    trained = {row: weight for row, (weight, is_real) in found.items() if is_real}
    # Each user's first half by time; a row of weight 0 is a row all the same.
    assert sorted(trained) == [0, 1, 4, 5, 8, 9]
    assert trained == pytest.approx({row: float(WEIGHTS[row]) for row in trained})
    for split in ("valid", "test"):
        real = [
            weight for weight, is_real in weights_of(workspace, manifest, split).values() if is_real
        ]
        assert real == [1.0] * 3


def test_rows_of_splits_that_are_read_together_have_their_weights(tmp_path):
    manifest, workspace = weighted(tmp_path, WEIGHTS)
    splits = ["train", "valid", "test"]
    for kinds in ({}, {"is_trained_on": True}):
        pooled = PooledSplits(
            workspace / "prepared", manifest, splits=splits, features=["item_id"], **kinds
        )
        rows = pooled.read(0, pooled.num_rows)
        found = dict(zip(*(rows[n].to_pylist() for n in ("row_id", "sample_weight")), strict=True))
        assert found == pytest.approx({n: float(weight) for n, weight in enumerate(WEIGHTS)})


@pytest.mark.parametrize("bad", ["-0.5", "", "nan", "inf", "much"])
def test_a_weight_below_zero_or_none_at_all_is_refused(tmp_path, bad):
    weights = [*WEIGHTS[:7], bad, *WEIGHTS[8:]]
    with pytest.raises(
        ValueError, match=r"log.csv: column 'trust': not a sample weight: expected a number of 0 or more"
        r" \(interactions.weight\): 1 row, first at data row 7"
    ):  # fmt: skip
        weighted(tmp_path, weights)


def test_a_column_that_is_not_there_is_named(tmp_path):
    made = recipe(write_source(tmp_path / "raw"), interactions__weight="trust")
    with pytest.raises(ValueError, match=r"column 'trust' \(interactions.weight\) is missing"):
        prepared(tmp_path, made)


def test_a_drawn_negative_has_the_weight_of_its_positive(tmp_path):
    manifest, workspace = weighted(
        tmp_path,
        ["2"] * 12,
        interactions__label=None,
        interactions__negatives={"per_positive": 1},
    )
    found = weights_of(workspace, manifest, "train")
    assert {weight for weight, is_real in found.values() if is_real} == {2.0}
    assert any(row >= 12 for row in found)


def test_a_row_of_weight_two_counts_as_two_equal_rows():
    logits_B, labels_B = torch.tensor([0.3, -1.2]), torch.tensor([1.0, 0.0])
    twice = bce_loss(logits_B, labels_B, torch.tensor([2.0, 1.0]), 3)
    three = bce_loss(logits_B[[0, 0, 1]], labels_B[[0, 0, 1]], torch.ones(3), 3)
    torch.testing.assert_close(twice, three)
