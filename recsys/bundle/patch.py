"""Patch: one file of a bundle, made of the parent's file and the payloads of a change.

    <payload>.whole        `whole`: the file
    <payload>.gaps.npy     `rows`, `sums`: unsigned [K]: distance of every row that changed from the one
                           before it, the first from 0
    <payload>.values.npy   `rows`: uint8 [K + A, bytes of a row]; `sums`: int64 [K + A], differences:
                           those of the changed rows, then of the rows that were added behind
    <payload>.pieces.npy   `pieces`: int64 [P, 2]: first byte in the parent's file, behind its head, and
                           length; -1: the next bytes of the literals
    <payload>.literals     `pieces`: bytes end to end

`sums` is for offsets: one longer list moves all that follow, and changes one difference. Memory holds a
block. Called by chain.py.
Shapes: N rows of the new array, K changed rows, A added rows, P pieces.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.array_headers import one_header_at_a_time
from recsys.bundle.delta import SYNC_AGAIN, Change
from recsys.files import read_array, writing

_BLOCK_ROWS = 65_536
_COPY_BYTES = 1 << 26


@dataclass(frozen=True)
class Form:
    """Header of a .npy file."""

    head: bytes
    dtype: np.dtype
    shape: tuple[int, ...]
    is_fortran: bool


def form_of(path: Path) -> Form | None:
    """Return the header of a .npy file; None for every other file."""
    if path.suffix != ".npy":
        return None
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_2_0
        if version == (1, 0):
            read = np.lib.format.read_array_header_1_0
        with one_header_at_a_time():
            shape, is_fortran, dtype = read(stream)
        length = stream.tell()
        stream.seek(0)
        return Form(stream.read(length), dtype, shape, is_fortran)


def head_of(path: Path) -> bytes:
    """Return the bytes of a .npy file's header; none for every other file."""
    form = form_of(path)
    return b"" if form is None else form.head


def body_of(path: Path) -> NDArray[np.uint8]:
    """Return the bytes behind the head of a file [num_bytes], memory-mapped."""
    start = len(head_of(path))
    if path.stat().st_size == start:  # nothing cannot be mapped
        return np.zeros(0, np.uint8)
    return np.memmap(path, np.uint8, mode="r", offset=start)


def make_file(new: Path, old: Path, payload: Path, change: Change) -> None:
    """Write a file of the new bundle.

    Args:
        old: the parent's file of this name; read by every rule but `whole`.
        payload: path that the payloads' names begin with.

    Raises:
        DiskFullError: there is no space.
        DamagedFileError: a payload is missing or broken.
    """
    new.parent.mkdir(parents=True, exist_ok=True)
    with writing(new, len(change.head) + change.num_bytes):
        _MAKERS[change.rule](new, old, payload, change)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system cannot."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _whole(new: Path, old: Path, payload: Path, change: Change) -> None:
    link_or_copy(payload.with_name(f"{payload.name}.whole"), new)


def _rows(new: Path, old: Path, payload: Path, change: Change) -> None:
    rows_K, values = _rows_of(payload), _part(payload, "values")
    _copy_body(new, old, change)
    if not len(values):
        return
    body = np.memmap(new, np.uint8, mode="r+", offset=len(change.head))
    body_NR = body.reshape(-1, change.row_bytes)
    for start in range(0, len(rows_K), _BLOCK_ROWS):
        block_B = rows_K[start : start + _BLOCK_ROWS]
        body_NR[block_B] = values[start : start + len(block_B)]
    added_AR = values[len(rows_K) :]
    body_NR[len(body_NR) - len(added_AR) :] = added_AR
    body.flush()


def _sums(new: Path, old: Path, payload: Path, change: Change) -> None:
    rows_K, values = _rows_of(payload), _part(payload, "values")
    old_N = body_of(old).view(np.int64)
    num_rows = change.num_bytes // 8
    num_added = len(values) - len(rows_K)
    rows = np.concatenate([rows_K, np.arange(num_rows - num_added, num_rows)])
    last = 0
    with open(new, "wb") as stream:
        stream.write(change.head.encode("latin-1"))
        for start in range(0, num_rows, _BLOCK_ROWS):
            stop = min(num_rows, start + _BLOCK_ROWS)
            differences_B = np.zeros(stop - start, np.int64)
            kept_B = differences(old_N, start, stop)
            differences_B[: len(kept_B)] = kept_B
            first, end = np.searchsorted(rows, [start, stop])
            differences_B[rows[first:end] - start] = values[first:end]
            sums_B = np.cumsum(differences_B) + last
            last = int(sums_B[-1])
            stream.write(sums_B.tobytes())


def differences(values_N: NDArray[np.int64], start: int, stop: int) -> NDArray[np.int64]:
    """Return values less the one before each [stop - start, fewer at the end]; the first as it is."""
    before = values_N[start - 1 : start] if start else np.zeros(1, np.int64)
    return np.diff(values_N[start:stop], prepend=before[: len(values_N[start:stop])])


def _pieces(new: Path, old: Path, payload: Path, change: Change) -> None:
    pieces_P2 = _part(payload, "pieces")
    body = body_of(old)
    with (
        open(new, "wb") as stream,
        open(payload.with_name(f"{payload.name}.literals"), "rb") as literals,
    ):
        stream.write(change.head.encode("latin-1"))
        for start in range(0, len(pieces_P2), _BLOCK_ROWS):
            for place, length in pieces_P2[start : start + _BLOCK_ROWS].tolist():
                while length > 0:
                    count = min(length, _COPY_BYTES)
                    if place < 0:
                        stream.write(literals.read(count))
                    else:
                        stream.write(body[place : place + count].data)
                        place += count
                    length -= count


def _copy_body(new: Path, old: Path, change: Change) -> None:
    """Write the head and the old rows that the new array has too; zeros follow up to its length."""
    old_start, new_start = len(head_of(old)), len(change.head)
    kept = min(old.stat().st_size - old_start, change.num_bytes)
    with open(old, "rb") as source, open(new, "wb") as target:
        target.write(change.head.encode("latin-1"))
        target.flush()
        if change.num_bytes:
            os.posix_fallocate(target.fileno(), new_start, change.num_bytes)
        source.seek(old_start)
        while kept > 0:
            block = source.read(min(kept, _COPY_BYTES))
            target.write(block)
            kept -= len(block)


def _rows_of(payload: Path) -> NDArray[np.int64]:
    """Return the numbers of the changed rows [K], ascending."""
    return np.cumsum(_part(payload, "gaps"), dtype=np.int64)


def _part(payload: Path, part: str) -> NDArray:
    return read_array(payload.with_name(f"{payload.name}.{part}.npy"), SYNC_AGAIN, mmap=True)


_MAKERS: dict[str, Callable[[Path, Path, Path, Change], None]] = {
    "whole": _whole,
    "rows": _rows,
    "sums": _sums,
    "pieces": _pieces,
}
