"""Progress of long work: lines in a log, a bar on a terminal."""

import io
import re
import sys

import pytest

from recsys.progress import progress_bar


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def lines_of(capsys):
    """What was said, without the seconds before each line."""
    captured = capsys.readouterr()
    assert not captured.err
    return [re.sub(r"^\[ *[\d.]+s\] ", "", line) for line in captured.out.splitlines()]


def test_a_log_has_a_line_a_minute_with_counts_and_the_time_to_go(clock, capsys):
    for _ in progress_bar(range(10), desc="pairs", unit="step"):
        clock.now += 25
    assert lines_of(capsys) == [
        "pairs: 3 of 10 steps (30 %), 01:15 so far, 02:55 to go",
        "pairs: 6 of 10 steps (60 %), 02:30 so far, 01:40 to go",
        "pairs: 9 of 10 steps (90 %), 03:45 so far, 00:25 to go",
    ]


def test_what_goes_on_and_is_moved_by_hand_says_what_is_noted_beside_it(clock, capsys):
    with progress_bar(desc="train", unit="step", total=50, initial=40) as bar:
        bar.set_postfix_str("loss 0.5", refresh=False)
        for _ in range(3):
            clock.now += 3600
            bar.update(1)
    first, *others = lines_of(capsys)
    assert first == "train: 41 of 50 steps (82 %), 1:00:00 so far, 9:00:00 to go, loss 0.5"
    assert len(others) == 2


def test_without_a_known_end_none_is_foretold(clock, capsys):
    with progress_bar(desc="routes", unit="item") as bar:
        clock.now += 61
        bar.update(500)
    assert lines_of(capsys) == ["routes: 500 items, 01:01 so far"]


def test_quick_work_and_work_that_another_rank_shows_leave_no_line(clock, capsys):
    for _ in progress_bar(range(10), desc="pairs", unit="step"):
        clock.now += 5.9
    for _ in progress_bar(range(10), desc="pairs", unit="step", is_shown=False):
        clock.now += 100
    assert lines_of(capsys) == []


def test_a_terminal_has_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert list(progress_bar(range(12), desc="pairs", unit="step")) == list(range(12))
    assert "pairs:   0%|" in sys.stderr.getvalue()
    assert not capsys.readouterr().out
