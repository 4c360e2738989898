"""launch/recommend.py on the tiny bundle: one process and two, killed and started again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recsys.serving.recommender import Recommender

PROGRAM = Path(__file__).resolve().parents[2] / "launch" / "recommend.py"


def lists(folder: Path) -> list[dict]:
    assert (folder / "files.json").is_file()
    return pq.read_table(folder / "parts").to_pylist()


@pytest.fixture(scope="module")
def whole(job, tiny_bundle, tmp_path_factory):
    """The lists of all users, made by one process."""
    folder = tmp_path_factory.mktemp("lists") / "whole"
    keys = ["k=5", "users_per_part=7", "users_per_batch=4"]
    done = job("recommend", f"bundle={tiny_bundle}", *keys, f"out={folder}")
    assert done.returncode == 0, done.stderr
    assert f"results: {folder}" in done.stdout and "next: python -c" in done.stdout
    return lists(folder)


def test_lists_are_those_of_the_recommender(whole, tiny_bundle):
    recommender = Recommender.open(tiny_bundle)
    users = list(dict.fromkeys(row["user"] for row in whole))
    assert len(users) == recommender.bundle.vocabularies["user_id"].num_rows - 1
    for user in users[::10]:
        answer = recommender.recommend(user=user, k=5)
        rows = [row for row in whole if row["user"] == user]
        assert [row["item"] for row in rows] == [item.id for item in answer.items]
        assert [row["score"] for row in rows] == pytest.approx(
            [i.score for i in answer.items], abs=1e-6
        )


def test_two_ranks_make_the_lists_of_one(job, whole, tiny_bundle, tmp_path):
    keys = ["k=5", "users_per_part=7", "users_per_batch=4"]
    done = job("recommend", f"bundle={tiny_bundle}", *keys, f"out={tmp_path / 'two'}", ranks=2)
    assert done.returncode == 0, done.stderr
    two = lists(tmp_path / "two")
    assert [(r["user"], r["item"]) for r in two] == [(r["user"], r["item"]) for r in whole]


def test_killed_job_leaves_whole_parts_and_goes_on(job, tiny_bundle, tmp_path):
    keys = [f"bundle={tiny_bundle}", "k=5", "users_per_part=1", "users_per_batch=1"]
    keys.append(f"out={tmp_path / 'killed'}")
    parts = tmp_path / "killed" / "parts"
    process = subprocess.Popen([sys.executable, str(PROGRAM), *keys], cwd=tmp_path)
    ends = time.monotonic() + 120
    while len(list(parts.glob("part-*"))) < 3 and time.monotonic() < ends:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in parts.glob("part-*.parquet")}
    assert len(there) >= 3
    assert all(pq.read_metadata(path).num_rows == 5 for path in there), "every part is whole"
    done = job("recommend", *keys)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == before for path, before in there.items())
    rows = lists(tmp_path / "killed")
    assert len(rows) == 5 * len(list(parts.iterdir())), "no half-written file is left"


def test_bundle_that_is_none_is_refused_by_name(job, tmp_path):
    done = job("recommend", f"bundle={tmp_path}")
    assert done.returncode == 1
    assert f"error: {tmp_path / 'bundle.json'}: no bundle here" in done.stderr
