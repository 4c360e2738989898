"""Frozen tables that a rank holds whole: their precision, and the lookups that they answer."""

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.model.modality import ModalityTables
from recsys.run.planning import PlanningConfig, read_bits
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.coded import CodedRows, codebooks_of
from recsys.sharding.shards import replicate
from tests.feature_tables import write_table

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


def filled(pooled, shrinkage=0.0):
    """Tables held whole, of random vectors; item 3 has none."""
    modality = ModalityTables(
        dims=DIMS,
        num_rows=ROWS,
        item_feature="item_id",
        history_features=["history"],
        pooled=pooled,
        shrinkage=shrinkage,
    )
    modality.tables = replicate(modality.tables, {}, torch.device("cpu"))
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
    found = modality.columns(modality(SPARSE))
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


def test_shrinkage_divides_a_sum_by_more_than_the_items_that_have_a_vector():
    modality, vectors = filled(["style"], shrinkage=2.0)
    interest_BE, any_B = modality.columns(modality(SPARSE))["style"]["history"]
    style_NE = vectors["style"]  # item 3, of row 0, has none
    expected = [style_NE[1] / 3, torch.zeros(5), style_NE[[4, 4, 2]].sum(dim=0) / 5]
    torch.testing.assert_close(interest_BE, torch.stack(expected))
    assert any_B.tolist() == [1, 0, 1]


def test_modality_that_pools_nothing_asks_for_no_history():
    modality, _ = filled([])
    assert modality.history_features == []
    assert [c.feature_names for c in modality.tables.embedding_bag_configs()] == [["item_id"]] * 2


@pytest.mark.parametrize("columns", [(0, 12), (0, 4), (4, 12), (8, 12)])
def test_a_piece_of_a_table_of_codes_decodes_its_rows_and_columns(tmp_path, rng, columns):
    given = rng.normal(size=(40, 8)).astype(np.float16)
    given[[0, 9]] = 0
    table = write_table(tmp_path / "text", given, shard_rows=16, bits=2)
    basis_EE = table.form.codebooks.basis_EZ
    stored = np.zeros((40, 12), dtype=np.float32)
    stored[:, :8] = given.astype(np.float32) @ basis_EE
    stored[:, 8] = given.any(axis=1)
    piece = CodedRows(table="t", rows=(5, 40), columns=columns, bits=2, dim=8, device=None)
    piece.fill(table)
    expected = torch.from_numpy(stored[5:, slice(*columns)])
    rows = torch.tensor([0, 4, 34, 4])
    torch.testing.assert_close(piece(rows), expected[rows], rtol=0, atol=1e-5)
    offsets = torch.tensor([0, 3, 3, 4])
    pooled = piece.pooled(rows, offsets)
    assert not pooled[1].any()
    torch.testing.assert_close(pooled[0], expected[rows[:3]].sum(dim=0), rtol=0, atol=1e-5)
    assert piece.pooled(rows[:0], torch.zeros(3, dtype=torch.int64)).shape == (2, len(expected[0]))


def test_only_tables_that_are_all_codes_of_even_parts_are_looked_up_as_codes(tmp_path, rng):
    def table(name, dim, bits):
        return write_table(tmp_path / name, rng.normal(size=(9, dim)).astype(np.float16), bits=bits)

    one, two = table("one", 8, 2), table("two", 6, 4)
    assert {n: b.bits for n, b in codebooks_of({"one": one, "two": two}).items()} == {
        "one": 2,
        "two": 4,
    }
    assert codebooks_of({"one": one, "odd": table("odd", 6, 2)}) == {}
    assert codebooks_of({"one": one, "whole": table("whole", 8, 16)}) == {}


@pytest.mark.parametrize(("bits", "planned"), [(16, []), (2, []), (4, ["style", "text"])])
def test_plans_of_given_widths_have_codes_where_training_looks_them_up(tmp_path, bits, planned):
    dims = {"style": 8, "text": 6}
    config = PlanningConfig(cluster=ClusterConfig(name="c"), modality_dims=dims, modality_bits=bits)
    assert read_bits(tmp_path, config, dims) == dict.fromkeys(planned, bits)


def test_a_lookup_in_bf16_gives_bf16_vectors_and_whole_counts():
    modality, _ = filled(["text"])
    exact = modality.columns(stored := modality(SPARSE))
    halves = KeyedTensor(stored.keys(), stored.length_per_key(), stored.values().bfloat16())
    for name, by_feature in modality.columns(halves).items():
        for feature, (vector_BE, present_B) in by_feature.items():
            expected_BE, expected_B = exact[name][feature]
            assert vector_BE.dtype == torch.bfloat16
            torch.testing.assert_close(vector_BE.float(), expected_BE, rtol=2**-7, atol=0)
            assert torch.equal(present_B, expected_B)
