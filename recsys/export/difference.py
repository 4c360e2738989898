"""Difference of two bundles: for every file the smallest change of which recsys/bundle/patch.py makes it.

In: folders of the parent and of the new bundle, both with their files.json. Out: payloads in the folder
of a delta, and the changes. A file is taken for what its bytes are: no rule knows a bundle's content.
Memory holds a block of a file and the numbers of its changed rows. Called by delta.py of this folder.
Shapes: K changed rows of an array.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.delta import Change
from recsys.bundle.patch import body_of, differences, form_of, head_of, link_or_copy
from recsys.bundle.spec import EXPORT_AGAIN
from recsys.export.pieces import find_pieces
from recsys.files import new_array, read_json, sha256_of, write_array
from recsys.progress import progress_bar

_BLOCK_BYTES = 8 << 20
_SMALL = 0.25
"""Share of a file below which the first rule that fits is taken, and no other is tried."""
_WORTH = 0.9
"""Share of a file above which it is replaced."""


def listing_of(bundle: Path) -> dict[str, str]:
    """Return the sha256 of every file of a bundle by relative path, as its files.json says."""
    return dict(read_json(bundle / "files.json", EXPORT_AGAIN)["sha256"])


def write_changes(folder: Path, parent: Path, bundle: Path) -> dict[str, Change]:
    """Write the payloads of everything that differs from the parent, and return the changes by file."""
    before, after = listing_of(parent), listing_of(bundle)
    # The listing is not listed, and differs wherever anything does.
    changed = ["files.json", *(name for name in after if before.get(name) != after[name])]
    changes = {}
    with progress_bar(changed, desc="delta", unit="file") as progress:
        for number, name in enumerate(progress):
            old = parent / name if name in before else None
            changes[name] = _write_change(folder / f"{number:05d}", old, bundle / name)
    return changes


def payload_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every payload of a delta in the making by name."""
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


@dataclass(frozen=True)
class _Rows:
    """Changed and added rows of an array, and the bytes that they take."""

    rule: str
    row_bytes: int
    rows_K: NDArray[np.int64]
    num_added: int
    """Rows behind those of the earlier array."""

    @property
    def cost(self) -> int:
        gap_bytes = self.gaps.itemsize * len(self.rows_K)
        return gap_bytes + self.row_bytes * (len(self.rows_K) + self.num_added)

    @cached_property
    def gaps(self) -> NDArray:
        """Distances of the rows [K], of the narrowest unsigned type."""
        gaps_K = np.diff(self.rows_K, prepend=0)
        return gaps_K.astype(np.min_scalar_type(gaps_K.max(initial=0)))


def _write_change(payload: Path, old: Path | None, new: Path) -> Change:
    """Write the payloads of one file, and return its change."""
    num_bytes = new.stat().st_size
    found = None if old is None else _changed_rows(old, new, _SMALL * num_bytes)
    if found is not None and found.cost < _SMALL * num_bytes:
        return _write_rows(payload, new, found)
    if old is not None and (pieces := _pieces(old, new)) is not None:
        cost = 16 * len(pieces) + sum(length for place, length in pieces if place < 0)
        if cost < _WORTH * num_bytes and (found is None or cost < found.cost):
            return _write_pieces(payload, new, pieces)
    if found is not None and found.cost < _WORTH * num_bytes:
        return _write_rows(payload, new, found)
    link_or_copy(new, payload.with_name(f"{payload.name}.whole"))
    return Change(rule="whole", payload=payload.name)


