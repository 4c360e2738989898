"""Tombstones of a bundle: ids that an earlier bundle of its workspace knew and this one does not.

    tombstones.json    {"item_id": {id: time}, "user_id": ...}: seconds since 1970, when the id went

An item that was added at run time, was trained on later and is gone now stays gone, unless it was added
after that time. A bundle without the file has none.
Written by recsys/export/delta.py, read by Bundle.
"""

from pathlib import Path

import numpy as np

from recsys.bundle.spec import EXPORT_AGAIN
from recsys.bundle.vocabulary import Vocabulary
from recsys.files import read_array, read_json, reading, write_json

TABLES = ("item_id", "user_id")
_FILE = "tombstones.json"


def read_tombstones(bundle: Path) -> dict[str, dict[str, float]]:
    """Return by table the ids that are gone, with the time of each in seconds since 1970.

    Raises:
        DamagedFileError: the file is broken.
    """
    path = bundle / _FILE
    found: dict[str, dict[str, float]] = {table: {} for table in TABLES}
    if path.is_file():
        with reading(path, EXPORT_AGAIN):
            stored = read_json(path, EXPORT_AGAIN)
            found |= {table: dict(stored[table]) for table in TABLES}
    return found


def write_tombstones(bundle: Path, before: Path, time: float) -> dict[str, int]:
    """Write the tombstones of a bundle in the making; return how many ids went since the one before.

    Args:
        before: the earlier bundle, whose tombstones are kept unless the id is back.
        time: of the export, in seconds since 1970.

    Raises:
        DamagedFileError: a file of the earlier bundle is missing or broken.
    """
    earlier = read_tombstones(before)
    counts, kept = {}, {}
    for table in TABLES:
        gone = _gone(before / "vocab", bundle / "vocab", table)
        counts[table] = len(gone)
        kept[table] = earlier[table] | dict.fromkeys(gone, time)
        if earlier[table] and _has(bundle / "vocab", table):
            known = Vocabulary(bundle / "vocab", table)
            kept[table] = {id: when for id, when in kept[table].items() if id not in known}
    if any(kept.values()):
        write_json(bundle / _FILE, kept)
    return counts


def _has(folder: Path, table: str) -> bool:
    return (folder / f"{table}.hashes.npy").is_file()


def _gone(before: Path, after: Path, table: str) -> list[str]:
    """Return the ids of a vocabulary that the next one does not have."""
    if not _has(before, table):
        return []
    hashes_K, rows_K = (
        read_array(before / f"{table}.{p}.npy", EXPORT_AGAIN) for p in ("hashes", "rows")
    )
    is_gone_K = np.ones(len(hashes_K), bool)
    if _has(after, table):
        is_gone_K = ~np.isin(hashes_K, read_array(after / f"{table}.hashes.npy", EXPORT_AGAIN))
    known = Vocabulary(before, table)
    return [known.id_of(row) for row in np.sort(rows_K[is_gone_K]).tolist()]
