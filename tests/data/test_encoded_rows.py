"""Encoder: raw rows get the rows that prepare wrote, for every kind of column, user, item and context."""

import csv
import dataclasses
import datetime
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from recsys.config import from_config
from recsys.data.dataset import Dataset
from recsys.data.dense import encode_dense
from recsys.data.encode import Encoder
from recsys.data.loader import features_of
from recsys.data.prepare.pipeline import prepare
from recsys.data.raw_text import json_array
from recsys.data.recipe import SPLITS, Recipe
from recsys.demo.world import WorldConfig, draw_world
from recsys.errors import UserError
from recsys.schema import history_of as sequence_of
from recsys.schema import read_manifest, weights_column
from tests.data.small_log import prepared, recipe, write_source
from tests.loaders import loader_in_order

TEXTS = st.one_of(
    st.text(st.sampled_from(list("aAbB19.|,- \t\u00a0\u3000\u200b")), max_size=7),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4),
    st.sampled_from([
        "\u00e9",
        "e\u0301",
        "\u5bd2|\u51ac",
        "\u212b",
        "\u00c5",
        "",
        " ",
        "|",
        "nan",
    ]),
)
KINDS = {
    "plain": {"column": "text"},
    "rare": {"column": "text", "min_count": 3},
    "hashed": {"column": "text", "hash_rows": 7},
    "letter": {"column": "text", "extract": "(?i)[^a]?([a-z])"},
    "digits": {"column": "text", "extract": r"(\d+)", "kind": "numeric", "quantiles": 3},
    "joined": {"column": "text", "kind": "id_list"},
    "comma": {"column": "text", "kind": "id_list", "separator": ", ", "min_count": 2},
    "joined_hash": {"column": "text", "kind": "id_list", "hash_rows": 5},
    "joined_letter": {"column": "text", "kind": "id_list", "extract": r"^\W*(.*)$"},
    "listed": {"column": "texts", "kind": "id_list", "min_count": 2},
    "listed_hash": {"column": "texts", "kind": "id_list", "hash_rows": 4},
    "listed_letter": {"column": "texts", "kind": "id_list", "extract": "([a-zA-Z])"},
    "listed_numbers": {"column": "numbers", "kind": "id_list"},
    "weighted": {"column": "marks", "kind": "id_list", "weight_separator": ":"},
    "weighted_list": {"column": "marked", "kind": "id_list", "weight_separator": "->"},
    "weighted_hash": {
        "column": "marks",
        "kind": "id_list",
        "weight_separator": ":",
        "hash_rows": 5,
    },
    "quantiles": {"column": "number", "kind": "numeric", "quantiles": 4},
    "cuts": {"column": "number", "kind": "numeric", "cuts": [-10, 0.1, 0.30000000000000004, 500]},
    "single": {"column": "single"},
    "single_cuts": {"column": "single", "kind": "numeric", "cuts": [0.1, 1]},
    "number_id": {"column": "number"},
    "whole": {"column": "whole"},
    "flag": {},
    "money": {},
    "moment": {},
    "day": {},
}
"""A feature for every rule; the column is the feature's own name where none is given."""
DENSE = {
    "standard": {"column": "amount"},
    "log": {"column": "amount", "scale": "log"},
    "plain_number": {"column": "amount", "scale": "none"},
    "single_log": {"column": "single", "scale": "log"},
    "money_number": {"column": "money"},
    "digits_number": {"column": "text", "extract": r"(\d+)"},
    "whole_number": {"column": "whole"},
}
"""A dense feature for every scale and type."""


KIND_TYPES = {
    "text": "text",
    "texts": "text",
    "marks": "text",
    "marked": "text",
    "numbers": "integer",
    "number": "float64",
    "single": "float32",
    "whole": "integer",
    "flag": "boolean",
    "money": "decimal(2)",
    "moment": "timestamp",
    "day": "date",
}
TYPES = {"user_id": "text"} | dict.fromkeys(("item_id", "history", "history_recent"), "integer")


