"""Files and folders written whole, and read with a sentence that says how to make a damaged one anew.

A new version is written beside, synced and renamed; a folder changes places with the one before it in
one step (renameat2), so that at every moment one whole version has the name. Beside prepared/ lie

    .prepared.OWNER.part       the new version in the making; after the exchange, the one before
    .prepared.OWNER.part.old   the one before, between two renames where the file system has no exchange
    .prepared.OWNER.lock       held with flock by the process that makes it

Only what nobody holds any more is removed, and only on the machine that made it (locks.py).
"""

import ctypes
import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from recsys.array_headers import one_header_at_a_time
from recsys.errors import StorageError, UserError
from recsys.locks import final_name, hold, is_dead, is_ours, new_owner

PREPARE_AGAIN = "run launch/prepare.py again"
EMBED_AGAIN = "run launch/embed.py again"
DRAW_AGAIN = "run launch/demo.py again with overwrite=true"

_FREED: set[Path] = set()  # folders that this process has freed of half-written files
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DISK_FULL_TEXT = re.compile(
    # The system's own words, as Rust, Arrow and DuckDB hand them on; then numpy's and torch's, whose
    # writers notice that a file is too short; then DuckDB's, out of room for what it spills.
    r"no space left on device|disk quota exceeded|file too large|"
    r"\d+ requested and \d+ written|unexpected pos \d+ vs \d+|PyTorchStreamWriter failed writing|"
    r"max_temp_directory_size",
    flags=re.IGNORECASE,
)


class DiskFullError(StorageError):
    """A file could not be written for want of space; the message names it and counts bytes."""


class DamagedFileError(UserError):
    """A file is missing or broken; the message names it and the command that makes it anew."""


# Writing


@contextmanager
def new_file(path: str | Path, num_bytes: int | None = None) -> Iterator[Path]:
    """Yield a path to write; the file is synced and takes the name `path` when the block ends.

    Args:
        num_bytes: of the file, where known, for the message on a full disk.

    Raises:
        DiskFullError: there is no space. `path` is unchanged, as after any error.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{new_owner()}.part")
    if path.parent not in _FREED:  # once a process: a folder of shards is long
        remove_leftovers(path.parent)
        _FREED.add(path.parent)
    with writing(path, num_bytes):
        lock = hold(beside)
        try:
            yield beside
            sync(beside)
            os.replace(beside, path)
            sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)
            os.close(lock)


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes the place of `target`, synced, when the block ends.

    Folders that killed processes left beside `target` are removed first.

    Raises:
        DiskFullError: there is no space. `target` is unchanged, as after any error.
    """
    target = Path(os.path.realpath(target))
    with writing(target), folder_beside(target) as beside:
        yield beside
        for folder, _, names in os.walk(beside):
            for name in [*names, "."]:
                sync(Path(folder) / name)
        replace_folder(beside, target)


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yield an empty folder in the making, for `replace_folder`; what is left of it is removed.

    Other processes may fill it, too; while the block runs, nobody takes it for a leftover.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    tidy(target)
    stem = target.parent / f".{target.name}.{new_owner()}"
    beside, lock_file = Path(f"{stem}.part"), Path(f"{stem}.lock")
    lock = hold(lock_file)
    try:
        beside.mkdir()
        yield beside
    finally:
        _remove(lock_file, target)
        os.close(lock)


def replace_folder(made: Path, target: Path) -> None:
    """Give a finished and synced folder the name `target`, and remove the one that had it.

    On any error the one before is back. A process killed between the two renames of a file system
    without exchange leaves it as `<made>.old`, where `put_back` finds it.
    """
    before = made
    if not target.exists():
        os.rename(made, target)
    elif not _exchange(made, target):
        before = made.with_name(f"{made.name}.old")
        os.rename(target, before)
        try:
            os.rename(made, target)
        except BaseException:
            if not target.exists():
                os.rename(before, target)
            raise
    sync(target.parent)
    shutil.rmtree(before, ignore_errors=True)


def move_folder(folder: Path, target: Path) -> None:
    """Give a folder another name on the same file system, synced; the target's parents are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, target)
    sync(target.parent)
    sync(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder; its name goes first, so that nobody finds half of it."""
    with folder_beside(folder) as beside:
        os.rename(folder, beside)  # which is empty


def put_back(target: Path) -> None:
    """Return the name `target` to the version that a killed process had taken it from.

    Nothing happens where `target` is there, or where the process lives and is about to rename; what
    another machine has begun stays, with a note.
    """
    target = Path(os.path.realpath(target))
    if target.exists():
        return
    for old in target.parent.glob(f".{target.name}*.old"):
        lock_file = old.with_name(old.name.removesuffix(".part.old") + ".lock")
        if lock_file.exists() and not is_ours(lock_file):
            _note(
                f"{target} is being replaced on another machine; if no job runs there, rename {old}"
            )
        elif not lock_file.exists() or is_dead(lock_file):
            with suppress(FileExistsError):  # somebody else was faster
                os.rename(old, target)
                sync(target.parent)
            return


