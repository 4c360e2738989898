"""Locks: which machine is making a file or folder, and whether the process that began it still runs.

Called by files.py. A name in the making carries its owner, `<machine>-<boot>-<random>`, and its maker
holds an flock while it runs. Such a lock says nothing to another machine, where a shared file system
may keep it to itself: only what this kernel, or this machine before its last start, has begun is ever
taken for dead.
"""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_UNKNOWN = "00000000"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MACHINE_ID = Path("/etc/machine-id")
_NEXT = re.compile(r"\..+\.(next|replace)")
"""Names of a table that is made beside the finished one (embedding/features/replacement.py)."""
_IN_THE_MAKING = re.compile(r"\.(.+)\.[^.]*-[0-9a-f]{8}-[0-9a-f]{8}\.(part|part\.old|lock)")


def new_owner() -> str:
    """Return a name for what this process is about to make; no other call returns the same."""
    return f"{_machine()}-{_boot()}-{secrets.token_hex(4)}"


def is_unfinished(name: str) -> bool:
    """Return whether a relative path leads into what is in the making, or names its lock."""
    parts = Path(name).parts
    return any(_IN_THE_MAKING.fullmatch(part) or _NEXT.fullmatch(part) for part in parts)


def final_name(path: Path) -> Path:
    """Return what a path in a folder that is in the making will be called."""
    return Path(*(_IN_THE_MAKING.sub(r"\1", part) for part in path.parts))


def is_ours(path: Path) -> bool:
    """Return whether this machine began a file named `.<name>.<owner>.<ending>`.

    Containers share their host's kernel, and so its boot. After a reboot, host name and machine
    id have to agree; a machine without an id is known by its boot alone.
    """
    parts = path.name.rsplit(".", 2)[-2].rsplit("-", 2)
    if len(parts) != 3:
        return False
    same_machine = parts[0] == _machine() and not parts[0].endswith(_UNKNOWN)
    return same_machine or parts[1] == _boot() != _UNKNOWN


def is_dead(path: Path) -> bool:
    """Return whether this machine began a file and no process holds its lock any more."""
    return is_ours(path) and _is_free(path)


def hold(path: Path) -> int:
    """Create a file and lock it until it is closed or the process ends; return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        locked = _try_lock(descriptor)
        # Another process may have taken the new file for a leftover before it was locked.
        if not locked or (path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor))):
            return descriptor
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder while the block runs; other processes wait for it here."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def share(path: Path) -> int:
    """Open a file under a lock that many may hold, and return its descriptor; `is_shared` says so."""
    descriptor = os.open(path, os.O_RDONLY)
    _lock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_shared(path: Path) -> bool:
    """Return whether a process has a file open by `share`; True where that cannot be known."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _machine() -> str:
    """Return host name and the start of a digest of the machine id, which is not for showing."""
    host = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())[:40]
    identity = _MACHINE_ID.read_bytes().strip() if _MACHINE_ID.is_file() else b""
    return f"{host}-{hashlib.sha256(identity).hexdigest()[:8] if identity else _UNKNOWN}"


def _boot() -> str:
    """Return what names the running kernel, which containers share and hosts do not."""
    return _BOOT_ID.read_text(encoding="ascii")[:8] if _BOOT_ID.is_file() else _UNKNOWN


def _is_free(path: Path) -> bool:
    """Return whether no process holds the lock of a file; False where that cannot be known."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # gone in the meantime, or somebody else's
        return False
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Lock an open file; False where another process holds it or the file system has no locks."""
    return _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(descriptor: int, kind: int) -> bool:
    """Return whether an open file is locked now, in the way of fcntl.flock."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True
