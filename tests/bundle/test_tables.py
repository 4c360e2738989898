"""Exported tables: what quantisation loses, lists and unknown rows, and blocks of any size."""

import numpy as np
import pytest
import torch

from recsys.bundle.lookup import Lookup, column_of
from recsys.bundle.spec import BundleSpec, Widths
from recsys.bundle.tables import QuantisedTable, TableWriter, quantise
from recsys.errors import UserError
from tests import tiny_world


def write(folder, values, first_order, precision, block_rows):
    with TableWriter(folder, "t", num_rows=len(values), precision=precision) as writer:
        for start in range(0, len(values), block_rows):
            block = slice(start, start + block_rows)
            writer.write(values[block], None if first_order is None else first_order[block])
    return QuantisedTable(folder, "t")


def test_quantised_values_are_off_by_at_most_half_a_step_of_their_row(rng):
    values = rng.normal(size=(50, 7)).astype(np.float32) * 10.0 ** rng.integers(-3, 3, (50, 1))
    values[3] = 2.5
    values[4] = 0
    numbers, scales = quantise(values.astype(np.float32))
    restored = scales[:, 1:] + scales[:, :1] * numbers
    steps = np.ptp(values, axis=1, keepdims=True) / 255
    assert (np.abs(restored - values) <= 0.501 * steps + 1e-6).all()
    assert (restored[3] == 2.5).all() and (restored[4] == 0).all()


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp32"])
@pytest.mark.parametrize("block_rows", [1, 7, 100])
def test_tables_are_written_alike_in_blocks_of_any_size(tmp_path, rng, precision, block_rows):
    values = rng.uniform(-1, 1, size=(30, 6)).astype(np.float32)
    first_order = rng.normal(size=30).astype(np.float32)
    table = write(tmp_path, values, first_order, precision, block_rows)
    assert (table.num_rows, table.dim) == (30, 6)
    bound = {"int8": 1 / 255, "fp16": 1e-3, "fp32": 0}[precision]
    found, first = table.pool(torch.arange(30), None)
    np.testing.assert_allclose(found.numpy(), values, rtol=0, atol=bound)
    np.testing.assert_array_equal(first.numpy(), first_order)


def test_a_list_is_the_mean_of_its_ids_and_an_empty_one_zero(tmp_path, rng):
    values = rng.normal(size=(9, 4)).astype(np.float32)
    table = write(tmp_path, values, None, "fp32", 9)
    found, first = table.pool(torch.tensor([2, 5, 5, 8]), torch.tensor([3, 0, 1]))
    expected = np.stack([values[[2, 5, 5]].mean(axis=0), np.zeros(4), values[8]])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert (first == 0).all()


def test_rows_beyond_a_table_are_unknown_and_left_out_of_lists(tmp_path, rng):
    values = rng.normal(size=(tiny_world.NUM_ITEMS, 4)).astype(np.float32)
    table = write(tmp_path, values, None, "fp32", 100)
    manifest = tiny_world.manifest()
    spec = BundleSpec(
        run="r", step=1, sha8="0", kind="whole", ranker="dcn", precision="fp32",
        user_features=("history",), item_features=("item_id",), modality_names=(), vector_names=(),
        interests=(), widths=Widths(modalities={}), manifest=manifest,
    )  # fmt: skip
    added = tiny_world.NUM_ITEMS
    history = Lookup(spec, ["history"], [], {"item_id": table})
    lists = [np.array([3, added, 7]), np.array([added + 1])]
    found, _ = history({"history": column_of(lists, is_list=True)}, 2)
    np.testing.assert_allclose(found[0].numpy(), values[[3, 7]].mean(axis=0), rtol=1e-6)
    assert (found[1] == 0).all()
    items = Lookup(spec, ["item_id"], [], {"item_id": table})
    found, _ = items({"item_id": (torch.tensor([added, 4]), None, None)}, 2)
    np.testing.assert_array_equal(found.numpy(), values[[0, 4]])


def test_a_table_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"t\.values\.npy: missing; run launch/export\.py again"):
        QuantisedTable(tmp_path, "t")