def tidy(target: Path) -> None:
    """Put back or remove what killed processes of this machine left beside a folder.

    Files of another machine stay, with a note: its process may be alive.
    """
    put_back(target)
    for lock_file in sorted(target.parent.glob(f".{target.name}.*.lock")):
        if not is_ours(lock_file):
            _note(
                f"{lock_file.with_suffix('.part')} was begun on another machine and is left alone; "
                f"delete it and {lock_file.name} if no job runs there"
            )
        elif is_dead(lock_file):
            _remove(lock_file, target)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _remove(lock_file: Path, target: Path) -> None:
    """Remove what the holder of a lock made beside `target`; the lock last, and only if all is gone."""
    part = lock_file.with_suffix(".part")
    old = part.with_name(f"{part.name}.old")
    shutil.rmtree(part, ignore_errors=True)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    if not (part.exists() or old.exists()):
        lock_file.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files that killed processes of this machine left in a folder."""
    for path in folder.glob(".*.part"):
        if path.is_file() and is_dead(path):
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path, num_bytes: int | None = None) -> Iterator[None]:
    """Turn the ways in which libraries say that a disk is full into one sentence about `path`.

    Args:
        num_bytes: that are written, where known.

    Raises:
        DiskFullError: in the place of an error that means it; all others pass.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(_no_space(Path(path), num_bytes, error)) from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, says that there was no space to write."""
    if isinstance(error, DiskFullError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _DISK_FULL
    if _DISK_FULL_TEXT.search(str(error)):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_disk_full(cause)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8: readers see all of it or what was there before."""
    content = text.encode()
    with new_file(path, len(content)) as beside:
        beside.write_bytes(content)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file (`json_text`): readers see all of it or what was there before."""
    write_text(path, json_text(content, indent=1) + "\n")


def json_text(content: Any, indent: int | None = None) -> str:
    """Return strict JSON (RFC 8259). It has no nan and no infinity: they become null, "no value"."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_array(path: str | Path, values: np.ndarray) -> str:
    """Write an array of any shape [N, ...] as a .npy file, whole, and return its sha256."""
    with new_file(path, values.nbytes) as beside:
        with open(beside, "wb") as stream:
            np.save(stream, values, allow_pickle=False)
        return sha256_of(beside)


def new_array(path: str | Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """Return a new .npy file of zeros, memory-mapped for writing.

    Its bytes are reserved: a page that finds the disk full later ends a process by SIGBUS.

    Raises:
        DiskFullError: there is no space for it.
    """
    num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    with writing(path, num_bytes):
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        with open(path, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, os.fstat(stream.fileno()).st_size)
    return array


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading


@contextmanager
def reading(path: str | Path, remedy: str) -> Iterator[None]:
    """Name the file and what makes it anew in whatever goes wrong while a block reads one of our files.

    Args:
        remedy: "run launch/prepare.py again".

    Raises:
        DamagedFileError: in the place of any error of the block, whose library may raise anything.
    """
    try:
        yield
    except (DamagedFileError, MemoryError):
        raise
    except Exception as error:
        raise DamagedFileError(f"{path}: {_damage(Path(path), error)}; {remedy}") from error


def read_array(path: str | Path, remedy: str, *, mmap: bool = False) -> np.ndarray:
    """Return the array of a .npy file, of any shape [N, ...].

    Args:
        mmap: memory-mapped for reading, for arrays that may not fit memory.

    Raises:
        DamagedFileError: it is missing or broken; says `remedy`.
    """
    with reading(path, remedy), one_header_at_a_time():
        values = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise UserError("an archive of arrays, expected one")
    return values


def read_json(path: str | Path, remedy: str) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        DamagedFileError: it is missing or broken; says `remedy`.
    """
    with reading(path, remedy):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UserError("not a JSON object")
    return content


def sha256_of(path: str | Path) -> str:
    """Return the hex sha256 of a file, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damage(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and not path.exists():
        return "missing"
    if path.is_file() and not path.stat().st_size:
        return "empty"
    text = str(error).strip().splitlines()
    shown = f"no key {error}" if isinstance(error, KeyError) else text[0] if text else ""
    return f"cannot be read ({shown or type(error).__name__})"


def _no_space(path: Path, num_bytes: int | None, error: Exception) -> str:
    there = next(place for place in path.absolute().parents if place.is_dir())
    needed = "" if num_bytes is None else f"{num_bytes:,} bytes needed, "
    reason = "the disk is full"
    if isinstance(error, OSError) and error.errno in (errno.EDQUOT, errno.EFBIG):
        reason = str(error.strerror).lower()
    return (
        f"{final_name(path)}: cannot be written, {reason} ({needed}{shutil.disk_usage(there).free:,} "
        f"bytes free); free some space or use another workspace=. What was there before is unchanged"
    )


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the file system or the C library cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    if (code := ctypes.get_errno()) in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
