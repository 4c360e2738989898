"""Frozen tables that a rank holds whole: their precision, and the lookups that they answer."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.model.modality import ModalityTables
from recsys.sharding.shards import replicate

DIMS = {"style": 5, "text": 3}
ROWS = 6
# features:  row 0   row 1    row 2
#   item_id  [2]     [5]      [0]
#   history  [1, 3]  []       [4, 4, 2]
SPARSE = KeyedJaggedTensor(
    keys=["item_id", "history"],
    values=torch.tensor([2, 5, 0, 1, 3, 4, 4, 2]),
    lengths=torch.tensor([1, 1, 1, 2, 0, 3], dtype=torch.int32),
)
LISTS = [[1, 3], [], [4, 4, 2]]


def filled(pooled):
    """Tables held whole, of random vectors; item 3 has none."""
    modality = ModalityTables(
        dims=DIMS,
        num_rows=ROWS,
        item_feature="item_id",
        history_features=["history"],
        pooled=pooled,
    )
    modality.tables = replicate(modality.tables, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    vectors = {}
    for name, dim in DIMS.items():
        vector_NE = torch.randn(ROWS, dim, generator=generator).half()
        vector_NE[[0, 3]] = 0
        weight = modality.tables.embedding_bags[f"modality_{name}"].weight
        assert weight.dtype == torch.float16
        weight.data.zero_()
        weight.data[:, :dim] = vector_NE
        weight.data[:, dim] = (vector_NE != 0).any(dim=1)
        vectors[name] = vector_NE.float()
    return modality, vectors


@pytest.mark.parametrize("pooled", [["style", "text"], ["text"], []])
def test_only_pooled_modalities_read_the_history_and_all_read_the_item(pooled):
    modality, vectors = filled(pooled)
    found = modality(SPARSE)
    for name, vector_NE in vectors.items():
        item_BE, present_B = found[name]["item_id"]
        assert torch.equal(item_BE, vector_NE[[2, 5, 0]])
        assert present_B.tolist() == [1, 1, 0]
        assert ("history" in found[name]) == (name in pooled)
        if name in pooled:
            mean_BE, any_B = found[name]["history"]
            for row, items in enumerate(LISTS):
                there = [item for item in items if vector_NE[item].any()]
                expected_E = vector_NE[there].sum(dim=0) / max(1, len(there))
                torch.testing.assert_close(mean_BE[row], expected_E)
                assert any_B[row] == bool(there)


def test_modality_that_pools_nothing_asks_for_no_history():
    modality, _ = filled([])
    assert modality.history_features == []
    assert [c.feature_names for c in modality.tables.embedding_bag_configs()] == [["item_id"]] * 2
