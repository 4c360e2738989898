"""Dense features being prepared: statistics of the training values, and the SQL of scaled numbers.

In: SQL of the texts of a column. Out: a DenseSpec with its statistics, and the column of a split or an
array by row. recsys/data/dense.py has the rule.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recsys.data.dense import dense_sql, missing_value, transformed_sql
from recsys.data.prepare.engine import Count, Engine, Table, count_rows
from recsys.data.prepare.writing import write_array
from recsys.schema import DenseSpec


class DenseColumn:
    """A dense feature of the log, in the place of a FeatureTable."""

    is_list = False

    def __init__(self, spec: DenseSpec):
        """Args: spec: with the statistics of its training values."""
        self.spec = spec

    def single(self, value: str, alias: str) -> tuple[str, str]:
        """Return SQL of a join, which a number does not need, and of the scaled number of one text."""
        return "", dense_sql(self.spec, value)


def with_statistics(
    engine: Engine, spec: DenseSpec, train: str, *, has_missing: bool, count: Count = count_rows
) -> DenseSpec:
    """Return the spec with mean and deviation of the training values, and whether some are missing.

    Sums are exact (math.fsum) over the distinct values in their order: they do not depend on threads.

    Args:
        train: SQL of (key, value), the cleaned texts of the training rows.
        has_missing: known already; otherwise a null among the values decides.
        count: of the training values.
    """
    transformed = f"SELECT {transformed_sql(spec, 'value')} AS value FROM ({train})"
    counted = engine.create(
        "dense_values", f"SELECT value, n AS num_rows FROM ({count(transformed)}) ORDER BY value"
    )
    total, lacking = engine.one(
        f"SELECT coalesce(sum(num_rows) FILTER (WHERE value IS NOT NULL), 0), "
        f"coalesce(sum(num_rows) FILTER (WHERE value IS NULL), 0) FROM {counted}"
    )
    mean, deviation = 0.0, 1.0
    if total:
        mean = _sum(engine, counted, 0.0, power=1) / int(total)
        deviation = math.sqrt(_sum(engine, counted, mean, power=2) / int(total)) or 1.0
    engine.drop(counted)
    is_lacking = has_missing or bool(lacking)
    return dataclasses.replace(spec, mean=mean, deviation=deviation, has_missing=is_lacking)


def _sum(engine: Engine, counted: Table, mean: float, *, power: int) -> float:
    """Return the sum of (value - mean) ** power over all rows."""

    def terms() -> Iterator[list[float]]:
        query = f"SELECT value, num_rows FROM {counted} WHERE value IS NOT NULL"
        for batch in engine.batches(query):
            value, num_rows = (batch.column(n).to_numpy() for n in ("value", "num_rows"))
            yield ((value - mean) ** power * num_rows).tolist()

    return math.fsum(itertools.chain.from_iterable(terms()))


def dense_query(spec: DenseSpec, relation: str) -> str:
    """SQL of (key, scaled number) by key, of SQL of (key, cleaned text)."""
    return f"SELECT r.key, {dense_sql(spec, 'r.value')} AS value FROM ({relation}) r ORDER BY r.key"


def write_dense(
    engine: Engine, spec: DenseSpec, relation: str, folder: Path, num_rows: int
) -> None:
    """Write `<name>.values.npy`, the scaled numbers by user or item row [num_rows].

    Args:
        spec: with the statistics of its training values.
        relation: SQL of (key, value), the cleaned texts.
        folder: `users/` or `items/`.
    """
    write_array(
        engine,
        dense_query(spec, relation),
        folder / f"{spec.name}.values.npy",
        num_rows,
        np.float32,
        fill=missing_value(spec),
    )
