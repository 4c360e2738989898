"""Replacement: new feature tables, made beside the finished ones and exchanged with them when whole.

    features/one/                   the finished table, readable all the time
    features/.one.next/             the next one; its shards survive a kill, and the next job goes on
    features/.one+two.replace       written when every next table is whole, removed after the exchanges

Called by embedding/features/extraction.py on rank 0. A kill leaves every table old or new; the file
`.replace` says which exchanges are left.
"""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding.features.reuse import EarlierTables
from recsys.files import (
    EMBED_AGAIN,
    put_back,
    read_json,
    remove_leftovers,
    replace_folder,
    sync,
    write_json,
)

_STAMP = ".stamp.json"
CODES = "codes"
"""Key of a stamp: digest of the codebooks; absent: fp16."""
_MAKING = "making"
"""Key of a stamp: a number of its own for every folder, by which an exchanged one is known."""


@dataclass(frozen=True)
class Basis:
    """Shards that the next tables may take from the finished ones."""

    stamp: dict[str, Any]
    """Encoder, items and shard size of the next tables."""
    has_same_rows: bool
    """The finished tables have this stamp, or one without its codes: a row is the same item in both."""
    has_other_rows: bool
    """The finished tables are of the same encoder, for other items or in other shards."""


def next_name(name: str) -> str:
    """Return the folder of a table's next version, below features/."""
    return f".{name}.next"


def stamp_of(folder: Path) -> dict[str, Any] | None:
    """Return what the shards in a folder belong to; None where nothing is.

    Raises:
        DamagedFileError: the stamp is broken.
    """
    stamp = _read_stamp(folder)
    return stamp and {key: value for key, value in stamp.items() if key != _MAKING}


def open_next_tables(
    features: Path, names: list[str], stamp: dict[str, Any], earlier: EarlierTables
) -> Basis:
    """Leave a folder for the next version of every table, with the stamp; return the basis.

    A next table of this stamp that was cut off is continued. One of the same encoder for other items
    is set aside, and its vectors are looked through like those of the finished tables.
    """
    remove_leftovers(features)
    replace_tables(features, names)

    def usable(folder: Path) -> bool:
        there = stamp_of(folder) or {}
        return _may_be_coded(there, stamp) and all(
            there.get(key) == stamp[key] for key in ("version", "revision", "row_hash")
        )

    set_aside = [g / name for g in earlier.generations() for name in names]
    if not all(usable(folder) for folder in set_aside if folder.exists()):
        earlier.remove()
    finished = [features / name for name in names]
    stamps = [stamp_of(folder) or {} for folder in finished]
    has_same_rows = all(
        _without_codes(there) == _without_codes(stamp) and _may_be_coded(there, stamp)
        for there in stamps
    )
    basis = Basis(stamp, has_same_rows, not has_same_rows and all(map(usable, finished)))
    new = [name for name in names if stamp_of(features / next_name(name)) != stamp]
    if new:
        earlier.remove_index()  # over tables that an earlier making began with
    for name in new:
        folder = features / next_name(name)
        if folder.is_dir() and usable(folder):
            earlier.set_aside(folder, name)
        elif folder.is_dir():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(folder / _STAMP, {**stamp, _MAKING: secrets.token_hex(8)})
    for name in names:
        remove_leftovers(features / next_name(name))
    earlier.has_finished = basis.has_other_rows
    if earlier.generations():
        earlier.build_index()
    return basis


def _may_be_coded(there: dict[str, Any], stamp: dict[str, Any]) -> bool:
    """Return whether vectors of one stamp may be taken for another: fp16, or the same codes."""
    return there.get(CODES) in (None, stamp.get(CODES))


def _without_codes(stamp: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in stamp.items() if key != CODES}


def declare_whole(features: Path, names: list[str]) -> None:
    """Note that the next version of every table is whole and is to replace the finished one."""
    for name in names:
        sync(features / next_name(name))
    makings = {name: _making(features / next_name(name)) for name in names}
    write_json(_note(features, names), makings)


def replace_tables(features: Path, names: list[str]) -> None:
    """Exchange next tables that are declared whole with the finished ones; else do nothing."""
    for name in names:
        put_back(features / name)
    note = _note(features, names)
    if not note.is_file():
        return
    makings = read_json(note, f"delete it and {EMBED_AGAIN}")
    for name in names:
        # After the exchange the folder has the earlier table, whose number is another.
        if _making(features / next_name(name)) == makings[name]:
            replace_folder(features / next_name(name), features / name)
    note.unlink()
    sync(features)
    for name in names:
        shutil.rmtree(features / next_name(name), ignore_errors=True)


def _note(features: Path, names: list[str]) -> Path:
    return features / f".{'+'.join(names)}.replace"


def _making(folder: Path) -> str | None:
    return (_read_stamp(folder) or {}).get(_MAKING)


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    file = folder / _STAMP
    return read_json(file, f"delete {folder} and {EMBED_AGAIN}") if file.is_file() else None
