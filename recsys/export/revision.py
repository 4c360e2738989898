"""Revision of the code that exports: the commit of its checkout, which a bundle names."""

import shutil
import subprocess
from pathlib import Path


def git_revision() -> str | None:
    """Return the commit of this code; None where it is no checkout, or there is no git."""
    repository = Path(__file__).resolve().parents[2]
    if not (repository / ".git").exists() or shutil.which("git") is None:
        return None
    done = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
