"""Pages of docs/ as tests read them: files to write, Python to run, commands and what they print.

    `recipes/data/shop.yaml`, new:      a file: the block that follows
    ```python                           a program, or with >>> a dialogue of doctest
    ```console                          "$ command" lines, each followed by its output

In an expected output `...` stands for any text, and white space counts as one space.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
_BLOCK = re.compile(r"(?ms)^(?:`(?P<file>[^`\n]+)`, new:\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$")
_LIKE = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block of a page."""

    kind: str
    """Its language."""
    text: str
    file: str | None
    """Path of the file that it is; None: it is none."""


def blocks_of(name: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = (DOCS / name).read_text(encoding="utf-8")
    return [Block(m["kind"], m["text"], m["file"]) for m in _BLOCK.finditer(text)]


def commands_of(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a console block, each with the output that the page shows."""
    parts = re.split(r"(?m)^\$ ", block.text)
    assert not parts[0].strip(), block.text
    return [(first, rest) for first, _, rest in (part.partition("\n") for part in parts[1:])]


def follow(name: str, folder: Path, jobs: set[str]) -> int:
    """Do in a folder what a page says, in order; return how many commands ran.

    Args:
        jobs: commands of other jobs are left out.
    """
    (folder / "launch").symlink_to(REPOSITORY / "launch")
    number = 0
    for block in blocks_of(name):
        if block.file is not None:
            file = folder / block.file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        elif block.kind == "python" and ">>>" not in block.text:
            run(f"python -c {shlex.quote(block.text)}", folder, shown="")
        elif block.kind == "console":
            for command, shown in commands_of(block):
                if _job(command) in jobs:
                    run(command, folder, shown=shown)
                    number += 1
    return number


def run(command: str, folder: Path, *, shown: str) -> None:
    """Run a command, and compare its output with the one that a page shows."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONIOENCODING": "ascii:replace",  # tables without line-drawing characters
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    assert "Traceback" not in done.stdout, f"{command}\n{done.stdout}"
    assert same_output(shown, done.stdout), f"{command}\nshown:\n{shown}\nprinted:\n{done.stdout}"


def same_output(shown: str, printed: str) -> bool:
    """Return whether an output is the one that a page shows."""
    return doctest.OutputChecker().check_output(f"{shown.strip()}\n", f"{printed.strip()}\n", _LIKE)


def _job(command: str) -> str:
    """Return the job that a command starts."""
    (found,) = re.findall(r"launch/(\w+)\.py", command)
    return found
