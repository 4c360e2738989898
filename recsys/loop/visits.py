"""Visits of a day on disk: one JSON line each, appended as they happen, so that a killed day goes on.

    <arm>/visits/day-003.jsonl    {"user": 17, "shown": [4, 9, ...], "liked": [9], "version": "..."}

A line is written before the visitor's events are sent; the last line's may be sent twice, which the event
store notices. Called by arm.py and result.py.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO


@dataclass(frozen=True)
class Visit:
    """One visitor's visit; pictures and users by index."""

    user: int
    shown: list[int]
    """Pictures shown, from the first place."""
    liked: list[int]
    """Those that were bookmarked."""
    version: str = ""
    """Bundle that chose them; "": a rule."""


def visits_file(folder: Path, day: int) -> Path:
    """Return the file of an arm's visits of a day."""
    return folder / "visits" / f"day-{day:03d}.jsonl"


def read_visits(path: Path) -> list[Visit]:
    """Return the visits of a file that are whole; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [
        Visit(**json.loads(line)) for line in lines[:-1]
    ]  # behind the last end of a line: a rest


@contextmanager
def visits_writer(path: Path) -> Iterator["VisitsWriter"]:
    """Open a file to append visits after those that are whole; a line without its end is cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        yield VisitsWriter(stream)


class VisitsWriter:
    """Appends visits to a file."""

    def __init__(self, stream: IO[bytes]):
        self._stream = stream

    def add(self, visit: Visit) -> None:
        """Append one visit."""
        self._stream.write(json.dumps(asdict(visit)).encode() + b"\n")
        self._stream.flush()
