"""Exact quantiles of a column of any length, by counting its distinct values in the database.

Called by split and vocab. The database's own quantile_disc holds every value in memory and cannot
spill; a count by value, a sort and a running sum can.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from recsys.data.prepare.engine import Count, Engine, count_rows


def quantiles(
    engine: Engine, relation: str, shares: Sequence[float], count: Count = count_rows
) -> list[Any]:
    """Return the smallest values at or below which `shares` of the rows lie; [] without any rows.

    The same values as quantile_disc: of N rows in order, number ceil(share x N), at least the first.

    Args:
        relation: SQL of the column `value`; nulls do not count.
        shares: 0 to 1, read as the decimals they are written as: 0.8 of 5 rows is 4.
        count: of the rows of `relation`.
    """
    values = f"SELECT value FROM ({relation}) WHERE value IS NOT NULL"
    counted = engine.create(
        "counted",
        f"SELECT value, n AS num_rows FROM ({count(values)}) ORDER BY value",
        is_temporary=True,
    )
    # A window without PARTITION BY and ORDER BY passes over the table in its order, row by row.
    upto = f"SELECT value, sum(num_rows) OVER (ROWS UNBOUNDED PRECEDING) AS upto FROM {counted}"
    (total,) = engine.one(f"SELECT sum(num_rows) FROM {counted}")
    found: tuple[Any, ...] = ()
    if total:
        ranks = [max(1, math.ceil(Fraction(repr(share)) * total)) for share in shares]
        wanted = ", ".join(f"min(value) FILTER (WHERE upto >= {rank})" for rank in ranks)
        found = engine.one(f"SELECT {wanted} FROM ({upto})")
    engine.drop(counted)
    return list(found)
