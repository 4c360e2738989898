"""Raw text: values of any type as the text by which prepare tells them apart.

prepare compares values as text, and the type of a column decides the text: 7 is "7" in a column of whole
numbers and "7.0" in one of floating-point numbers. A request has JSON values, whose types are others;
`as_written` gives them the text of the column (FeatureSpec.column_type). Called by encode.py, and by
prepare's sources for the SQL. Shapes: N values.
"""

import datetime
import decimal
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.sql import quoted
from recsys.errors import UserError

_TYPES = {
    "integer": r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP(_S|_MS|_NS)?",
    "timestamp with zone": "TIMESTAMP WITH TIME ZONE",
    "text": r"VARCHAR|BLOB|ENUM\(.*",
}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_TIME = re.compile(r"\d{4,}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d*[1-9])?(\+00)?", re.ASCII)
_TRUTHS = {
    "true": "true",
    "1": "true",
    "1.0": "true",
    "false": "false",
    "0": "false",
    "0.0": "false",
}
_EXACT = decimal.Context(prec=1100, traps=[])


def column_type(kinds: Iterable[str]) -> str | None:
    """Return what a manifest says of a column's type; None where files differ, or it has no rule.

    Args:
        kinds: the database's type of the column in each file; of lists, the type of an element counts.
    """
    found = {_type_of(kind.removesuffix("[]")) for kind in kinds}
    return found.pop() if len(found) == 1 else None


def _type_of(kind: str) -> str | None:
    if digits := re.fullmatch(r"DECIMAL\(\d+,(\d+)\)", kind):
        return f"decimal({digits[1]})"
    return next((name for name, form in _TYPES.items() if re.fullmatch(form, kind)), None)


def text_sql(column: str, kind: str) -> str:
    """SQL of a raw column as text, or as a list of texts.

    Args:
        kind: the database's type of the column.
    """
    name = quoted(column)
    if kind.endswith("[]"):
        if kind == "BLOB[]":
            return f"list_transform({name}, lambda x: decode(x))"
        return f"CAST({name} AS VARCHAR[])"
    if kind == "BLOB":
        # Text that its writer did not call text. What is no UTF-8 is refused where a recipe names
        # the column (see `undecodable_columns`); elsewhere nobody reads it.
        return f"decode({name})"
    if kind in ("FLOAT", "DOUBLE"):
        # What pandas writes where there is no value. As text: of numbers the database believes
        # a Parquet file's bounds, which leave nan out.
        return f"nullif(CAST({name} AS VARCHAR), 'nan')"
    return f"CAST({name} AS VARCHAR)"


