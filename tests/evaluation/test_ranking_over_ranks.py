"""Rankings, lists, values of rows and importance over ranks equal those of one process alone."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys.runtime.ranks import ALONE
from tests.evaluation.ranking_worker import ranked
from tests.evaluation.test_candidates import drawn_world
from tests.processes import worker_result

WORKER = Path(__file__).with_name("ranking_worker.py")
MAX_ROWS = (5, 100, 200_000)
"""One user, so that ranks have none; too few for all items of 20 users; and enough."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A prepared log in row groups of 13 rows; and what one process finds in it, by pairs at most."""
    folder = tmp_path_factory.mktemp("ranking")
    manifest, workspace = drawn_world(folder)
    for file in (name for split in manifest.splits.values() for name in split.files):
        path = workspace / "prepared" / file
        pq.write_table(pq.ParquetFile(path).read(), path, row_group_size=13)
    alone = [json.loads(json.dumps(ranked(workspace, most, ALONE))) for most in MAX_ROWS]
    return workspace, alone


def about(value):
    """The value, its numbers equal but for the rounding of sums."""
    if isinstance(value, dict):
        return {name: about(part) for name, part in value.items()}
    if isinstance(value, list):
        return [about(part) for part in value]
    return pytest.approx(value, rel=1e-12, abs=1e-12) if isinstance(value, float) else value


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_every_rank_finds_what_one_process_finds(world, num_ranks):
    workspace, alone = world
    found = worker_result(WORKER, workspace, *MAX_ROWS, ranks=num_ranks)
    assert len(found) == num_ranks
    for of_rank in found:
        assert of_rank == about(alone)
    assert [one["lists"] is None for one in alone] == [True, True, False]
    assert [one["rankings"]["num_users"] for one in alone] == [1, 9, 9]
