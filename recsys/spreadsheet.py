"""CSV files that spreadsheets open: no cell of them is run as a formula.

Called by what lists rows for people: comparisons of models, pictures that cannot be used.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recsys.files import new_file

_PLAIN_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
_FORMULA = re.compile(r"\s*[=+@\uff1d\uff0b\uff20\uff0d-]|[\t\n]")
"""What spreadsheets take for a formula (OWASP, CSV injection), full-width signs included."""


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> int:
    """Write a CSV file and return its rows: readers see all of it or what was there before.

    A text that a spreadsheet would run as a formula gets an apostrophe before it; numbers, also as
    texts, stay as they are.
    """
    count = 0
    with new_file(path) as beside, open(beside, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow([_inert(cell) for cell in row])
            count += 1
    return count


def _inert(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    # Python's writer quotes a line feed, but not a carriage return, which also ends a line.
    text = cell.replace("\r\n", "\n").replace("\r", "\n")
    is_formula = _FORMULA.match(text) and not _PLAIN_NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text