def _changed_rows(old: Path, new: Path, enough: float) -> _Rows | None:
    """Return the changed rows of an array, or of its differences where these take fewer bytes.

    Args:
        enough: bytes below which no second way is tried.

    Returns:
        None where the files are not two arrays of equal rows.
    """
    before, after = form_of(old), form_of(new)
    if before is None or after is None or after.is_fortran or not after.shape:
        return None
    if (before.dtype, before.shape[1:]) != (after.dtype, after.shape[1:]):
        return None
    row_bytes = after.dtype.itemsize * math.prod(after.shape[1:])
    if not row_bytes:
        return None
    num_added = max(0, after.shape[0] - before.shape[0])
    rows_K = _differing(body_of(old), body_of(new), row_bytes)
    found = _Rows("rows", row_bytes, rows_K, num_added)
    if found.cost >= enough and len(after.shape) == 1 and after.dtype == np.int64:
        sums = _Rows("sums", 8, _differing_sums(body_of(old), body_of(new)), num_added)
        found = min(found, sums, key=lambda rows: rows.cost)
    return found


def _differing(old: NDArray[np.uint8], new: NDArray[np.uint8], row_bytes: int) -> NDArray[np.int64]:
    """Return the numbers of the rows of both that differ [K]."""
    parts = [np.zeros(0, np.int64)]
    for start, stop in _blocks(min(len(old), len(new)) // row_bytes, row_bytes):
        block = slice(start * row_bytes, stop * row_bytes)
        differs = (old[block] != new[block]).reshape(-1, row_bytes).any(axis=1)
        parts.append(np.flatnonzero(differs) + start)
    return np.concatenate(parts)


def _differing_sums(old: NDArray[np.uint8], new: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the numbers of the differences of both that differ [K]."""
    old_N, new_N = old.view(np.int64), new.view(np.int64)
    both = min(len(old_N), len(new_N))
    parts = [
        np.flatnonzero(differences(old_N[:both], start, stop) != differences(new_N, start, stop))
        + start
        for start, stop in _blocks(both, 8)
    ]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def _blocks(num_rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, num_rows, step):
        yield start, min(num_rows, start + step)


def _write_rows(payload: Path, new: Path, found: _Rows) -> Change:
    head, body = head_of(new), body_of(new)
    rows_K, num_added = found.rows_K, found.num_added
    write_array(payload.with_name(f"{payload.name}.gaps.npy"), found.gaps)
    place = payload.with_name(f"{payload.name}.values.npy")
    if found.rule == "sums":
        body_N = body.view(np.int64)
        rows = np.concatenate([rows_K, np.arange(len(body_N) - num_added, len(body_N))])
        write_array(place, body_N[rows] - np.where(rows > 0, body_N[rows - 1], 0))
    else:
        body_NR = body.reshape(-1, found.row_bytes)
        values = new_array(place, np.uint8, (len(rows_K) + num_added, found.row_bytes))
        for start, stop in _blocks(len(rows_K), found.row_bytes):
            values[start:stop] = body_NR[rows_K[start:stop]]
        values[len(rows_K) :] = body_NR[len(body_NR) - num_added :]
        values.flush()
    return Change(
        rule=found.rule,
        payload=payload.name,
        head=head.decode("latin-1"),
        num_bytes=len(body),
        row_bytes=found.row_bytes,
    )


def _pieces(old: Path, new: Path) -> list[tuple[int, int]] | None:
    """Return the pieces of a file in bytes; None for tables, whose rows move nowhere."""
    before, after = form_of(old), form_of(new)
    unit = 1
    if after is not None:
        if before is None or len(after.shape) != 1 or before.dtype != after.dtype:
            return None
        unit = after.dtype.itemsize
    kind = f"<u{unit}"
    found = find_pieces(body_of(old).view(kind), body_of(new).view(kind))
    return [(place * unit if place >= 0 else -1, length * unit) for place, length in found]


def _write_pieces(payload: Path, new: Path, pieces: list[tuple[int, int]]) -> Change:
    head, body = head_of(new), body_of(new)
    pieces_P2 = np.array(pieces, np.int64).reshape(-1, 2)
    write_array(payload.with_name(f"{payload.name}.pieces.npy"), pieces_P2)
    done = 0
    with open(payload.with_name(f"{payload.name}.literals"), "wb") as stream:
        for place, length in pieces:
            if place < 0:
                stream.write(body[done : done + length].data)
            done += length
    return Change(
        rule="pieces", payload=payload.name, head=head.decode("latin-1"), num_bytes=len(body)
    )
