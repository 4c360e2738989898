"""Picture folder check: an image folder that is not mounted is noticed before anything is done.

Called by launch/embed.py.
"""

import os
from pathlib import Path

from embedding.features.catalogue import Catalogue, sample_rows
from embedding.features.store import read_feature_manifest
from recsys.errors import UserError
from recsys.schema import Manifest

_LOOKED_AT = 2048
"""Most items whose pictures are looked for."""


def check_pictures(workspace: Path, manifest: Manifest) -> None:
    """Refuse a picture folder that is not there as it was: a share that is not mounted looks empty.

    A sample of the items is looked at, against what prepare and an earlier extraction found.

    Raises:
        UserError: the folder is missing or empty, or fewer than a tenth of the pictures that were
            there are left.
    """
    root = Path(str(manifest.image_root))
    remedy = (
        "is a share not mounted? Vectors that are there would be lost; mount it, or give "
        "forget_missing=true where the pictures are gone for good"
    )
    if not (root.is_dir() and any(root.iterdir())):
        state = "empty" if root.is_dir() else "missing"
        raise UserError(f"{root}: the picture folder is {state}; {remedy}")
    catalogue = Catalogue(workspace / "prepared")
    rows = sample_rows(catalogue.num_rows, _LOOKED_AT, seed=0)
    names = [name for name in catalogue.column("image", rows) if name is not None]
    if not names:
        return
    share_named = len(names) / len(rows)
    num_items = catalogue.num_rows - 1
    were_there = [1 - manifest.missing_images / num_items]
    folder = workspace / "features" / "semantic"
    if (folder / "manifest.json").is_file():
        table = read_feature_manifest(folder)
        were_there.append((table.count - table.num_masked) / max(table.count - 1, 1))
    expected = min(max(were_there) / share_named, 1)
    found = sum(os.path.isfile(os.path.join(root, name)) for name in names)
    if found < expected * len(names) / 10:
        raise UserError(
            f"{root}: of {len(names):,} pictures looked for, {found:,} are there, where earlier "
            f"about {expected * len(names):,.0f} were; {remedy}"
        )
