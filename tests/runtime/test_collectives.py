"""Exchanges between two ranks: values arrive, and an error on either rank is raised on both at once."""

from pathlib import Path
from typing import Any

import pytest

from recsys.errors import UserError
from recsys.runtime.collectives import gather, share, sharing_errors
from tests.processes import worker_result

WORKER = Path(__file__).with_name("collectives_worker.py")
USER = {
    "user": ("UserError", "key x=1: expected 2"),
    "storage": ("StorageError", "disk full"),
    "diverged": ("NonFiniteError", "loss is nan"),
}
OWN = USER | {
    "refused": ("PermissionError", "[Errno 13] Permission denied: 'file'"),
    "memory": ("MemoryError", "3 GiB"),
    "ours": ("KeyError", "'column'"),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("collectives")
    return worker_result(WORKER, folder, ranks=2)


def cases_of(result: dict[str, Any], prefix: str) -> dict[str, list[dict[str, Any]]]:
    """What each rank raised, by case."""
    names = [name for name in result["ranks"][0]["cases"] if name.startswith(prefix)]
    assert names
    return {name: [rank["cases"][name] for rank in result["ranks"]] for name in names}


@pytest.mark.parametrize(
    "exchange",
    [
        "block",
        "before_an_exchange",
        "in_work_of_rank_0",
        "in_gather",
        "in_share",
        "in_a_sum",
        "in_rows",
    ],
)
def test_an_error_on_either_rank_is_raised_on_both(result, exchange):
    for name, ranks in cases_of(result, f"{exchange}/").items():
        _, kind, rank = name.split("/")
        failed, other = ranks[int(rank)], ranks[1 - int(rank)]
        assert tuple(failed["raised"][:2]) == OWN[kind], name
        if kind in USER or kind == "refused":
            assert other["raised"] == failed["raised"], name
        else:
            assert other["raised"][0] == "RankError", name
            assert OWN[kind][0] in other["raised"][1] and OWN[kind][1] in other["raised"][1], name
            assert f"rank {rank}" in other["raised"][1], name


def test_only_a_user_error_is_shown_as_a_sentence_on_the_other_rank(result):
    for name, ranks in cases_of(result, "in_gather/").items():
        kind = name.split("/")[1]
        assert [rank["raised"][2] for rank in ranks] == [kind in USER] * 2, name


def test_no_rank_waits_for_one_that_failed(result):
    seconds = [case["seconds"] for ranks in cases_of(result, "").values() for case in ranks]
    assert max(seconds) < 20, "the group's timeout is 60 s"


@pytest.mark.parametrize("where", ["writing", "snapshot", "buffers", "manifest"])
def test_a_memory_error_in_one_ranks_save_ends_the_save_of_both(result, where):
    for name, ranks in cases_of(result, f"save/{where}/").items():
        rank = int(name.rsplit("/", 1)[1])
        failed, other = ranks[rank]["raised"], ranks[1 - rank]["raised"]
        if where == "buffers":  # the user can mend it
            assert failed[0] == "StorageError" and other == failed, name
            assert "train.save_in_background=false" in failed[1], name
        else:
            assert failed == ["MemoryError", "no memory", False], name
            assert other[0] == "RankError" and "MemoryError: no memory" in other[1], name


def test_a_failed_save_leaves_nothing_behind(result):
    assert result["left"] == []


def test_exchanges_match_after_every_failure(result):
    expected = {
        "gathered": ["rank 0", "rank 1"],
        "shared": 0,
        "shared from rank 1": 1,
    }
    first, second = (rank["values"] for rank in result["ranks"])
    assert first == second == expected


def test_one_process_exchanges_nothing():
    assert gather(lambda: 3) == [3]
    assert share(lambda: 3) == 3
    with pytest.raises(UserError, match="own"), sharing_errors():
        raise UserError("own")