def raw_columns(rng, num_rows, texts):
    """Columns for KINDS; a fifth of all values are null."""

    def some(values, kind):
        found = [values[i] for i in rng.integers(len(values), size=num_rows)]
        return pa.array([None if rng.random() < 0.2 else value for value in found], kind)

    marks = [
        "a:0.5|b:2",
        "a",
        " b :1e-3| c:d: 0.25 |a:0",
        ":3|a:7",
        "",
        "x:0|y:0",
        "\u00e9:1.5|b: +2",
    ]
    amounts = [0.0, -0.0, 1e30, -3.25, 1e-30, 7.0, float("nan"), 1e-7, 41.5]
    numbers = [0.0, 0.1, 0.30000000000000004, -10.0, 1e-7, 123456.75, float("nan"), 1e15, 500.0]
    return {
        "text": some(texts, pa.string()),
        "texts": some([texts[i : i + 3] for i in range(len(texts) - 3)] + [[], [None]], None),
        "marks": some(marks, pa.string()),
        "marked": some([m.replace(":", "->").split("|") for m in marks], pa.list_(pa.string())),
        "numbers": some([[1, 2], [3], [], [2, 2, 1], [None, 7]], pa.list_(pa.int32())),
        "number": some(numbers, pa.float64()),
        "amount": some(amounts, pa.float64()),
        "single": some([0.1, 1.5, 12345.5, 3e-5, float("nan")], pa.float32()),
        "whole": some([0, -1, 2**62], pa.int64()),
        "flag": some([True, False], pa.bool_()),
        "money": some([decimal.Decimal("1.50"), decimal.Decimal("-2.00")], pa.decimal128(9, 2)),
        "moment": some(
            [datetime.datetime(2024, 6, 1, 12), datetime.datetime(1999, 1, 1, 0, 0, 1, 250_000)],
            pa.timestamp("us"),
        ),
        "day": some([datetime.date(2024, 6, 1), datetime.date(1969, 12, 31)], pa.date32()),
    }


def raw_tables(seed, texts, num_users=12, num_items=15, num_rows=90):
    """A log, users and items; the log has users and items that the files or the training rows lack."""
    rng = np.random.default_rng(seed)
    user_ids = [f"u\u00e9 {n}" for n in range(num_users)]
    item_ids = list(range(100, 100 + num_items))
    log = {
        "user_id": [user_ids[i] for i in rng.integers(num_users, size=num_rows)],
        "item_id": pa.array(rng.choice(item_ids, num_rows)),
        "label": pa.array(rng.integers(2, size=num_rows)),
        **raw_columns(rng, num_rows, texts),
    }
    users = {"user_id": user_ids[:-3], **raw_columns(rng, num_users - 3, texts)}
    items = {"item_id": item_ids[:-2], **raw_columns(rng, num_items - 2, texts)}
    return {"interaction": pa.table(log), "user": pa.table(users), "item": pa.table(items)}


def recipe_of(folder):
    def features(prefix):
        dense = {name: {"kind": "dense", **options} for name, options in DENSE.items()}
        kinds = (KINDS | dense).items()
        return {f"{prefix}_{name}": {"column": name, **options} for name, options in kinds}

    return from_config(
        Recipe,
        {
            "name": "drawn",
            "source": str(folder),
            "interactions": {
                "file": "interaction.parquet",
                "user_id": "user_id",
                "item_id": "item_id",
                "label": "label",
                "unknown_items": "keep",
                "user_min_count": 4,
                "features": features("c"),
            },
            "users": {"file": "user.parquet", "features": features("u")},
            "items": {"file": "item.parquet", "features": features("i")},
            "split": {"strategy": "random", "fractions": [0.6, 0.2, 0.2]},
            "history": {"max_length": 4, "recent_length": 2},
        },
        "data",
    )


ROWS = {"user_id": "user_row", "item_id": "item_row"}
"""Columns of the prepared log that are called otherwise than their feature."""


def lists_of(values, lengths):
    """Values end to end as one list for each row."""
    return [part.tolist() for part in np.split(values, np.cumsum(lengths)[:-1])]


