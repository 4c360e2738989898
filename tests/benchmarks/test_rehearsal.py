"""Pieces of a start that docs/rehearsal.md counts with: values drawn, vectors copied. `make bench`.

python -m pytest tests/benchmarks/test_rehearsal.py -m bench -s
"""

import time

import numpy as np
import pytest
import torch

from embedding.features.store import FeatureTable
from recsys.sharding.shards import TableShard, fill, initialise
from tests.feature_tables import write_table

pytestmark = pytest.mark.bench
NUM_ROWS = 200_000


def shard(table: str, weight: torch.Tensor) -> TableShard:
    """A whole table as one shard."""
    return TableShard(
        table=table,
        weight=weight,
        row=0,
        column=0,
        num_rows_of_table=len(weight),
        num_columns_of_table=weight.shape[1],
        replicated=False,
    )


def seconds_of(work) -> float:
    """Processor seconds, the least of three."""
    found = []
    for _ in range(3):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def test_values_are_drawn_and_vectors_copied_at_these_rates(tmp_path):
    values = torch.empty(NUM_ROWS, 128)
    drawn = seconds_of(lambda: initialise(shard("item_id", values), 0.01, 0))
    vectors = np.random.default_rng(0).standard_normal((NUM_ROWS, 1024), dtype=np.float32)
    write_table(tmp_path / "semantic", vectors.astype(np.float16))
    table = FeatureTable(tmp_path / "semantic")
    stored = torch.zeros(NUM_ROWS, 1032, dtype=torch.float16)
    copied = seconds_of(lambda: fill(shard("semantic", stored), table))
    print(
        f"\ndrawn: {values.nbytes / drawn / 1e9:.2f} GB a processor second; "
        f"copied from the page cache: {stored.nbytes / copied / 1e9:.2f} GB"
    )
    assert float(values.abs().max()) <= 0.01 and bool(stored[1:, 1024].all())
