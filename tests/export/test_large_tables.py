"""A table larger than the memory that an export may take is exported and served block by block."""

import json
from pathlib import Path

import pytest

from tests.export.measured_export import BLOCK_BYTES
from tests.export.untrained import make_workspace, write_run
from tests.processes import run_worker

NUM_ROWS, DIM = 2_000_000, 48
TABLE_BYTES = 4 * NUM_ROWS * DIM
"""Of the checkpoint, whose last column holds first-order weights."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_of_an_export_and_of_its_bundle_does_not_grow_with_a_table(tmp_path, one_process):
    model = {"name": "umair_fps", "embedding_dim": DIM}
    for name, hash_rows in (("small", 7), ("large", NUM_ROWS)):
        workspace = make_workspace(tmp_path / name, hash_rows=hash_rows)
        write_run(workspace, "run", one_process, model)
    script = Path(__file__).with_name("measured_export.py")
    places = [f"{tmp_path}/small:fp32", f"{tmp_path}/large:fp32", f"{tmp_path}/large:int8"]
    said = run_worker(script, *places, ranks=0, seconds=600)
    small, large, int8 = (
        json.loads(line) for line in said.splitlines() if line.startswith('{"exporting"')
    )
    assert large["table"] > 4 * NUM_ROWS * (DIM - 1)
    assert int8["table"] > NUM_ROWS * (DIM - 1)
    for found in (large, int8):
        # Some copies of one block; the table is a hundred times as large as a block.
        assert found["exporting"] - small["exporting"] < 8 * BLOCK_BYTES < TABLE_BYTES / 10
        assert found["serving"] - small["serving"] < TABLE_BYTES / 16
        assert found["items"] == 5