def assert_encoded_as_prepared(workspace, raw):
    """Encode every raw column, compare it with what prepare stored, and return the features compared.

    Args:
        raw: a table of the raw columns by source: `interaction`, `user`, `item`.
    """
    manifest = read_manifest(workspace)
    prepared = workspace / "prepared"
    encoder = Encoder(prepared, manifest)
    names = [feature.name for feature in manifest.features]
    datasets = [Dataset(prepared, manifest, split=split, features=names) for split in SPLITS]
    for feature in manifest.features:
        if feature.source == "history":
            found, stored = history_of(encoder, feature, datasets[-1])
        elif feature.source == "interaction" or feature.name in ROWS:
            found, stored = log_of(encoder, feature, datasets, raw["interaction"])
        else:
            column = by_name(manifest, feature.source)
            rows, _ = encoder.encode(f"{feature.source}_id", raw[feature.source].column(column))
            found = encoder.encode(feature.name, raw[feature.source].column(feature.column))
            found, stored = lists_of(*found), lists_of(*datasets[0].side_ids(feature, rows))
        assert found == stored, feature.name
        if feature.is_weighted:
            assert_weights_are_as_prepared(encoder, feature, datasets, raw)
        assert len(stored) > 0
        assert max(map(len, stored)) <= feature.max_ids
    return names


def assert_weights_are_as_prepared(encoder, feature, datasets, raw):
    """Encode the weights of a raw column of lists, and compare them with those that prepare stored."""
    column = raw[feature.source].column(feature.column).combine_chunks()
    _, lengths, weights = encoder.encode_weighted(feature.name, column)
    assert weights.dtype == np.float32
    if feature.source == "interaction":
        rows = pa.concat_tables([dataset.read(0, dataset.num_rows) for dataset in datasets])
        stored = rows.sort_by("row_id").column(weights_column(feature.name)).to_pylist()
    else:
        id_column = raw[feature.source].column(f"{feature.source}_id")
        rows, _ = encoder.encode(f"{feature.source}_id", id_column)
        stored = lists_of(datasets[0].side_weights(feature, rows), lengths)
    assert lists_of(weights, lengths) == stored, feature.name


def json_forms(column):
    """The values of a column as a request may have them: as JSON, whole, with a point, and as text."""

    def plain(value):
        if isinstance(value, list):
            return [plain(v) for v in value]
        if isinstance(value, datetime.date):
            return value.isoformat()
        number = float(value) if isinstance(value, decimal.Decimal) else value
        return None if number != number else number

    def changed(values, change):
        if isinstance(values, list):
            return [changed(value, change) for value in values]
        return values if values is None or isinstance(values, str) else change(values)

    def pointed(value):
        return float(value) if type(value) is int and float(value) == value else value

    values = [plain(value) for value in column.to_pylist()]
    yield "as JSON", values
    yield "whole", changed(values, lambda v: int(v) if float(v).is_integer() else v)
    yield "with a point", changed(values, pointed)
    yield "as text", changed(values, json.dumps)


def assert_requests_are_encoded_as_prepared(workspace, raw):
    """Encode every form of every raw value, and compare it with the raw column's rows."""
    manifest = read_manifest(workspace)
    encoder = Encoder(workspace / "prepared", manifest)
    for feature in manifest.features:
        if feature.source == "history":
            continue
        of_log = feature.source == "interaction" or feature.name in ROWS
        column = raw["interaction" if of_log else feature.source].column(feature.column)
        expected = lists_of(*encoder.encode(feature.name, column))
        for form, values in json_forms(column):
            found = lists_of(*encoder.encode(feature.name, json_array(values)))
            assert found == expected, f"{feature.name}, {feature.column_type}: {form}"


def assert_numbers_are_scaled_as_prepared(workspace, raw):
    """Scale every form of every raw number, and compare it with what the loader reads."""
    manifest = read_manifest(workspace)
    prepared = workspace / "prepared"
    encoder = Encoder(prepared, manifest)
    names = [feature.name for feature in manifest.dense]
    datasets = [Dataset(prepared, manifest, split=split, features=names) for split in SPLITS]
    for feature in manifest.dense:
        column = raw[feature.source].column(feature.column)
        if feature.source == "interaction":
            rows = pa.concat_tables([dataset.read(0, dataset.num_rows) for dataset in datasets])
            stored = rows.sort_by("row_id").column(feature.name).to_numpy()
        else:
            id_column = by_name(manifest, feature.source)
            rows, _ = encoder.encode(f"{feature.source}_id", raw[feature.source].column(id_column))
            stored = datasets[0].side_numbers(feature, rows)
        np.testing.assert_array_equal(encode_dense(feature, column), stored, feature.name)
        assert stored.dtype == np.float32
        for form, values in json_forms(column):
            found = encode_dense(feature, json_array(values))
            np.testing.assert_array_equal(found, stored, f"{feature.name}: {form}")
    return names


