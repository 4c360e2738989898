"""Dense features: statistics of the training values, missing ones, and numbers that are refused."""

import math

import numpy as np
import pyarrow as pa
import pytest

from recsys.config import from_config
from recsys.data.dataset import Dataset
from recsys.data.dense import MOST_DEVIATIONS, encode_dense
from recsys.data.recipe import Recipe
from recsys.errors import UserError
from recsys.schema import DenseSpec, read_manifest
from tests.data.small_log import INTERACTIONS, prepared, recipe, write_source
from tests.loaders import loader_in_order

AMOUNTS = ["1", "3", "", "7", "-2", "0.5", "100", "-100", "2", "4", "nan", "8"]
"""Of the rows of the small log; training rows are 0, 1, 4, 5, 8 and 9."""
TRAINED = [1.0, 3.0, -2.0, 0.5, 2.0, 4.0]
HEAD, *LINES = INTERACTIONS.splitlines()


def with_amounts(tmp_path, amounts, **options):
    lines = [f"{line},{amount}" for line, amount in zip(LINES, amounts, strict=True)]
    source = write_source(tmp_path / "raw", interactions="\n".join([f"{HEAD},amount", *lines, ""]))
    dense = {"amount": {"kind": "dense", **options}}
    return prepared(tmp_path, recipe(source, interactions__features=dense))


def stored(workspace, names, split):
    """The loader's numbers of a split by row id, and its padding."""
    dataset = Dataset(workspace / "prepared", read_manifest(workspace), split=split, features=names)
    loader = loader_in_order(dataset, 8)
    (batch,) = loader.batches(0)
    rows = batch.row_id_B[: batch.num_real].tolist()
    numbers = batch.features.dense_BK.numpy()
    assert not numbers[batch.num_real :].any(), "padding has zeros"
    return {row: numbers[place] for place, row in enumerate(rows)}


def test_numbers_are_standardised_by_the_training_rows_and_missing_ones_are_nan(tmp_path):
    manifest, workspace = with_amounts(tmp_path, AMOUNTS)
    (spec,) = manifest.dense
    assert (spec.mean, spec.deviation) == pytest.approx((np.mean(TRAINED), np.std(TRAINED)))
    assert (spec.side, spec.source, spec.column_type) == ("context", "interaction", "text")
    assert not spec.has_missing, "the training rows have every number"
    assert [f.name for f in manifest.features] == [
        f.name for f in read_manifest(workspace).features
    ]
    found = {
        k: v
        for s in ("train", "valid", "test")
        for k, v in stored(workspace, ["item_id", "amount"], s).items()
    }
    for row, amount in enumerate(AMOUNTS):
        number = float(amount or "nan")
        expected = 0.0 if math.isnan(number) else (number - spec.mean) / spec.deviation
        assert found[row] == pytest.approx([expected], rel=1e-6), "a missing number is the mean"


def test_the_logarithm_keeps_the_sign_and_a_flag_is_kept_where_training_rows_lack_a_number(
    tmp_path,
):
    manifest, workspace = with_amounts(tmp_path, ["", *AMOUNTS[1:]], scale="log")
    (spec,) = manifest.dense
    logs = [math.copysign(math.log1p(abs(x)), x) for x in TRAINED[1:]]
    assert (spec.mean, spec.deviation) == pytest.approx((np.mean(logs), np.std(logs)))
    assert spec.has_missing
    found = stored(workspace, ["item_id", "amount"], "train")
    assert np.isnan(found[0]).all()
    assert found[1] == pytest.approx([(logs[0] - spec.mean) / spec.deviation], rel=1e-6)


def test_numbers_of_users_that_their_file_does_not_list_are_missing(tmp_path):
    source = write_source(tmp_path / "raw")
    (source / "users.csv").write_text("user_id,age\nann,20\nbob,40\n")
    users = {"file": "users.csv", "features": {"age": {"kind": "dense", "scale": "none"}}}
    made = recipe(source, users=users)
    manifest, workspace = prepared(tmp_path, made)
    (spec,) = manifest.dense
    assert spec.has_missing and (spec.source, spec.side) == ("user", "user")
    values = np.load(workspace / "prepared" / "users" / "age.values.npy")
    assert values.dtype == np.float32
    assert sorted(values[~np.isnan(values)].tolist()) == [20, 40]
    assert np.isnan(values[0]) and np.isnan(values).sum() == 2  # the unknown user, and cid


def test_a_column_of_one_number_and_one_without_any_are_scaled_to_zero(tmp_path):
    manifest, _ = with_amounts(tmp_path / "a", ["5"] * 12)
    assert (manifest.dense[0].mean, manifest.dense[0].deviation) == (5, 1)
    manifest, workspace = with_amounts(tmp_path / "b", [""] * 12)
    assert (manifest.dense[0].mean, manifest.dense[0].deviation) == (0, 1)
    assert all(np.isnan(v).all() for v in stored(workspace, ["item_id", "amount"], "test").values())


@pytest.mark.parametrize("bad", ["cheap", "inf", "-Infinity", "1e39"])
def test_text_and_infinite_numbers_are_refused_with_row_and_column(tmp_path, bad):
    with pytest.raises(
        UserError, match=rf"'amount': .*float32 .*kind: dense\): 1 row, .* row 3 \('{bad}'\)"
    ):
        with_amounts(tmp_path, [*AMOUNTS[:3], bad, *AMOUNTS[4:]])


def test_a_column_full_of_text_is_refused_once(tmp_path):
    source = write_source(tmp_path / "raw")
    made = recipe(source, items__features={"heading": {"column": "title", "kind": "dense"}})
    with pytest.raises(UserError, match=r"items.csv.*column 'title'.*5 rows") as error:
        prepared(tmp_path, made)
    assert str(error.value).count("float32") == 1


def test_scaled_numbers_are_cut_at_the_bound_and_unreadable_ones_of_a_request_are_missing():
    spec = DenseSpec(
        name="x", source="user", side="user", column="x", scale="standard", mean=1.0, deviation=2.0
    )
    raw = pa.array(["7", "1e9", "-1e9", "much", "inf", "1e39", None, " 3 "])
    found = encode_dense(spec, raw)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [3, MOST_DEVIATIONS, -MOST_DEVIATIONS, *[np.nan] * 4, 1])
    with pytest.raises(UserError, match="x: values of type list.*expected one number each"):
        encode_dense(spec, pa.array([[1.0]]))


def test_a_tag_is_no_number():
    node = {"name": "x", "source": "y", "items": {"file": "items.csv"}}
    node["items"]["tags"] = {"year": {"kind": "dense"}}
    with pytest.raises(UserError, match="items.tags.year.kind=dense: expected id or id_list"):
        from_config(Recipe, node, "data")
