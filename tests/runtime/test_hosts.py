"""Work that one rank of every host does for the others, on four ranks of two pretended hosts."""

from pathlib import Path

import pytest

from recsys.runtime.hosts import once_a_host
from tests.processes import worker_result

WORKER = Path(__file__).with_name("hosts_worker.py")


@pytest.fixture(scope="module")
def ranks():
    return worker_result(WORKER, ranks=4)


def test_the_first_rank_of_each_host_works_and_its_host_has_the_answer(ranks):
    assert [rank["calls"] for rank in ranks] == [[0], [], [2], []]
    assert [rank["answer"] for rank in ranks] == ["read by rank 0"] * 2 + ["read by rank 2"] * 2


def test_an_error_on_one_host_is_raised_on_every_rank(ranks):
    assert [rank["raised"] for rank in ranks] == ["disk of the second host"] * 4


def test_a_process_alone_works_for_itself():
    assert once_a_host(lambda: 7) == 7
