"""A PostgreSQL server of Debian's packages, started by a test in a folder of its own."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ACCOUNT = "postgres"
"""The account of Debian's package: the server refuses to run as root."""


def programs() -> Path:
    """The folder of initdb and pg_ctl; the test is skipped where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server that listens on a Unix socket alone, and yield its URL."""
    bin_folder = programs()
    account = ACCOUNT if os.getuid() == 0 else None
    # Not in pytest's folders: they are for their owner alone, and every start of pytest sees to it.
    folder = Path(tempfile.mkdtemp(prefix="tessera-postgres-"))
    if account is not None:
        shutil.chown(folder, account)

    def run(*command: object) -> None:
        done = subprocess.run(
            list(map(str, command)),
            cwd=folder,
            user=account,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    data = folder / "data"
    run(bin_folder / "initdb", "-D", data, "-U", "tessera", "-A", "trust", "-E", "UTF8")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
    run(bin_folder / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start")
    try:
        yield f"postgresql://tessera@/postgres?host={folder}"
    finally:
        run(bin_folder / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)
