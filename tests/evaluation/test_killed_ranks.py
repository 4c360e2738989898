"""A rank that is killed in an evaluation: the others say so, and the earlier evaluation stays."""

from pathlib import Path

import pytest

from tests.warm_jobs import WARM

WORKER = Path(__file__).with_name("killed_worker.py")


@pytest.mark.parametrize(
    ("stage", "victim"),
    [
        ("predictions", 1),
        pytest.param("metrics", 1, marks=pytest.mark.slow),
        pytest.param("predictions", 0, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_is_gone_is_told_and_nothing_is_left_half_written(tmp_path, stage, victim):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "metrics.json").write_text("earlier")
    done = WARM.run(WORKER, str(tmp_path), stage, str(victim), ranks=2, timeout_seconds=60)
    assert done.returncode == 1
    assert "error: another rank of this job is gone" in done.stderr
    assert "Traceback" not in done.stderr and "fault of Tessera" not in done.stderr
    assert (tmp_path / "earlier" / "metrics.json").read_text() == "earlier"
    assert [path.name for path in (tmp_path / "earlier").iterdir()] == ["metrics.json"]
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    # Rank 0 makes the folder beside; what it leaves when it is killed, the next evaluation removes.
    assert bool(hidden) == (victim == 0)
