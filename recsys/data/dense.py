"""Dense features: raw numbers to scaled floats, as SQL for prepare and on Arrow arrays for a request.

In: raw columns. Out: float32, NaN where the number is missing. Both sides of the rule stand one after the
other, and a test compares them. Text and cleaning are those of encode.py; then:

1. Number. A null, a blank and NaN are missing. So are, in a request, a text that is no number and one
   that float32 cannot hold; prepare refuses these.
2. Scale. `standard`: (x - mean) / deviation of the training values. `log`: the same of
   sign(x) ln(1 + |x|). Both are cut at MOST_DEVIATIONS. `none`: x.
3. Missing: NaN, which the model reads as a flag; the mean where no training row lacks the number.

Shapes: N raw values.
"""

import math

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.codes import codes_of
from recsys.data.encode import cleaned
from recsys.data.numbers import number_of, number_sql
from recsys.data.raw_text import single_texts
from recsys.data.sql import literal
from recsys.errors import UserError
from recsys.schema import DenseSpec, TableSpec

MOST_DEVIATIONS = 100.0
"""Bound of a scaled number on either side of 0: an outlier does not swamp the other inputs."""
_LARGEST = float(np.finfo(np.float32).max)


def missing_value(spec: DenseSpec) -> float:
    """Return what stands for a missing number: NaN, or the mean where training rows have all numbers."""
    if spec.has_missing:
        return math.nan
    return spec.mean if spec.scale == "none" else 0.0


def transformed_sql(spec: DenseSpec, value: str) -> str:
    """SQL of the number of which mean and deviation are taken: NULL where it is missing.

    Args:
        value: SQL of a cleaned text.
    """
    number = number_sql(value)
    if spec.scale != "log":
        return number
    return f"sign({number}) * ln(1 + abs({number}))"


def dense_sql(spec: DenseSpec, value: str) -> str:
    """SQL of the scaled number of a cleaned text as FLOAT: never NULL."""
    number = transformed_sql(spec, value)
    if spec.scale != "none":
        scaled = f"({number} - {_double(spec.mean)}) / {_double(spec.deviation)}"
        number = f"least({MOST_DEVIATIONS}, greatest(-{MOST_DEVIATIONS}, {scaled}))"
    is_there = f"abs({number_sql(value)}) <= {_double(_LARGEST)}"
    missing = _double(missing_value(spec))
    return f"CAST(CASE WHEN {is_there} THEN {number} ELSE {missing} END AS FLOAT)"


def _double(number: float) -> str:
    # As text: SQL would read the digits as decimals, which are not the same numbers.
    return f"{literal(repr(number))}::DOUBLE"


def encode_dense(spec: DenseSpec, raw: pa.Array | pa.ChunkedArray) -> NDArray[np.float32]:
    """Return the scaled numbers of raw values [N], as `dense_sql` gives them.

    Args:
        raw: a column of the raw file, or of JSON values (`json_array`) [N].

    Raises:
        UserError: the values are lists, or of a type that cannot be read.
    """
    values = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        raise UserError(f"{spec.name}: values of type {values.type}, expected one number each")
    rules = TableSpec(name=spec.name, num_rows=1, kind="dense", extract=spec.extract)
    texts = cleaned(rules, single_texts(values, spec.column_type))
    codes_N, known = codes_of(pa.chunked_array([texts]))
    scaled = [_scaled(spec, number_of(text)) for text in known]
    # A null has code -1: the last entry.
    return np.array([*scaled, missing_value(spec)], dtype=np.float32)[codes_N]


def _scaled(spec: DenseSpec, number: float | None) -> float:
    if number is None or abs(number) > _LARGEST:
        return missing_value(spec)
    if spec.scale == "none":
        return number
    if spec.scale == "log":
        number = math.copysign(math.log(1 + abs(number)), number)
    scaled = (number - spec.mean) / spec.deviation
    return min(MOST_DEVIATIONS, max(-MOST_DEVIATIONS, scaled))
