"""The terminal the jobs print tables to."""

import sys

from rich.console import Console


def console() -> Console:
    """Return rich's console; where the output is a file or a pipe, wide enough for our tables."""
    return Console() if sys.stdout.isatty() else Console(width=140)
