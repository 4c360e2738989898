"""Weighted lists: from texts such as `red:0.7|sky:0.2` to the weights of a batch."""

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import from_config
from recsys.data.dataset import Dataset
from recsys.data.recipe import Recipe
from recsys.data.weighted import normalised, parts_sql, split_elements
from recsys.errors import UserError
from recsys.schema import read_manifest
from tests.data.small_log import ITEMS, prepared, recipe, write_source
from tests.loaders import loader_in_order

COLOURS = ["red:3|sky:1", "red", "sky:0.5|mud:0|red:0.5", "", "red:0|sky:0"]
"""Of the items 10, 20, 30, 40 and 50."""


def with_colours(tmp_path, colours, **options):
    head, *lines = ITEMS.splitlines()
    lines = [f"{line},{colour}" for line, colour in zip(lines, colours, strict=True)]
    source = write_source(tmp_path / "raw", items="\n".join([f"{head},colours", *lines, ""]))
    feature = {"kind": "id_list", "weight_separator": ":", **options}
    return prepared(tmp_path, recipe(source, items__features={"colours": feature, "year": {}}))


@given(
    st.lists(
        st.tuples(st.text("ab: é", min_size=1, max_size=5), st.floats(0, 2.0**90, width=32)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([":", "::", "->", "b"]),
)
def test_the_database_cuts_elements_as_python_does(pairs, separator):
    id_sql, weight_sql = parts_sql("e", separator)
    elements = [f"{text}{separator}{weight!r}" for text, weight in pairs]
    query = f"SELECT {id_sql}, {weight_sql} FROM (SELECT unnest($1) AS e)"
    found = duckdb.connect().execute(query, [elements]).fetchall()
    for element, (found_id, found_weight) in zip(elements, found, strict=True):
        try:
            (expected_id,), (weight,) = split_elements("t", [element], separator)
        except UserError:
            assert found_weight is None, element
        else:
            assert found_id == expected_id
            assert np.float32(found_weight) == weight


def test_weights_of_a_row_sum_to_one_and_other_ids_weigh_one(tmp_path):
    manifest, workspace = with_colours(tmp_path, COLOURS)
    (feature,) = (f for f in manifest.features if f.is_weighted)
    assert (feature.name, feature.is_list) == ("colours", True)
    names = ["item_id", "colours", "history"]
    dataset = Dataset(
        workspace / "prepared", read_manifest(workspace), split="train", features=names
    )
    loader = loader_in_order(dataset, 8)
    (batch,) = loader.batches(0)
    sparse = batch.features.sparse
    assert sparse["history"].weights().tolist() == [1] * len(sparse["history"].values())
    vocabulary = duckdb.sql(
        f"SELECT row, id FROM '{workspace}/prepared/vocab/colours.parquet'"
    ).fetchall()
    colour_of = dict(vocabulary)
    items = duckdb.sql(f"SELECT row, id FROM '{workspace}/prepared/vocab/item_id.parquet'")
    item_of = dict(items.fetchall())
    expected = {
        "10": {"red": 0.75, "sky": 0.25},
        "20": {"red": 1},
        "30": {"sky": 0.5, "mud": 0, "red": 0.5},
        "40": {},
    }
    colours = sparse["colours"]
    start = 0
    for row, length in enumerate(colours.lengths().tolist()):
        part = slice(start, start + length)
        names = [colour_of[id] for id in colours.values()[part].tolist()]
        found = dict(zip(names, colours.weights()[part].tolist(), strict=True))
        if row < batch.num_real:
            assert found == pytest.approx(expected[item_of[int(batch.item_row_B[row])]])
        else:
            assert not found
        start += length


def test_a_list_of_zeros_stays_zero():
    weights = np.array([3, 1, 0, 0, 2], np.float32)
    found = normalised(weights, np.array([2, 0, 2, 1]))
    assert found.tolist() == [0.75, 0.25, 0, 0, 1] and found.dtype == np.float32


@pytest.mark.parametrize("bad", ["-0.1", "nan", "inf", "much", "", "1e39"])
def test_a_weight_below_zero_or_none_is_refused_with_row_and_column(tmp_path, bad):
    colours = [*COLOURS[:2], f"sky:1|red:{bad}", *COLOURS[3:]]
    with pytest.raises(
        UserError,
        match=rf"items.csv: column 'colours': a weight .*feature colours, weight_separator=':'\): "
        rf"1 row, first at data row 2 \(.*red:{bad}",
    ):
        with_colours(tmp_path, colours)


@pytest.mark.parametrize("bad", ["-0.1", "nan", "inf", "much", "", "1e39"])
def test_a_weight_below_zero_or_none_of_a_request_is_refused(bad):
    with pytest.raises(UserError, match=rf"colours: 'red:{bad}': expected a weight of 0 or more"):
        split_elements("colours", ["sky:1", f"red:{bad}"], ":")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "id"}, "weight_separator=':': only lists have weights, kind: id_list"),
        ({"separator": ":"}, "weight_separator=':': expected another than separator"),
        ({"extract": "(a)"}, "weight_separator=':': does not go with extract"),
        ({"weight_separator": " "}, "weight_separator=' ': expected text between an id and"),
    ],
)
def test_a_separator_of_weights_that_fits_no_list_is_refused(options, said):
    feature = {"kind": "id_list", "weight_separator": ":", **options}
    node = {"name": "x", "source": "y", "interactions": {"features": {"colours": feature}}}
    with pytest.raises(UserError, match=said):
        from_config(Recipe, node, "data")
