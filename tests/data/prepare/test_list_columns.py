"""Lists of a Parquet file stay lists, wherever a recipe reads them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.small_log import prepared, recipe, write_source

BANDS = [["AC|DC", "Queen"], ["Sony, Inc.", " a;b "], ["x\x1fy"], [], None]


def source_with(tmp_path, column: pa.Array):
    """The small data set, whose items file has a further column `bands`."""
    source = write_source(tmp_path / "raw")
    ids = [10, 20, 30, 40, 50]
    table = {"item_id": ids, "title": [f"T{i}" for i in ids], "bands": column}
    pq.write_table(pa.table(table), source / "items.parquet")
    return source


def items(**changes):
    return {"file": "items.parquet", "item_id": "item_id", "title": "title", **changes}


def prepared_rows(tmp_path, made):
    manifest, workspace = prepared(tmp_path, made)
    folder = workspace / "prepared"
    rows = pq.read_table(folder / "items.parquet").to_pylist()[1:]
    return manifest, folder, {row["item_id"]: row for row in rows}


@pytest.mark.parametrize("separator", ["|", ",", ";", "\x1f", " "])
@pytest.mark.parametrize("hash_rows", [0, 1000])
def test_elements_are_ids_whatever_they_hold(tmp_path, separator, hash_rows):
    bands = {"kind": "id_list", "separator": separator}
    made = recipe(
        source_with(tmp_path, pa.array(BANDS)),
        items=items(tags={"bands": bands}, features={"bands": {**bands, "hash_rows": hash_rows}}),
    )
    _, folder, rows = prepared_rows(tmp_path, made)
    assert [rows[i]["tags"] for i in ("10", "20", "30", "40", "50")] == [
        ["AC|DC", "Queen"],
        ["Sony, Inc.", "a;b"],
        ["x\x1fy"],
        None,
        None,
    ]
    offsets = np.load(folder / "items" / "bands.offsets.npy")
    lengths = [np.diff(offsets)[rows[i]["item_row"]] for i in ("10", "20", "30", "40", "50")]
    assert lengths == [2, 2, 1, 0, 0]


def test_extraction_reads_each_element_and_a_binary_list_is_text(tmp_path):
    years = pa.array([[b"made 1999|x", b"again 2001"], [b"none"], None, [], [b"2001"]])
    feature = {"column": "bands", "kind": "id_list", "extract": r"(\d{4})"}
    made = recipe(source_with(tmp_path, years), items=items(features={"years": feature}))
    _, folder, rows = prepared_rows(tmp_path, made)
    vocabulary = pq.read_table(folder / "vocab" / "years.parquet").to_pylist()
    assert {(line["id"], line["count"]) for line in vocabulary} == {("1999", 1), ("2001", 2)}


def test_a_list_in_the_text_of_an_item_is_joined_by_commas(tmp_path):
    column = pa.array([["sea", " hills "], ["one"], [], None, ["", "z"]])
    made = recipe(source_with(tmp_path, column), items=items(text=["title", "bands"]))
    _, _, rows = prepared_rows(tmp_path, made)
    shown = [rows[i]["text"] for i in ("10", "20", "30", "40", "50")]
    assert shown == ["T10. sea, hills", "T20. one", "T30", "T40", "T50. z"]


def test_lists_of_pairs_are_not_cut_and_a_list_in_the_log_is_read_with_text_files_beside(tmp_path):
    source = source_with(tmp_path, pa.array(BANDS))
    for name, lists in (("train", True), ("valid", False), ("test", True)):
        words = [["a|b", "c"], ["c"]] if lists else ["c|a", "c"]
        rows = {"user_id": ["u", "v"], "item_id": [10, 20], "label": [1, 0], "words": words}
        pq.write_table(pa.table(rows), source / f"{name}.parquet")
    made = recipe(
        source,
        interactions={
            "files": {name: f"{name}.parquet" for name in ("train", "valid", "test")},
            "user_id": "user_id",
            "item_id": "item_id",
            "label": "label",
            "features": {"words": {"kind": "id_list"}},
        },
        items=items(),
        split={"strategy": "given"},
        pairs=[
            {
                "file": "items.parquet",
                "anchor": "title",
                "positive": "bands",
                "perspective": "relation",
            }
        ],
    )
    _, folder, _ = prepared_rows(tmp_path, made)
    pairs = pq.read_table(folder / "pairs.parquet").column("positive").to_pylist()
    assert pairs == ["AC|DC", "Queen", "Sony, Inc.", "a;b", "x\x1fy"]
    lines = pq.read_table(folder / "vocab" / "words.parquet").to_pylist()
    ids = {line["row"]: line["id"] for line in lines}
    found = {}
    for name in ("train", "valid", "test"):
        rows = pq.read_table(folder / "interactions" / name / "part-00000.parquet").to_pylist()
        found |= {row["row_id"]: [ids[w] for w in row["words"]] for row in rows}
    # "a" of the text file is an id that training does not know.
    assert found == {0: ["a|b", "c"], 1: ["c"], 2: ["c"], 3: ["c"], 4: ["a|b", "c"], 5: ["c"]}


NESTED = {
    "struct": [{"a": 1}] * 5,
    "list of lists": [[["a"]]] * 5,
    "list of structs": [[{"a": 1}]] * 5,
}


@pytest.mark.parametrize("kind", NESTED)
def test_what_is_neither_a_value_nor_a_list_of_values_is_refused(tmp_path, kind):
    for index, changes in enumerate((
        {"features": {"bands": {"kind": "id_list"}}},
        {"tags": {"bands": {"kind": "id_list"}}},
        {"text": ["bands"]},
    )):
        made = recipe(source_with(tmp_path, pa.array(NESTED[kind])), items=items(**changes))
        with pytest.raises(
            ValueError, match=r"'bands' \(items.*expected one value a row, or a list"
        ):
            prepared(tmp_path / str(index), made)


@pytest.mark.parametrize("feature", [{}, {"kind": "numeric"}, {"hash_rows": 9}])
def test_a_list_read_as_a_plain_feature_is_refused(tmp_path, feature):
    made = recipe(
        source_with(tmp_path, pa.array([[1], [2, 3], [], [4], [5]])),
        items=items(features={"bands": feature}),
    )
    pattern = (
        r"'bands' \(items.features.bands\) holds .*\[\]; expected one value a row \(kind: id_list"
    )
    with pytest.raises(ValueError, match=pattern):
        prepared(tmp_path, made)


def test_tags_have_any_name_and_features_may_be_called_like_them(tmp_path):
    made = recipe(
        source_with(tmp_path, pa.array(BANDS)),
        items=items(
            tags={
                "rock bands; live": {"column": "bands", "kind": "id_list"},
                "x": {"column": "title"},
            },
            features={"tags_x": {"column": "bands", "kind": "id_list"}},
        ),
    )
    manifest, _, rows = prepared_rows(tmp_path, made)
    assert rows["10"]["tags"] == ["AC|DC", "Queen", "T10"] and rows["50"]["tags"] == ["T50"]
    assert {table.name: table.num_rows for table in manifest.tables}["tags_x"] == 6
