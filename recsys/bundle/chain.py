"""Chain of a bundle and its deltas: the next version made beside, `current` moved, old versions removed.

    bundles/<name>/          whole bundles, and versions that deltas made: unchanged files are hard links
    bundles/current          names the one to serve
    bundles/deltas/          deltas (recsys/bundle/delta.py)

A delta is applied where its parent is here and the bundle that it makes is not: to go back, write an
earlier version's name into `current`, and nothing is applied before a newer delta comes.
Called by recsys/export and by the server.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys.bundle.delta import (
    DELTAS,
    SYNC_AGAIN,
    Delta,
    check_payloads,
    read_delta,
)
from recsys.bundle.patch import link_or_copy, make_file
from recsys.bundle.spec import CURRENT, EXPORT_AGAIN, point_to, resolve
from recsys.errors import UserError
from recsys.files import DamagedFileError, new_folder, read_json, reading, remove_folder, sha256_of
from recsys.locks import is_shared, locked


@dataclass(frozen=True, kw_only=True)
class Link:
    """A bundle's place in its chain, as its bundle.json says; bundles of earlier versions begin one."""

    name: str
    chain: str
    """Whole bundle that the chain begins with; its own name: it is that bundle."""
    sequence: int
    """Deltas since then."""
    parent: str | None
    created: str

    @property
    def is_whole(self) -> bool:
        """Whether it was exported whole."""
        return self.parent is None


def read_link(bundle: Path) -> Link:
    """Return a bundle's place in its chain.

    Raises:
        DamagedFileError: its bundle.json is missing or broken.
    """
    raw = read_json(bundle / "bundle.json", EXPORT_AGAIN)
    return Link(
        name=bundle.name,
        chain=raw.get("chain") or bundle.name,
        sequence=int(raw.get("sequence", 0)),
        parent=raw.get("parent"),
        created=str(raw.get("created", "")),
    )


def listing_hash(bundle: Path) -> str:
    """Return the sha256 of a bundle's files.json, by which deltas name their parent.

    Raises:
        DamagedFileError: it has none.
    """
    path = bundle / "files.json"
    with reading(path, EXPORT_AGAIN):
        return sha256_of(path)


def delta_folders(bundles: Path) -> list[Path]:
    """Return the folders of complete deltas beside bundles, in the order of their sequence numbers."""
    found = (bundles / DELTAS).glob("*/delta.json")
    return sorted(path.parent for path in found if not path.parent.name.startswith("."))


def next_delta(bundles: Path) -> Path | None:
    """Return the folder of the delta to apply next; None where there is none.

    Raises:
        UserError: a newer delta cannot be applied: it is broken, of another version or chain, the one
            before it is missing, or its parent differs from the one here; names it.
    """
    folders = delta_folders(bundles)
    if not folders:
        return None
    current = read_link(resolve(bundles / CURRENT))
    for folder in folders:
        delta = read_delta(folder)
        if (bundles / delta.name).exists():
            continue
        if delta.chain != current.chain:
            if delta.created > current.created:
                raise UserError(
                    f"{folder}: a delta of the bundle {delta.chain}, given beside {current.name}, which "
                    f"began with {current.chain}; copy {delta.chain} here and write its name into "
                    f"{bundles / CURRENT}, or remove the delta"
                )
            continue
        if delta.sequence <= current.sequence:
            continue
        _check_parent(folder, delta, bundles, current)
        return folder
    return None


def _check_parent(folder: Path, delta: Delta, bundles: Path, current: Link) -> None:
    parent = bundles / delta.parent
    if not parent.is_dir():
        raise UserError(
            f"{folder}: delta {delta.sequence} follows {delta.parent}, which is not here; {current.name} "
            f"is number {current.sequence} of its chain, and delta {delta.sequence - 1} is missing: "
            f"{SYNC_AGAIN}"
        )
    if listing_hash(parent) != delta.parent_listing:
        raise UserError(
            f"{folder}: delta {delta.sequence} was made for another {delta.parent}: the sha256 of "
            f"{parent / 'files.json'} differs from the one in delta.json; copy the bundle again, or "
            f"export a whole one"
        )


