"""A PostgreSQL server of Debian's packages, started by a test in a folder of its own."""

import os
import shutil
import subprocess
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
def postgres(folder: Path) -> Iterator[str]:
    """Run a server that listens on a Unix socket in `folder` alone, and yield its URL."""
    bin_folder = programs()
    account = ACCOUNT if os.getuid() == 0 else None
    folder.mkdir()
    if account is not None:
        shutil.chown(folder, account)
        for parent in folder.parents:  # pytest's folders are for their owner alone
            if parent.stat().st_mode & 0o011 != 0o011:
                parent.chmod(parent.stat().st_mode | 0o011)

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
