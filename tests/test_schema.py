"""What jobs leave beside their results when they are killed."""

import os
import subprocess
import sys

from recsys.schema import forget_killed


def test_leftovers_of_processes_that_are_gone_are_removed_and_no_others(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = f".prepared.{os.getpid()}"
    for name in (
        f".prepared.{gone.pid}",
        f".prepared.{gone.pid}.old",
        mine,
        "prepared",
        ".prepared.x",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    forget_killed(tmp_path, "prepared")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([
        mine,
        "prepared",
        ".prepared.x",
    ])
