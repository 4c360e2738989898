"""Delta: what changed from one bundle to the next, as files to patch and files to replace.

    deltas/<sequence>-<bundle>/    beside the bundles; named by its place in the chain and what it makes
      delta.json                   Delta
      00000.gaps.npy, ...          payloads of the changed files, as recsys/bundle/patch.py reads them

A chain begins with a whole bundle; every delta names its parent, by name and by the sha256 of its
files.json, and the sha256 of the files.json that it makes: base and deltas give the last export's files.
Written by recsys/export/delta.py, applied by chain.py.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys.errors import UserError
from recsys.files import read_json, reading, sha256_of, write_json
from recsys.schema import leaves_folder, misfits

DELTA_VERSION = 1
DELTAS = "deltas"
"""Folder beside the bundles that holds their deltas."""
RULES = ("whole", "rows", "sums", "pieces")
SYNC_AGAIN = "copy it again from where it was exported (launch/sync.py)"


@dataclass(frozen=True, kw_only=True)
class Change:
    """How one file of the new bundle is made of the parent's file of this name and of payloads."""

    rule: str
    """`whole`: it is the payload; `rows`: an array of which some rows changed; `sums`: an array of which
    some differences of neighbours changed; `pieces`: parts of the parent's file between new ones."""
    payload: str
    """Beginning of the names of its payloads."""
    head: str = ""
    """Bytes before the rows or pieces, as Latin-1: the header of a .npy file."""
    num_bytes: int = 0
    """Bytes behind the head."""
    row_bytes: int = 1
    """Bytes of a row."""


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The content of delta.json."""

    name: str
    """Bundle that it makes."""
    sequence: int
    """Place in the chain, from 1."""
    chain: str
    """Whole bundle that the chain begins with."""
    parent: str
    """Bundle that it is applied to."""
    parent_listing: str
    """sha256 of the parent's files.json."""
    listing: str
    """sha256 of the files.json that it makes."""
    created: str
    """Time of the export, ISO 8601, UTC."""
    changes: dict[str, Change]
    """Changed and new files by relative path; all others of the listing are the parent's."""
    payloads: dict[str, str]
    """sha256 of every payload by its name."""
    gone: dict[str, int] = field(default_factory=dict)
    """Ids that the parent knew and this bundle does not know, by table: how many."""
    version: int = DELTA_VERSION


def write_delta(folder: Path, delta: Delta) -> None:
    """Write delta.json, by which the delta is complete."""
    write_json(folder / "delta.json", dataclasses.asdict(delta))


def read_delta(folder: Path) -> Delta:
    """Return the content of a delta's delta.json.

    Raises:
        UserError: the file is missing or broken, of another version, or leads out of a folder; names it.
    """
    path = folder / "delta.json"
    with reading(path, SYNC_AGAIN):
        raw = read_json(path, SYNC_AGAIN)
        if raw["version"] != DELTA_VERSION:
            raise UserError(f"delta version {raw['version']!r}, expected {DELTA_VERSION}")
        delta = _delta_of(raw)
        if problems := misfits(delta):
            raise UserError("; ".join(problems)[:400])
        names = [*delta.changes, *delta.payloads, delta.name, delta.parent]
        names += [change.payload for change in delta.changes.values()]
        if outside := [name for name in names if not name or leaves_folder(name)]:
            raise UserError(f"{outside[0]!r} leaves the folder of the bundle")
        if unknown := {change.rule for change in delta.changes.values()} - set(RULES):
            raise UserError(f"rule {min(unknown)!r}, expected one of {', '.join(RULES)}")
    return delta


def _delta_of(raw: Mapping[str, Any]) -> Delta:
    known = {f.name for f in dataclasses.fields(Delta)}
    changes = {name: Change(**change) for name, change in raw["changes"].items()}
    return Delta(**{**{k: v for k, v in raw.items() if k in known}, "changes": changes})


def check_payloads(folder: Path, delta: Delta) -> None:
    """Compare every byte of a delta's payloads with delta.json.

    Raises:
        UserError: a payload is missing or has changed; names it.
    """
    for name, sha256 in delta.payloads.items():
        with reading(folder / name, SYNC_AGAIN):
            if sha256_of(folder / name) != sha256:
                raise UserError("its sha256 differs from delta.json's")
