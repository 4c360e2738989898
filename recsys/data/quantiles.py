"""Exact quantiles of a column of any length, by counting its distinct values in the database.

Called by split and vocab. The database's own quantile_disc holds every value in memory and cannot
spill; a count by value, a sort and a running sum can.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import duckdb


def quantiles(
    connection: duckdb.DuckDBPyConnection, relation: str, shares: Sequence[float]
) -> list[Any]:
    """Return the smallest values at or below which `shares` of the rows lie; [] without any rows.

    The same values as quantile_disc: of N rows in order, number ceil(share x N), at least the first.

    Args:
        relation: SQL of the column `value`; nulls do not count.
        shares: 0 to 1, read as the decimals they are written as: 0.8 of 5 rows is 4.
    """
    connection.execute(
        f"CREATE TEMP TABLE counted AS SELECT value, count(*) AS num_rows FROM ({relation}) "
        f"WHERE value IS NOT NULL GROUP BY value ORDER BY value"
    )
    # A window without PARTITION BY and ORDER BY passes over the table in its order, row by row.
    upto = "SELECT value, sum(num_rows) OVER (ROWS UNBOUNDED PRECEDING) AS upto FROM counted"
    (total,) = connection.execute("SELECT sum(num_rows) FROM counted").fetchall()[0]
    found: tuple[Any, ...] = ()
    if total:
        ranks = [max(1, math.ceil(Fraction(repr(share)) * total)) for share in shares]
        wanted = ", ".join(f"min(value) FILTER (WHERE upto >= {rank})" for rank in ranks)
        (found,) = connection.execute(f"SELECT {wanted} FROM ({upto})").fetchall()
    connection.execute("DROP TABLE counted")
    return list(found)