def by_name(manifest, side):
    """The column of the id in the users or items file."""
    return manifest.recipe[f"{side}s"][f"{side}_id"]


def log_of(encoder, feature, datasets, log):
    """A feature of the log by row id, encoded and as the splits have it; without drawn negatives."""
    stored = {}
    for dataset in datasets:
        rows = dataset.read(0, dataset.num_rows)
        column = rows.column(ROWS.get(feature.name, feature.name))
        stored |= zip(rows.column("row_id").to_pylist(), column.to_pylist(), strict=True)
    encoded = lists_of(*encoder.encode(feature.name, log.column(feature.column)))
    ids = sorted(row_id for row_id in stored if row_id < len(encoded))
    values = [stored[row_id] for row_id in ids]
    return [encoded[i] for i in ids], values if feature.is_list else [[v] for v in values]


def history_of(encoder, feature, dataset):
    """The last ids of every user's stored sequence, encoded from ids and as the loader reads them."""
    listed = pq.read_table(dataset.prepared / "vocab" / "item_id.parquet")
    ids = dict(zip(listed["row"].to_pylist(), listed["id"].to_pylist(), strict=True))
    sequences, offsets = dataset.histories(sequence_of(feature.name))
    raw = [[ids[row] for row in part] for part in lists_of(sequences, np.diff(offsets))]
    encoded = encoder.encode(feature.name, pa.array(raw, pa.list_(pa.string())))
    users = np.arange(len(raw))
    return lists_of(*encoded), lists_of(*dataset.history_ids(feature, users, np.diff(offsets)))


@settings(max_examples=3, phases=(Phase.explicit, Phase.generate))
@given(texts=st.lists(TEXTS, min_size=24, max_size=24), seed=st.integers(0, 2**32 - 1))
def test_raw_rows_are_encoded_as_prepare_encodes_them(tmp_path_factory, texts, seed):
    folder = tmp_path_factory.mktemp("drawn")
    raw = raw_tables(seed, texts)
    for source, table in raw.items():
        pq.write_table(table, folder / f"{source}.parquet")
    prepare(recipe_of(folder), folder / "w", memory_limit="500MB", threads=1)
    compared = assert_encoded_as_prepared(folder / "w", raw)
    assert len(compared) == 3 * len(KINDS) + 4
    assert_requests_are_encoded_as_prepared(folder / "w", raw)
    assert len(assert_numbers_are_scaled_as_prepared(folder / "w", raw)) == 3 * len(DENSE)
    types = {f.name: f.column_type for f in read_manifest(folder / "w").features}
    assert types == TYPES | {
        f"{side}_{name}": KIND_TYPES[options.get("column", name)]
        for side in "cui"
        for name, options in KINDS.items()
    }


def read_texts(path, **options):
    """A CSV file as a table of texts, an empty field as null."""
    with open(path, encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, **options))
    columns = zip(*rows, strict=True)
    return pa.table({name: [text or None for text in texts] for name, *texts in columns})


def raw_texts(folder):
    return {
        source: read_texts(folder / file)
        for source, file in {"interaction": "log.csv", "item": "items.csv"}.items()
    }


LOG_FEATURES = {"stars": {"column": "rating"}, "time_of": {"column": "time", "kind": "numeric"}}
LOG_WITHOUT_LABEL = {
    "file": "log.csv",
    "user_id": "user_id",
    "item_id": "item_id",
    "timestamp": "time",
    "negatives": {"per_positive": 1},
    "features": LOG_FEATURES,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"interactions__features": LOG_FEATURES},
        {"interactions": LOG_WITHOUT_LABEL},
        {"split": {"strategy": "random", "fractions": [0.4, 0.3, 0.3], "seed": 2}},
        {"split": {"strategy": "time", "fractions": [0.4, 0.3, 0.3]}, "history__scope": "past"},
    ],
    ids=["per_user_time", "negatives", "random", "past"],
)
def test_rows_of_csv_files_are_encoded_for_every_recipe(tmp_path, changes):
    source = write_source(tmp_path)
    prepared(tmp_path, recipe(source, **changes))
    assert_encoded_as_prepared(tmp_path / "w", raw_texts(source))


