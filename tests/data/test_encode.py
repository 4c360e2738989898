"""Both sides of every encoding rule: SQL and Arrow give the same rows for any value."""

import dataclasses
import datetime
import decimal
import subprocess
import sys

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.encode import (
    ListedIds,
    cleaned,
    elements,
    hashed_row,
    list_rows_sql,
    row_sql,
    rows_of,
    value_sql,
)
from recsys.data.numbers import number_of, number_sql
from recsys.data.raw_text import single_texts, text_sql
from recsys.errors import UserError
from recsys.schema import TableSpec

NASTY = st.text(
    st.sampled_from(list("aAbB19.|,;-+' \t\n\r\"\\\u00a0\u2003\u3000\u200b")), max_size=8
)
LETTERS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
ACCENTS = st.sampled_from(["\u00e9", "e\u0301", "\u5bd2|\u51ac", "\u212b", "A\u030a", "\U0001f40d"])
TEXTS = st.one_of(st.none(), NASTY, LETTERS, ACCENTS)
NUMBERS = st.one_of(
    st.none(),
    st.floats().map(repr),
    st.integers(-(10**30), 10**30).map(str),
    st.text(st.sampled_from(list("019.+-eEinfa_ \t\u0661")), max_size=7),
    st.sampled_from(["inf", "-Infinity", "nan", "+-1", "1e400", "5.", ".5", "0x1", "1\u00a0"]),
)
PATTERNS = (
    r"(\d+)",
    r"^(.)",
    r"(?i)(b)|a",
    r"[(]?([a-z]+)$",
    r"(a)|(b)",
    r".(?P<two>..)",
    "x*(|a)",
)
PLAIN = TableSpec(name="t", num_rows=9, kind="vocab", vocabulary="vocab/t.parquet")
LISTED = dataclasses.replace(PLAIN, separator="|")
HASHED = dataclasses.replace(PLAIN, kind="hash", num_rows=5)
BUCKETS = dataclasses.replace(PLAIN, kind="bucket", num_rows=6, cuts=(-1.5, 0.0, 0.1, 1e20))


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def by_sql(connection, table, raw, ids):
    """The rows of raw values by the database: a list for each."""
    given = pa.table({"key": np.arange(len(raw)), "raw": raw})
    connection.register("given", given)
    known = pa.table({
        "id": pa.array(ids, pa.string()),
        "row": np.arange(1, len(ids) + 1, dtype="i4"),
    })
    connection.register("known", known)
    kind = connection.execute("DESCRIBE SELECT raw FROM given").fetchall()[0][1]
    value = value_sql(table, "raw", is_list_column=kind.endswith("[]"))
    relation = (
        f"SELECT key, {value} AS value FROM (SELECT key, {text_sql('raw', kind)} AS raw FROM given)"
    )
    if table.is_list:
        query = list_rows_sql(table, relation, "known")
    else:
        join, row = row_sql(table, "r.value", "known", "v")
        query = f"SELECT r.key, {row} AS value FROM ({relation}) r {join} ORDER BY r.key"
    found = [[] for _ in range(len(raw))]
    for key, row in connection.execute(query).fetchall():
        found[key].append(row)
    return found


def on_arrow(table, raw, ids):
    """The same without a database."""
    vocabulary = ListedIds({text: row for row, text in enumerate(ids, start=1)})
    if not table.is_list:
        return [
            [row] for row in rows_of(table, cleaned(table, single_texts(raw)), vocabulary).tolist()
        ]
    texts, parents = elements(table, raw)
    found = [[] for _ in range(len(raw))]
    for row, parent in zip(
        rows_of(table, texts, vocabulary).tolist(), parents.tolist(), strict=True
    ):
        if row:
            found[parent].append(row)
    return found


def ids_among(connection, table, raw):
    """Some of the ids that the database finds in raw values: a vocabulary that lacks others."""
    texts = cleaned(table, single_texts(raw)) if not table.is_list else elements(table, raw)[0]
    return sorted({text for text in texts.to_pylist() if text is not None})[::2]


def assert_both_agree(connection, table, raw):
    ids = ids_among(connection, table, raw)
    assert on_arrow(table, raw, ids) == by_sql(connection, table, raw, ids)


@settings(max_examples=40)
@given(
    values=st.lists(TEXTS, min_size=1, max_size=60),
    extract=st.sampled_from((None, *PATTERNS)),
    separator=st.sampled_from((None, "|", ", ", "ab")),
    kind=st.sampled_from((PLAIN, HASHED)),
)
def test_any_text_has_the_same_rows_on_both_sides(connection, values, extract, separator, kind):
    table = dataclasses.replace(kind, extract=extract, separator=separator)
    assert_both_agree(connection, table, pa.array(values, pa.string()))


@settings(max_examples=40)
@given(
    values=st.lists(st.one_of(st.none(), st.lists(TEXTS, max_size=5)), min_size=1, max_size=30),
    extract=st.sampled_from((None, *PATTERNS)),
    kind=st.sampled_from((PLAIN, HASHED)),
)
def test_any_column_of_lists_has_the_same_rows_on_both_sides(connection, values, extract, kind):
    table = dataclasses.replace(kind, extract=extract, separator="|")
    assert_both_agree(connection, table, pa.array(values, pa.list_(pa.string())))


