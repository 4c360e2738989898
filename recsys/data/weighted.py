"""Weighted lists: elements such as `red:0.7` cut into an id and its weight, as SQL and on texts.

In: elements of an id_list, trimmed. Out: ids and weights. Both sides of the rule stand one after the
other, and a test compares them. The text after the last separator is the weight, a number of 0 or more;
without a separator it is 1. prepare refuses other weights with row and column, a request is refused too.
Shapes: V ids.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recsys.data.numbers import number_of, number_sql
from recsys.data.sql import literal
from recsys.errors import UserError


def parts_sql(element: str, separator: str) -> tuple[str, str]:
    """Return SQL of the id of an element, and of its weight as FLOAT: NULL where it is no number."""
    parts = f"string_split({element}, {literal(separator)})"
    id_parts = f"list_slice({parts}, 1, len({parts}) - 1)"
    id_text = f"array_to_string({id_parts}, {literal(separator)})"
    number = f"try_cast({number_sql(f'trim({parts}[len({parts})])')} AS FLOAT)"
    return (
        f"CASE WHEN len({parts}) > 1 THEN {id_text} ELSE {element} END",
        f"CASE WHEN len({parts}) > 1 THEN {number} ELSE 1::FLOAT END",
    )


def unusable_sql(elements: str, separator: str) -> str:
    """SQL of the condition that a list of texts has an element whose weight is none."""
    _, weight = parts_sql("trim(x)", separator)
    is_usable = f"coalesce(isfinite({weight}) AND {weight} >= 0, false)"
    return f"len(list_filter({elements}, lambda x: NOT {is_usable})) > 0"


def split_elements(
    name: str, elements: Sequence[str], separator: str
) -> tuple[list[str], NDArray[np.float32]]:
    """Return the ids and weights [V] of elements, as `parts_sql` does.

    Args:
        name: of the table, for messages.

    Raises:
        UserError: a weight is no number of 0 or more.
    """
    ids, weights_V = [], np.ones(len(elements), np.float32)
    for place, element in enumerate(elements):
        *parts, last = element.split(separator)
        if not parts:
            ids.append(element)
            continue
        number = number_of(last)
        if number is None or not 0 <= number <= float(np.finfo(np.float32).max):
            raise UserError(
                f"{name}: {element!r}: expected a weight of 0 or more after {separator!r}"
            )
        ids.append(separator.join(parts))
        weights_V[place] = number
    return ids, weights_V


def normalised(weights_V: NDArray[np.float32], lengths_N: NDArray) -> NDArray[np.float32]:
    """Return weights [V] over their sum in each list [N]; a list of zeros stays zero.

    A sum of vectors with these weights is their weighted mean.
    """
    row_V = np.repeat(np.arange(len(lengths_N)), lengths_N)
    sums_N = np.bincount(row_V, weights=weights_V, minlength=len(lengths_N))
    return (weights_V / np.where(sums_N > 0, sums_N, 1)[row_V]).astype(np.float32)
