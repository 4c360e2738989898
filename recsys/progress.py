"""Progress of long work: a bar on a terminal, a line a minute in a log.

Called by every job that goes through many things. Work of less than a minute leaves no line in a log.
"""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LINE_SECONDS = 60.0
"""Between two lines of a log."""


class _Log:
    """Takes what tqdm writes; says every line of it, without the signs that move a cursor."""

    def write(self, text: str) -> None:
        """Say the text, if there is any."""
        # Imported here: processes that go through their share of the work start without Hydra.
        from recsys.job import say

        if line := text.strip():
            say(line)

    def flush(self) -> None:
        """A no-op: `say` flushes."""


def progress_bar(
    things: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    is_shown: bool = True,
) -> tqdm:
    """Return tqdm's bar over things, or one that is moved by `update`.

    A log, where stderr is no terminal, gets lines instead: once a minute how many are done, for how long
    it has run and how long it will still run.

    Args:
        desc: what is done.
        unit: what a thing is called.
        total: number of things; None: that of `things`, and if they have none, no end is foretold.
        initial: things that were done before.
        is_shown: False where another rank shows it.
    """
    given = {"desc": desc, "unit": unit, "total": total, "initial": initial, "leave": False}
    if not is_shown:
        return tqdm(things, **given, disable=True)
    if sys.stderr.isatty():
        return tqdm(things, **given, dynamic_ncols=True)
    if total is None and not hasattr(things, "__len__"):
        form = "{desc}: {n_fmt} {unit}s, {elapsed} so far{postfix}"
    else:
        form = (
            "{desc}: {n_fmt} of {total_fmt} {unit}s ({percentage:.0f} %), {elapsed} so far, "
            "{remaining} to go{postfix}"
        )
    line = {"mininterval": _LINE_SECONDS, "delay": _LINE_SECONDS, "miniters": 1}
    return tqdm(things, **given, **line, file=_Log(), bar_format=form)
