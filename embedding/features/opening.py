"""Opening of feature tables for a job: whole, and made of what the prepared data has, or refused.

In: names of tables of a workspace, and the manifest of its prepared data. Out: FeatureTable of each.
Called by training, evaluation, planning and export.
"""

from collections.abc import Callable
from pathlib import Path

from embedding.features.store import FeatureManifest, FeatureTable
from recsys.errors import UserError
from recsys.runtime.hosts import once_a_host
from recsys.schema import Manifest

VERIFY_BYTES = 1 << 30
"""Tables up to this size are checked against their sha256 when they are opened for training."""


def open_features(
    workspace: Path,
    names: list[str],
    manifest: Manifest,
    say: Callable[[str], None] = print,
) -> dict[str, FeatureTable]:
    """Open feature tables by name; all ranks call this, and the first of each host reads for the others.

    It looks at every file, and compares small tables with their sha256 (`VERIFY_BYTES`).

    Args:
        manifest: of the prepared data whose items, texts and pictures the vectors must be of.
        say: takes a line on every table that does not know its texts or pictures (one of earlier
            versions); today's are taken for them.

    Raises:
        UserError: on every rank: a table is missing, broken, or of other items, texts or pictures.
    """
    folders = {name: workspace / "features" / name for name in names}

    def checked() -> dict[str, FeatureManifest]:
        tables = {name: FeatureTable(folder) for name, folder in folders.items()}
        for table in tables.values():
            _check_source(table, manifest, say)
            if table.num_rows * table.form.num_bytes <= VERIFY_BYTES:
                table.verify()
        return {name: table.manifest for name, table in tables.items()}

    manifests = once_a_host(checked)
    return {name: FeatureTable(folder, manifests[name]) for name, folder in folders.items()}


def _check_source(table: FeatureTable, manifest: Manifest, say: Callable[[str], None]) -> None:
    """Refuse a table that was made for other items, texts or pictures than the prepared data has.

    Raises:
        UserError: names the table and both checksums.
    """
    folder, made = table.folder, table.manifest
    own = manifest.vectors.get(folder.name)
    again = "launch/embed.py again" if own is None else "launch/prepare.py again, which writes them"
    if own is not None and made.made_of_before == own:
        again = "the same launch/prepare.py append=true again, which was stopped before its end"
    if made.items_checksum != manifest.items_checksum or made.count != manifest.num_item_rows:
        raise UserError(
            f"{folder}: made for other items ({made.count:,} rows, checksum "
            f"{made.items_checksum[:12]}); the prepared data has {manifest.num_item_rows:,} rows, "
            f"checksum {manifest.items_checksum[:12]}. Run {again}"
        )
    if own is not None:
        if made.made_of != own:
            raise UserError(
                f"{folder}: other vectors than the prepared data has now (checksum was "
                f"{made.made_of[:12]}, is {own[:12]}). Run {again}"
            )
        return
    column = "text" if folder.name == "text" else "image"
    contents = "texts" if column == "text" else "pictures"
    now = manifest.column_checksums.get(column, "")
    if not made.made_of:
        say(
            f"note: {folder} does not say of which {contents} it was made; today's are taken for "
            f"them (launch/prepare.py and launch/embed.py note it; what has not changed is kept)"
        )
    if made.made_of and now and made.made_of != now:
        raise UserError(
            f"{folder}: made of other {contents} than the "
            f"prepared data has now (checksum of items.{column} was {made.made_of[:12]}, is "
            f"{now[:12]}). Run launch/embed.py again; what has not changed is kept"
        )
