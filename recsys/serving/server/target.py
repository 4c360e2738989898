"""Target: the bundle that is to be served now, as the key `bundle=` and the disk say."""

import os
from dataclasses import dataclass
from pathlib import Path

from recsys.bundle.spec import resolve
from recsys.errors import UserError


@dataclass(frozen=True, slots=True)
class Target:
    """One bundle folder as it is at one moment."""

    folder: str
    """Real path."""
    stamp: int
    """Modification time of its bundle.json in ns: an export of the same name is another target."""


def find_target(bundle: str | Path, key: str = "bundle") -> Target:
    """Return the bundle that a path leads to.

    Args:
        bundle: folder of a bundle, or the file `current` beside bundles.
        key: that gave it, for the error.

    Raises:
        UserError: there is no bundle.
    """
    folder = os.path.realpath(resolve(bundle))
    try:
        stamp = os.stat(os.path.join(folder, "bundle.json")).st_mtime_ns
    except OSError as error:
        raise UserError(
            f"{key}={bundle}: no bundle there ({error.strerror}: {error.filename}); expected a "
            f"folder that launch/export.py wrote, or W/bundles/current"
        ) from error
    return Target(folder, stamp)