def apply_delta(folder: Path, bundles: Path) -> Path:
    """Make the bundle of a delta beside its parent, and return it; `current` stays as it is.

    Files that have not changed are the parent's (hard links); every file that is made is compared with
    the listing of the export.

    Raises:
        UserError: the delta is damaged, or does not give the files of the export; names it. Nothing is
            left of the bundle.
    """
    delta = read_delta(folder)
    check_payloads(folder, delta)
    parent, target = bundles / delta.parent, bundles / delta.name
    with new_folder(target) as made:
        _make(made, parent, folder, delta, "files.json", delta.listing)
        listed = dict(read_json(made / "files.json", SYNC_AGAIN)["sha256"])
        for name, sha256 in listed.items():
            if name in delta.changes:
                _make(made, parent, folder, delta, name, sha256)
            else:
                with reading(parent / name, EXPORT_AGAIN):
                    link_or_copy(parent / name, made / name)
    return target


def _make(made: Path, parent: Path, folder: Path, delta: Delta, name: str, sha256: str) -> None:
    """Make one file of a bundle, and compare it with the export's."""
    change = delta.changes[name]
    with reading(folder / change.payload, SYNC_AGAIN):
        make_file(made / name, parent / name, folder / change.payload, change)
        if sha256_of(made / name) != sha256:
            raise UserError(f"makes a {name} of {parent} whose sha256 differs from the export's")


def move_current(bundles: Path, name: str, instead_of: str | None = None) -> bool:
    """Make a bundle the current one; return whether it is.

    Args:
        instead_of: only while this one is; an export that was faster keeps its place.
    """
    with locked(bundles):
        if instead_of is not None and resolve(bundles / CURRENT).name != instead_of:
            return False
        point_to(bundles, name)
        return True


def catch_up(bundles: Path) -> list[str]:
    """Apply all deltas that follow the current bundle, each of which becomes the current one.

    Returns:
        Names of the bundles that were made, in order.

    Raises:
        UserError: as next_delta and apply_delta; those before it are applied.
    """
    made = []
    while (folder := next_delta(bundles)) is not None:
        before = resolve(bundles / CURRENT).name
        made.append(apply_delta(folder, bundles).name)
        if not move_current(bundles, made[-1], instead_of=before):
            break
    return made


def compact(bundles: Path, keep: int) -> list[str]:
    """Remove versions of deltas that nothing has open, and deltas of earlier chains; return their names.

    Whole bundles stay, and so do the current bundle and the parents of deltas that are to be applied.

    Args:
        keep: newest versions beside the current one that stay as well, with their deltas.
    """
    current = read_link(resolve(bundles / CURRENT))
    versions = [link for link in _links(bundles) if not link.is_whole and link.name != current.name]
    versions.sort(key=lambda link: (link.created, link.sequence), reverse=True)
    deltas = {folder: read_delta(folder) for folder in delta_folders(bundles)}
    ahead = [
        d for d in deltas.values() if d.chain == current.chain and d.sequence > current.sequence
    ]
    needed = {link.name for link in versions[:keep]} | {delta.parent for delta in ahead}
    removed = []
    for link in versions:
        folder = bundles / link.name
        if link.name not in needed and not is_shared(folder / "bundle.json"):
            remove_folder(folder)
            removed.append(link.name)
    for folder, delta in deltas.items():
        is_earlier = delta.chain != current.chain and delta.created < current.created
        if is_earlier and delta.name not in needed:
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed


def _links(bundles: Path) -> Iterator[Link]:
    for path in sorted(bundles.glob("*/bundle.json")):
        if path.parent.name.startswith("."):
            continue
        try:
            yield read_link(path.parent)
        except DamagedFileError:  # people see to it
            continue
