"""Export of a delta: a bundle in the making, its difference to a base, and the order of both.

In: the base, a bundle of the same workspace, and the new bundle that export.py writes. Out: the bundle,
whose unchanged files are hard links of the base's; deltas/<sequence>-<bundle>/ beside it; then `current`.
Called by export.py of this folder and by launch/export.py.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from recsys.bundle.chain import apply_delta, compact, listing_hash, move_current, read_link
from recsys.bundle.delta import DELTAS, Delta, read_delta, write_delta
from recsys.bundle.patch import link_or_copy
from recsys.bundle.spec import CURRENT, BundleSpec, check_bytes, read_spec, resolve
from recsys.bundle.tombstones import write_tombstones
from recsys.errors import UserError
from recsys.export.difference import listing_of, payload_hashes, write_changes
from recsys.files import DamagedFileError, new_folder, sha256_of
from recsys.job import say, stage
from recsys.listing import write_listing
from recsys.schema import local_path


@dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """Base of a delta, and how much of a chain is kept."""

    base: str | None = None
    """Bundle of this workspace that a delta is made against: `W/bundles/current`, a bundle's folder or a
    delta's; the bundle and its delta are written. null: a whole bundle alone, which begins a chain."""
    keep: Annotated[int, Field(ge=0)] = 2
    """Versions made from deltas that stay beside the current bundle; older ones that nothing has open are
    removed, and so are the deltas of earlier chains."""


def find_base(config: DeltaConfig, bundles: Path) -> Path | None:
    """Return the folder of the base, every byte of which is checked; None: there is to be no delta.

    Raises:
        UserError: it is no bundle of this workspace, of another version, or damaged.
    """
    if config.base is None:
        return None
    given = local_path(config.base, "base")
    folder = resolve(given)
    if (given / "delta.json").is_file():
        folder = bundles / read_delta(given).name
        if not folder.is_dir():
            apply_delta(given, bundles)
    read_spec(folder)
    if folder.resolve().parent != bundles.resolve():
        raise UserError(
            f"base={config.base}: expected a bundle below {bundles}, beside which servers look for the "
            f"parent of a delta"
        )
    check_bytes(folder)
    return folder


def following(spec: BundleSpec, base: Path | None) -> BundleSpec:
    """Return a specification with the place in the chain that follows the base.

    Raises:
        UserError: a bundle of this name is there and follows another one.
    """
    if base is None:
        return spec
    there = base.parent / spec.name
    if there.is_dir() and read_link(there).parent != base.name:
        raise UserError(
            f"{there}: the run has been exported before; write {spec.name} into {base.parent / CURRENT} "
            f"to serve it again, or export another run"
        )
    link = read_link(base)
    return replace(spec, parent=base.name, chain=link.chain, sequence=link.sequence + 1)


@contextmanager
def bundle_in_making(bundles: Path, spec: BundleSpec, base: Path | None) -> Iterator[Path]:
    """Yield a folder to fill with a bundle; behind it, listed and whole, it gets its name and is current.

    With a base, the bundle's delta appears between both: a version is there before a server that has its
    delta would make it.
    """
    if base is None:
        with new_folder(bundles / spec.name) as folder:
            yield folder
            _write_tombstones(folder, bundles)
            write_listing(folder)
    else:
        target = bundles / DELTAS / f"{spec.sequence:06d}-{spec.name}"
        with new_folder(target) as delta_folder, new_folder(bundles / spec.name) as folder:
            yield folder
            gone = write_tombstones(folder, base, time.time())
            write_listing(folder)
            _write_delta(delta_folder, folder, spec, base, gone)
    move_current(bundles, spec.name)


def remove_old(bundles: Path, config: DeltaConfig) -> None:
    """Remove versions and deltas beyond `keep` that nothing needs or has open."""
    if removed := compact(bundles, config.keep):
        say(f"removed: {', '.join(removed)} (keep={config.keep})")


def _write_delta(
    delta_folder: Path, folder: Path, spec: BundleSpec, base: Path, gone: dict[str, int]
) -> None:
    with stage("delta") as writing:
        changes = write_changes(delta_folder, base, folder)
        assert spec.parent is not None and spec.chain is not None, "it follows a base"
        delta = Delta(
            name=spec.name,
            sequence=spec.sequence,
            chain=spec.chain,
            parent=spec.parent,
            parent_listing=listing_hash(base),
            listing=sha256_of(folder / "files.json"),
            created=spec.created,
            changes=changes,
            payloads=payload_hashes(delta_folder),
            gone=gone,
        )
        write_delta(delta_folder, delta)
        for name in listing_of(folder):
            if name not in changes:
                (folder / name).unlink()
                link_or_copy(base / name, folder / name)
        small, large = _bytes_of(delta_folder), _bytes_of(folder)
        ids = ", ".join(f"{count:,} of {table}" for table, count in gone.items() if count)
        writing.done(
            f"number {spec.sequence} after {spec.chain}: {len(changes)} files changed, "
            f"{small / 1e6:,.1f} MB, {small / large:.1%} of the bundle; ids gone: {ids or 'none'}"
        )


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write_tombstones(folder: Path, bundles: Path) -> None:
    """Write the ids that the current bundle of the workspace knows and this one does not."""
    if not (bundles / CURRENT).is_file():
        return
    try:
        write_tombstones(folder, resolve(bundles / CURRENT), time.time())
    except DamagedFileError as error:
        say(
            f"note: which ids are gone is not known, for the bundle before cannot be read ({error})"
        )
