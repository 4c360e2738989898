"""Raw text: a request's number has the text that prepare read from a column of another type."""

import datetime
import decimal

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.raw_text import (
    as_written,
    column_type,
    json_array,
    single_texts,
    text_sql,
)
from recsys.errors import UserError

WHOLE = st.integers(-(2**63), 2**63 - 1)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)
TYPED = {
    "integer": (pa.int64(), WHOLE),
    "float64": (pa.float64(), DOUBLES | st.integers(-(10**6), 10**6).map(float)),
    "float32": (pa.float32(), st.floats(width=32, allow_nan=False, allow_infinity=False)),
    "boolean": (pa.bool_(), st.booleans()),
    "decimal(3)": (
        pa.decimal128(18, 3),
        st.decimals(-(10**9), 10**9, places=3).map(lambda d: d or abs(d)),
    ),
    "text": (pa.string(), st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
}


def forms(value):
    """A value as JSON may write it: the number, and its text; whole or with a point where equal."""
    if isinstance(value, bool):
        return [value, str(value), str(value).lower(), int(value), float(value), str(int(value))]
    if isinstance(value, str):
        return [value]
    found = [str(value)]
    if isinstance(value, float):
        found += [value, repr(value)]
    is_negative_zero = value == 0 and str(value).startswith("-")  # which no integer is
    if value == int(value) and not is_negative_zero:
        found += [int(value), str(int(value)), f"{int(value)}.0"]
        found += [float(value)] if float(value) == value else []
        if isinstance(value, int) and abs(value) > 2**53:
            found.remove(f"{value}.0")  # a double, and maybe another number
    if isinstance(value, decimal.Decimal) and float(value) == value:
        found += [float(value)]
    return found


@settings(max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", TYPED)
def test_every_form_of_a_value_has_the_text_of_its_column(name, data):
    kind, drawn = TYPED[name]
    value = data.draw(drawn)
    raw = pa.array([value], kind)
    with duckdb.connect() as connection:
        connection.register("given", pa.table({"raw": raw}))
        database = connection.execute("DESCRIBE SELECT raw FROM given").fetchall()[0][1]
        query = f"SELECT {text_sql('raw', database)} FROM given"
        (prepared,) = connection.execute(query).fetchall()[0]
    assert column_type([database]) == name
    assert as_written(pa.array([prepared], pa.large_string()), name).to_pylist() == [prepared]
    asked = forms(raw.to_pylist()[0])
    assert single_texts(json_array(asked), name).to_pylist() == [prepared] * len(asked)


@pytest.mark.parametrize(
    ("written", "given_text", "text"),
    [
        ("integer", "7.5", "7.5"),
        ("integer", "seven", "seven"),
        ("integer", "1e400", "1e400"),
        ("integer", " 7 ", "7"),
        ("float64", "7", "7.0"),
        ("float64", "", ""),
        ("float32", "0.1", "0.1"),
        ("float32", "1e300", "inf"),
        ("decimal(2)", "1.005", "1.005"),
        ("decimal(2)", "-0", "0.00"),
        ("decimal(2)", "1e999", "1" + "0" * 999 + ".00"),
        ("boolean", "TRUE", "true"),
        ("boolean", "yes", "yes"),
        ("timestamp", "2024-06-01T12:00:00.250Z", "2024-06-01 12:00:00.25"),
        ("timestamp", "2024-06-01", "2024-06-01 00:00:00"),
        ("timestamp", "2024-06-01 12:00:00.123456789", "2024-06-01 12:00:00.123456789"),
        ("timestamp with zone", "2024-06-01T14:00:00+02:00", "2024-06-01 12:00:00+00"),
        ("timestamp", "noon", "noon"),
        (None, "7.0", "7.0"),
        ("text", "7.0", "7.0"),
    ],
)
def test_a_text_that_is_no_value_of_the_column_stays(written, given_text, text):
    texts = pa.array([given_text, None, given_text], pa.large_string())
    assert as_written(texts, written).to_pylist() == [text, None, text]


def test_the_type_of_a_column_is_recorded_where_all_files_agree():
    assert column_type(["BIGINT", "UTINYINT[]"]) == "integer"
    assert column_type(["BIGINT", "DOUBLE"]) is None
    assert column_type(["ENUM('a', 'b')", "VARCHAR"]) == "text"
    assert column_type(["TIMESTAMP_NS"]) == "timestamp"
    assert column_type(["STRUCT(a INTEGER)"]) is None


def test_json_values_of_mixed_types_are_texts():
    assert json_array([7, 7.5, True, None, "x"]).to_pylist() == ["7", "7.5", "true", None, "x"]
    assert json_array([[1, "a"], None, []]).to_pylist() == [["1", "a"], None, []]
    for mixed in ([[1], 2], [{"a": 1}], [[[1]]]):
        with pytest.raises(UserError, match="expected texts, numbers or truth values"):
            json_array(mixed)


def test_times_of_the_database_are_not_read_again():
    moment = datetime.datetime(1700, 1, 1, 0, 0, 1)
    texts = single_texts(pa.array([moment], pa.timestamp("us")), "timestamp")
    assert texts.to_pylist() == ["1700-01-01 00:00:01"]
