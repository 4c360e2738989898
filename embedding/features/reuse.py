"""Reuse: vectors of earlier tables, found by what their rows were made of.

In: feature tables of the same encoder, made for other items: the finished ones, and those that were cut
off and set aside. Out: their vectors, by row hash. Called by embedding/features/extraction.py when items
were added, removed or reordered. No array in memory is as long as the items: hashes are in a sorted,
memory-mapped index of 24 bytes a row, which is sorted bucket by bucket.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import xxhash

from embedding.features.codes import RowForm
from embedding.features.store import ROW, finished_shard
from recsys.files import (
    EMBED_AGAIN,
    DamagedFileError,
    move_folder,
    new_array,
    new_folder,
    read_array,
    remove_folder,
)

BUCKET_ROWS = 1 << 21
"""Rows sorted at a time, in some 150 MB; a thousand million rows make 512 files."""

_PLACED = np.dtype([("high", "<u8"), ("low", "<u8"), ("place", "<u8")])


def row_hashes(contents: Iterable[bytes | None]) -> np.ndarray:
    """Return dtype ROW [N] with the XXH3-128 of each content; None, nothing to encode, gives 0."""
    digests = b"".join(
        bytes(16) if content is None else xxhash.xxh3_128_digest(content) for content in contents
    )
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
    rows = np.zeros(len(words), dtype=ROW)
    rows["high"], rows["low"] = words[:, 0], words[:, 1]
    return rows


def same_rows(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return bool [N]: the rows are made of the same, whether or not they are masked."""
    return (one["high"] == other["high"]) & (one["low"] == other["low"])


def stored_rows(root: Path, names: list[str], index: int) -> np.ndarray | None:
    """Return ROW [N]: the content hashes of a shard's rows.

    None if it is not finished in every one of the tables `root/<name>`.
    """
    found: np.ndarray | None = None
    for name in names:
        entry = finished_shard(root / name, index)
        if entry is None:
            return None
        try:
            rows = read_array(root / name / entry.rows_file, EMBED_AGAIN)
        except DamagedFileError:
            return None  # Cut short by a failing disk: the shard is made anew.
        if rows.dtype != ROW or len(rows) != entry.end_row - entry.start_row:
            return None
        if found is not None and not np.array_equal(rows, found):
            return None
        found = rows
    return found