def test_rows_of_three_given_files_are_encoded_without_users_and_items(tmp_path):
    lines = [f"{i % 2},site{i % 5},{i / 7}" for i in range(30)]
    files = {"train": lines[:18], "valid": lines[18:24], "test": lines[24:]}
    for split, part in files.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(["label,site,price", *part]) + "\n")
    made = from_config(
        Recipe,
        {
            "name": "clicks",
            "source": str(tmp_path),
            "interactions": {
                "files": {split: f"{split}.csv" for split in files},
                "label": "label",
                "features": {"site": {}, "price": {"kind": "numeric", "quantiles": 4}},
            },
            "split": {"strategy": "given"},
            "history": {"max_length": 0, "recent_length": 0},
        },
        "data",
    )
    prepared(tmp_path, made)
    raw = pa.concat_tables([read_texts(tmp_path / f"{split}.csv") for split in files])
    assert assert_encoded_as_prepared(tmp_path / "w", {"interaction": raw}) == ["site", "price"]


@pytest.mark.parametrize("kind", ["csv", "integer", "float"])
def test_a_number_of_a_request_finds_the_id_that_the_files_write_for_it(tmp_path, kind):
    source = write_source(tmp_path)
    changes = {}
    if kind != "csv":
        number = pa.int64() if kind == "integer" else pa.float64()
        for name in ("log", "items"):
            table = read_texts(source / f"{name}.csv")
            at = table.column_names.index("item_id")
            pq.write_table(
                table.set_column(at, "item_id", table["item_id"].cast(number)),
                source / f"{name}.parquet",
            )
        changes = {"interactions__file": "log.parquet", "items__file": "items.parquet"}
    _, workspace = prepared(tmp_path, recipe(source, **changes))
    manifest = read_manifest(workspace)
    encoder = Encoder(workspace / "prepared", manifest)
    rows = encoder.encode("item_id", json_array([10, "10", 99]))[0].tolist()
    assert rows[0] == rows[1] != 0 and rows[2] == 0
    pointed = encoder.encode("item_id", json_array([10.0, "10.0"]))[0].tolist()
    # In a text file "10.0" is another text.
    assert pointed == ([0, 0] if kind == "csv" else rows[:2])
    liked = encoder.encode("history", json_array([[10, 20], None, []]))
    assert [len(part) for part in lists_of(*liked)] == [2, 0, 0]
    # An earlier manifest does not know the type: values are compared as they are written.
    features = [dataclasses.replace(f, column_type=None) for f in manifest.features]
    earlier = Encoder(
        workspace / "prepared", dataclasses.replace(manifest, features=tuple(features))
    )
    found = earlier.encode("item_id", json_array([10, 10.0]))[0].tolist()
    assert found == ([0, rows[0]] if kind == "float" else [rows[0], 0])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Workspace of the small log."""
    folder = tmp_path_factory.mktemp("small")
    return prepared(folder, recipe(write_source(folder)))[1]


def test_unknown_null_and_unreadable_values_have_row_zero_and_are_no_part_of_a_list(small):
    encoder = Encoder(small / "prepared", read_manifest(small))
    rows, lengths = encoder.encode("year", pa.array(["1990", None, "soon", "1980"]))
    assert (rows.tolist(), lengths.tolist()) == ([2, 0, 0, 1], [1, 1, 1, 1])
    rows, lengths = encoder.encode("genres", pa.array(["red|nothing| round ", None, "|"]))
    assert (rows.tolist(), lengths.tolist()) == ([1, 2], [2, 0, 0])
    assert encoder.encode("item_id", pa.array([99, 10]))[0].tolist() == [0, 1]


def test_a_list_is_cut_to_the_longest_prepared_one_a_history_to_its_end(small):
    encoder = Encoder(small / "prepared", read_manifest(small))
    longest = ["x", "blue", "round", "red", "red", "round"]
    assert lists_of(*encoder.encode("genres", pa.array([longest, ["red"]]))) == [[3, 2, 1], [1]]
    items = pa.array([["10", "20", "unknown", "30", "40", None]])
    ten, twenty, thirty, forty = encoder.encode("item_id", pa.array(["10", "20", "30", "40"]))[0]
    assert lists_of(*encoder.encode("history", items)) == [[twenty, thirty, forty]]
    assert lists_of(*encoder.encode("history_recent", items)) == [[forty]]
    assert ten not in (twenty, thirty, forty, 0)


def test_encoded_raw_rows_are_the_features_of_the_loaders_batch(small):
    """Rows of the test split: their raw ids, and the columns of their items."""
    names = ["genres", "user_id", "item_id", "year"]
    data = Dataset(small / "prepared", read_manifest(small), split="test", features=names)
    loader = loader_in_order(data, 8)
    (batch,) = loader.batches(0)
    raw = raw_texts(small.parent)
    log = raw["interaction"].take(batch.row_id_B[: batch.num_real].tolist())
    items = raw["item"]
    of_log = items.take([items["item_id"].to_pylist().index(i) for i in log["item_id"].to_pylist()])
    encoder = Encoder(small / "prepared", data.manifest)
    columns = {**{name: of_log[name] for name in of_log.column_names}, "user_id": log["user_id"]}
    request = features_of({name: encoder.encode(name, columns[name]) for name in names}, 8).sparse
    assert request.keys() == batch.features.sparse.keys() == names
    assert request.values().tolist() == batch.features.sparse.values().tolist()
    assert request.lengths().tolist() == batch.features.sparse.lengths().tolist()


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        (
            "years",
            ["1990"],
            "feature 'years': not in the manifest, which has item_id, genres, year",
        ),
        ("year", [["1990"]], "year: values of type list<item: string>, expected one value each"),
        ("history", ["10"], "item_id: values of type string, expected lists of ids"),
        ("year", [{"a": 1}], "values of type struct"),
    ],
)
def test_a_request_that_cannot_be_encoded_is_refused(small, name, raw, said):
    encoder = Encoder(small / "prepared", read_manifest(small))
    with pytest.raises(UserError, match=said):
        encoder.encode(name, pa.array(raw))


def as_version_1(workspace):
    """Write the manifest as the version before wrote it."""
    file = workspace / "prepared" / "manifest.json"
    content = json.loads(file.read_text())
    content["version"] = 1
    kept = {"tables": ("name", "num_rows", "kind")}
    kept["features"] = ("name", "table", "source", "side", "is_list")
    for key, names in kept.items():
        content[key] = [{name: entry[name] for name in names} for entry in content[key]]
    file.write_text(json.dumps(content))


def test_a_manifest_of_version_1_is_read_but_encodes_nothing(tmp_path):
    made, workspace = prepared(tmp_path, recipe(write_source(tmp_path)))
    as_version_1(workspace)
    manifest = read_manifest(workspace)
    assert manifest.version == 1
    assert [table.num_rows for table in manifest.tables] == [t.num_rows for t in made.tables]
    assert len(
        Dataset(workspace / "prepared", manifest, split="train", features=["year"]).read(0, 2)
    )
    with pytest.raises(UserError, match=r"manifest \(version 1, expected 2\).*prepare.py"):
        Encoder(workspace / "prepared", manifest)


def configured(name, repository, **changes):
    """A recipe of configs/data without its pairs."""
    node = OmegaConf.load(repository / "configs" / "data" / f"{name}.yaml")
    content = OmegaConf.to_container(OmegaConf.merge(node, changes))
    return from_config(Recipe, {**content, "pairs": []}, "data")


def test_rows_of_the_drawn_world_are_encoded_as_prepared(repository, tmp_path):
    world = WorldConfig(num_items=50, num_users=30, num_exposures=300, num_captions=20)
    draw_world(world, tmp_path, processes=1, say=lambda text: None)
    made = configured("demo", repository, source=str(tmp_path / "raw"))
    prepare(made, tmp_path, memory_limit="500MB", threads=1)
    files = {"interaction": "interactions", "user": "users", "item": "items"}
    raw = {s: pq.read_table(tmp_path / "raw" / f"{name}.parquet") for s, name in files.items()}
    assert {"age_group", "country", "history"} <= set(assert_encoded_as_prepared(tmp_path, raw))


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("movielens", {"year", "director", "keywords", "history"}),
        ("anime", {"season", "studios", "user_id"}),
    ],
)
@pytest.mark.slow
def test_rows_of_real_data_are_encoded_as_prepared(real_data, repository, tmp_path, name, features):
    folder = real_data / name
    made = configured(name, repository, source=str(folder), items={"image": None})
    prepare(made, tmp_path, memory_limit="1GB", threads=1)
    raw = {"interaction": folder / "ratings.csv", "item": folder / "items.csv"}
    tables = {source: read_texts(path) for source, path in raw.items()}
    assert features <= set(assert_encoded_as_prepared(tmp_path, tables))
