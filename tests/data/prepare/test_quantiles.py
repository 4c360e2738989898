"""Quantiles: those of the database and of a slow reference, in memory far below the column."""

import math
from fractions import Fraction
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.prepare.engine import Engine
from recsys.data.prepare.quantiles import quantiles

NUMBERS = st.one_of(
    st.lists(st.integers(-3, 3) | st.integers(-(2**62), 2**62)),
    st.lists(st.sampled_from([-1.5, 0.0, 2.0]) | st.floats(allow_nan=False)),
)
SHARES = st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7 + 0.1, 0.8, 0.9, 0.95, 1.0])


@given(values=NUMBERS, nulls=st.integers(0, 2), shares=st.lists(SHARES, min_size=1, max_size=4))
def test_quantiles_are_those_of_quantile_disc_and_of_sorting(values, nulls, shares):
    kind = pa.float64() if any(isinstance(v, float) for v in values) else pa.int64()
    column = pa.table({"value": pa.array([*values, *[None] * nulls], kind)})
    with duckdb.connect() as connection:
        connection.register("given_values", column)
        found = quantiles(Engine(connection, Path()), "SELECT value FROM given_values", shares)
        query = f"SELECT quantile_disc(value, {shares}) FROM given_values"
        (expected,) = connection.execute(query).fetchall()[0]
    ordered = sorted(values)
    slow = [
        ordered[max(1, math.ceil(Fraction(str(s)) * len(ordered))) - 1] for s in shares if values
    ]
    assert found == slow == (expected or [])


def test_quantiles_of_a_column_larger_than_memory_are_exact(tmp_path):
    with duckdb.connect(str(tmp_path / "work.duckdb")) as connection:
        connection.execute(
            f"SET memory_limit='20MB'; SET threads=1; SET temp_directory='{tmp_path}'"
        )
        # Every number below 2,000,000 once, in no order: 1,234,567 and 2,000,000 have no common divisor.
        connection.execute(
            "CREATE TABLE log AS SELECT (range * 1234567) % 2000000 AS value FROM range(2000000)"
        )
        with pytest.raises(duckdb.OutOfMemoryException):
            connection.execute("SELECT quantile_disc(value, 0.8) FROM log").fetchall()
        found = quantiles(Engine(connection, Path()), "SELECT value FROM log", [0.8, 0.9])
    assert found == [1_599_999, 1_799_999]