class EarlierTables:
    """Tables set aside, generation by generation, and the index over their rows."""

    def __init__(self, root: Path, names: list[str]):
        """Args: root: below features/, holds 0/<name>, ... and index/; names: tables of one extractor."""
        self.root = root
        # Whether the finished tables, features/<name>, are the last generation.
        self.has_finished = False
        self.remedy = f"delete {root} and {EMBED_AGAIN}"
        self.names = names
        self._arrays: dict[str, np.ndarray] | None = None
        self._open = lru_cache(maxsize=64)(self._map)

    def generations(self) -> list[Path]:
        """Return the generations' folders, the earliest first."""
        folders = self.root.iterdir() if self.root.is_dir() else ()
        numbered = sorted((f for f in folders if f.name.isdigit()), key=lambda f: int(f.name))
        return [*numbered, self.root.parent] if self.has_finished else numbered

    def set_aside(self, folder: Path, name: str) -> None:
        """Move a table below the root: into the first generation without one of its name."""
        number = 0
        while (self.root / str(number) / name).exists():
            number += 1
        move_folder(folder, self.root / str(number) / name)

    def remove(self) -> None:
        """Delete all of it; the finished tables stay."""
        self.remove_index()
        shutil.rmtree(self.root, ignore_errors=True)

    # The index

    def remove_index(self) -> None:
        """Delete the index, which holds no longer than the tables it was made of."""
        if (self.root / "index").is_dir():
            remove_folder(self.root / "index")

    def build_index(self) -> None:
        """Sort the hashes of every unmasked row into index/: high.npy, low.npy, place.npy.

        Out of core: rows go to files by the leading bits of their hash, and each file is sorted by
        itself. A place is the shard's number in shards.txt << 32, plus the row within the shard.
        """
        if not (self.root / "index").is_dir():
            with new_folder(self.root / "index") as beside:
                self._fill_index(beside)

    def _fill_index(self, beside: Path) -> None:
        shards = [
            (generation, index)
            for generation in self.generations()
            for index in _shard_numbers(generation / self.names[0])
        ]
        lines = (f"{os.path.relpath(folder, self.root)} {index}\n" for folder, index in shards)
        (beside / "shards.txt").write_text("".join(lines), encoding="ascii")
        num_rows = sum(
            (generation / self.names[0] / f"shard-{index:05d}.rows.npy").stat().st_size
            // ROW.itemsize
            for generation, index in shards
        )
        bits = max(0, (num_rows // BUCKET_ROWS).bit_length())
        counts = self._fill_buckets(beside, shards, bits)
        if sum(counts):
            columns = {
                name: new_array(beside / f"{name}.npy", np.uint64, (sum(counts),))
                for name in _PLACED.names or ()
            }
            start = 0
            for number, count in enumerate(counts):
                path = beside / f"bucket-{number}"
                bucket = np.fromfile(path, dtype=_PLACED)
                bucket = bucket[np.argsort(bucket["high"], kind="stable")]
                for name, column in columns.items():
                    column[start : start + count] = bucket[name]
                start += count
                path.unlink()
            for column in columns.values():
                column.flush()

    def _fill_buckets(self, folder: Path, shards: list[tuple[Path, int]], bits: int) -> list[int]:
        """Append the rows of every shard to the files of their buckets; return the files' rows."""
        files = [open(folder / f"bucket-{number}", "wb") for number in range(1 << bits)]
        counts = [0] * len(files)
        try:
            for ordinal, (generation, index) in enumerate(shards):
                rows = stored_rows(generation, self.names, index)
                if rows is None:
                    continue
                kept = np.flatnonzero(rows["masked"] == 0)
                placed = np.empty(len(kept), dtype=_PLACED)
                placed["high"], placed["low"] = rows["high"][kept], rows["low"][kept]
                placed["place"] = (ordinal << 32) + kept
                bucket_of = _bucket(placed["high"], bits)
                order = np.argsort(bucket_of, kind="stable")
                ends = np.cumsum(np.bincount(bucket_of, minlength=len(files)))
                for number, part in enumerate(np.split(placed[order], ends[:-1])):
                    part.tofile(files[number])
                    counts[number] += len(part)
        finally:
            for file in files:
                file.close()
        return counts

    def open_index(self) -> bool:
        """Map the index; return whether there is anything in it."""
        folder = self.root / "index"
        if not (folder / "high.npy").is_file():
            return False
        self._arrays = {
            name: read_array(folder / f"{name}.npy", self.remedy, mmap=True)
            for name in _PLACED.names or ()
        }
        lines = (folder / "shards.txt").read_text(encoding="ascii").splitlines()
        self._shards = [(self.root / number, int(index)) for number, index in map(str.split, lines)]
        return True

    def find(self, rows: np.ndarray) -> np.ndarray:
        """Return int64 [N]: the place of a row made of the same, or -1. `rows`: dtype ROW."""
        places = np.full(len(rows), -1, dtype=np.int64)
        if self._arrays is None:
            return places
        high, low, place = (self._arrays[name] for name in ("high", "low", "place"))
        # In order of the hash, so that neighbours share pages.
        asked = np.argsort(rows["high"], kind="stable")
        at = np.searchsorted(high, rows["high"][asked])
        # One step, but where two contents share the leading 64 bits.
        while len(asked):
            inside = at < len(high)
            asked, at = asked[inside], at[inside]
            inside = high[at] == rows["high"][asked]
            asked, at = asked[inside], at[inside]
            equal = low[at] == rows["low"][asked]
            places[asked[equal]] = place[at[equal]]
            asked, at = asked[~equal], at[~equal] + 1
        return places

    def read(self, name: str, places: np.ndarray, form: RowForm) -> np.ndarray:
        """Return the vectors of table `name` at places that `find` gave, as rows of a form [N, C]."""
        shards = places >> 32
        order = np.argsort(shards, kind="stable")
        out = form.zeros(len(places))
        for group in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            stored = self._open(name, int(shards[group[0]]))
            out[group] = form.taken_from(stored[places[group] & 0xFFFFFFFF])
        return out

    def _map(self, name: str, ordinal: int) -> np.ndarray:
        """Return the stored rows [N, C] of a shard, memory-mapped."""
        generation, index = self._shards[ordinal]
        return read_array(generation / name / f"shard-{index:05d}.npy", self.remedy, mmap=True)


def _bucket(high: np.ndarray, bits: int) -> np.ndarray:
    """Return the leading bits of 64-bit words [N], as int64 [N]."""
    if not bits:
        return np.zeros(len(high), dtype=np.int64)
    return (high >> np.uint64(64 - bits)).astype(np.int64)


def _shard_numbers(folder: Path) -> Iterator[int]:
    """Yield the numbers of the shards in a table's folder, ascending."""
    names = (path.name for path in folder.glob("shard-*.rows.npy"))
    yield from sorted(int(n.removeprefix("shard-").removesuffix(".rows.npy")) for n in names)