@settings(max_examples=40)
@given(values=st.lists(NUMBERS, min_size=1, max_size=100))
def test_any_number_falls_into_the_same_bucket_on_both_sides(connection, values):
    raw = pa.array(values, pa.string())
    assert_both_agree(connection, BUCKETS, raw)
    connection.register("given", pa.table({"value": raw}))
    numbers = connection.execute(f"SELECT {number_sql('value')} FROM given").fetchall()
    assert [number_of(v) if v is not None else None for v in values] == [n for (n,) in numbers]


TYPED = {
    "bool": st.booleans(),
    "int8": st.integers(-128, 127),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float": st.floats(width=32),
    "double": st.floats(),
    "date32": st.dates(datetime.date(1000, 1, 1)),
    "timestamp[ms]": st.datetimes(datetime.datetime(1700, 1, 1)).map(
        lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000)
    ),
    "timestamp[us]": st.datetimes(datetime.datetime(1700, 1, 1)),
}


def arrow_type(name):
    return {"float": pa.float32(), "double": pa.float64()}.get(name) or pa.type_for_alias(name)


@settings(max_examples=12)
@given(data=st.data())
@pytest.mark.parametrize("name", TYPED)
def test_any_typed_value_is_the_same_text_on_both_sides(connection, name, data):
    values = data.draw(st.lists(st.none() | TYPED[name], min_size=1, max_size=40))
    raw = pa.array(values, arrow_type(name))
    assert_both_agree(connection, PLAIN, raw)
    assert_both_agree(connection, HASHED, raw)
    lists = pa.array([values, None, [], values[::-1]], pa.list_(raw.type))
    assert_both_agree(connection, LISTED, lists)


def test_decimals_times_zones_categories_and_bytes_are_the_same_text_on_both_sides(connection):
    noon = datetime.datetime(2024, 6, 1, 12, tzinfo=datetime.UTC)
    for raw in (
        pa.array([decimal.Decimal("1.50"), decimal.Decimal("-0.00"), None], pa.decimal128(9, 2)),
        pa.array([decimal.Decimal("0E-8")], pa.decimal128(18, 8)),
        pa.array([noon, None], pa.timestamp("us", tz="UTC")),
        pa.array([noon, noon.replace(microsecond=120000)], pa.timestamp("us", tz="Asia/Tokyo")),
        pa.array([1_700_000_000_123_456_700, 0], pa.timestamp("ns")),
        pa.array([datetime.time(1, 2, 3, 400), None]),
        pa.array(["a", None, "b", "a"]).dictionary_encode(),
        pa.array([b"a", None, "\u5bd2".encode()], pa.binary()),
        pa.array(["a", None], pa.large_string()),
        pa.nulls(2),
    ):
        if raw.type == pa.null():
            assert on_arrow(PLAIN, raw, []) == [[0], [0]]
        else:
            assert_both_agree(connection, PLAIN, raw)


def test_a_hashed_row_is_the_last_eight_bytes_of_the_md5():
    """The MD5 of "a" ends in 31 c3 99 e2 69 77 26 61."""
    assert hashed_row("a", 10) == 1 + 0x61267769E299C331 % 9


@pytest.mark.parametrize(
    ("table", "raw", "said"),
    [
        (PLAIN, pa.array([b"\xff"]), "not UTF-8"),
        (PLAIN, pa.array([{"a": 1}]), "type struct<a: int64>: expected texts, numbers"),
    ],
)
def test_values_that_are_no_text_are_refused(table, raw, said):
    with pytest.raises(UserError, match=said):
        cleaned(table, single_texts(raw))


WITHOUT = """
import importlib.abc, sys
import numpy as np

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("duckdb", "torch", "torchrec", "fbgemm_gpu"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
import pyarrow as pa
from pathlib import Path
from recsys.data.encode import Encoder
from recsys.data.raw_text import json_array
from recsys.schema import FeatureSpec, Manifest, TableSpec

class Sorted:
    def rows_of(self, ids):
        return np.array([{"7.0": 3}.get(i, 0) for i in ids])

table = TableSpec(name="t", num_rows=4, kind="vocab", vocabulary="vocab/t.parquet")
feature = FeatureSpec(
    name="f", table="t", source="user", side="user", is_list=False, column_type="float64"
)
manifest = Manifest(
    name="m", tables=(table,), features=(feature,), splits={}, num_user_rows=0, num_item_rows=0
)
encoder = Encoder(Path("nowhere"), manifest, {"t": Sorted()})
print(encoder.encode("f", json_array([7, "7", None, "x", 7.0]))[0].tolist())
"""


def test_a_server_encodes_without_database_and_torch_by_a_vocabulary_of_its_own(repository):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=repository, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[3, 3, 0, 0, 3]\n"), done.stderr