def texts_of(raw: pa.Array) -> pa.Array:
    """Return raw values as text [N], as `text_sql` does; nan is "nan", which is a null outside lists.

    Raises:
        UserError: the values are of a type that is no text, number, boolean or time, or are bytes that
            are not UTF-8.
    """
    if pa.types.is_dictionary(raw.type):
        raw = raw.dictionary_decode()
    kind = raw.type
    if pa.types.is_floating(kind):
        return _mapped(raw, functools.partial(_float_text, bits=kind.bit_width))
    if pa.types.is_decimal(kind):
        return _mapped(raw, lambda number: format(number, "f"))
    if pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        return _time_texts(raw)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_text |= pa.types.is_string_view(kind) or pa.types.is_null(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_date(kind)
    if not (is_text or is_number or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(f"values of type {kind}: expected texts, numbers, booleans or times")
    try:
        return raw.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        raise UserError(f"values of type {kind}: bytes that are not UTF-8 text") from error


def _mapped(raw: pa.Array, text_of: Callable) -> pa.Array:
    texts = [None if value is None else text_of(value) for value in raw.to_pylist()]
    return pa.array(texts, pa.large_string())


def _float_text(number: float, bits: int) -> str:
    if bits == 64:
        return repr(number)
    # The fewest digits that tell the 32-bit number from its neighbours, written as Python writes them.
    return repr(float(str(np.float32(number))))


def _time_texts(raw: pa.Array) -> pa.Array:
    """Return times as text; in UTC where they have a zone, zeros behind the second left out."""
    has_zone = pa.types.is_timestamp(raw.type) and raw.type.tz is not None
    if has_zone:
        raw = raw.cast(pa.timestamp(raw.type.unit))
    texts = raw.cast(pa.large_string())
    texts = pc.replace_substring_regex(texts, r"(\.\d*?)0+$", r"\1")
    texts = pc.replace_substring_regex(texts, r"\.$", "")
    return pc.replace_substring_regex(texts, "^(.+)$", r"\1+00") if has_zone else texts


def single_texts(raw: pa.Array, written: str | None = None) -> pa.Array:
    """Return values that are no lists as text [N]; a number that is none (nan) is a null.

    Args:
        written: type of the column that prepare read them from (`as_written`).
    """
    texts = as_written(texts_of(raw), written)
    if pa.types.is_floating(raw.type) or written in ("float32", "float64"):
        texts = pc.if_else(pc.equal(texts, "nan"), None, texts)
    return texts


def json_array(values: Sequence[Any]) -> pa.Array:
    """Return JSON values of one feature, of mixed types, as texts [N], or as lists of texts.

    Raises:
        UserError: lists and single values are mixed, or one is an object.
    """
    try:
        if any(isinstance(value, list) for value in values):
            lists = [None if value is None else [_json_text(v) for v in value] for value in values]
            return pa.array(lists, pa.list_(pa.large_string()))
        return pa.array([_json_text(value) for value in values], pa.large_string())
    except (TypeError, pa.ArrowException) as error:
        raise UserError(f"{str(values)[:80]}: expected texts, numbers or truth values") from error


def _json_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else value


# The text of a value in a column of another type than its own


def as_written(texts: pa.Array, written: str | None) -> pa.Array:
    """Return texts [N] as prepare wrote the same values from a column of a type.

    A text that is no value of the type stays as it is: no vocabulary has it. So does every text where
    the type is None (an earlier manifest) or `text`.

    Args:
        written: FeatureSpec.column_type.
    """
    rule = _rule(written or "text")
    if rule is None:
        return texts
    encoded = texts.dictionary_encode()
    known = pa.array([rule(text) for text in encoded.dictionary.to_pylist()], pa.large_string())
    return known.take(encoded.indices)


def _rule(written: str) -> Callable[[str], str] | None:
    if written.startswith("decimal("):
        return functools.partial(_as_decimal, scale=int(written[8:-1]))
    rules: dict[str, Callable[[str], str]] = {
        "integer": _as_integer,
        "float32": functools.partial(_as_float, bits=32),
        "float64": functools.partial(_as_float, bits=64),
        "boolean": lambda text: _TRUTHS.get(text.strip().lower(), text),
        "timestamp": functools.partial(_as_time, has_zone=False),
        "timestamp with zone": functools.partial(_as_time, has_zone=True),
    }
    return rules.get(written)


def _as_integer(text: str) -> str:
    try:
        # A number with a point or an exponent is a double, whose digits may not be all of it.
        return str(int(text) if text.strip("+-0123456789 ") == "" else _whole(float(text)))
    except ValueError:
        return text


def _whole(number: float) -> int:
    """Return a number that has no fraction as an integer.

    Raises:
        ValueError: it has one, or is no finite number.
    """
    if not number.is_integer():
        raise ValueError(number)
    return int(number)


def _as_float(text: str, bits: int) -> str:
    try:
        with np.errstate(over="ignore"):  # infinite in 32 bits
            return _float_text(float(text), bits)
    except ValueError:
        return text


def _as_decimal(text: str, scale: int) -> str:
    if not _NUMBER.fullmatch(text.strip()):
        return text
    number = decimal.Decimal(text.strip())
    rounded = number.quantize(decimal.Decimal(1).scaleb(-scale), context=_EXACT)
    if rounded != number:
        return text
    return format(rounded or abs(rounded), "f")


def _as_time(text: str, has_zone: bool) -> str:
    if _TIME.fullmatch(text):
        return text
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return text
    # A time without a zone means UTC, as in the database.
    if moment.tzinfo is not None:
        moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    return _time_texts(pa.array([moment], pa.timestamp("us", tz="UTC" if has_zone else None)))[
        0
    ].as_py()
