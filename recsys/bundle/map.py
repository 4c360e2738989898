"""Map of a bundle: a point of the plane for every item, by modality, and which groups it belongs to.

    map/<modality>.npy     float32 [N, 2] in [-1, 1]; nan for unknown row 0 and items without a vector
    map/<grouping>.npy     uint16 [N]: bit i is set where the item belongs to group i
    map/groups.json        groups by grouping (`artist`, `tags`): name and number of items, largest first

Written by recsys/export/map.py, memory-mapped; a bundle may have none. Needs numpy alone.
Shapes: N items.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.spec import EXPORT_AGAIN, BundleSpec
from recsys.files import read_array, read_json, reading

MODALITIES = ("semantic", "style", "text")
GROUPINGS = ("artist", "tags")
"""Columns of the catalogue by whose values items are grouped."""
MAX_GROUPS = 12
"""Groups of a grouping; at most the bits of uint16."""
NO_PLACE = 65_535
"""Both coordinates, as uint16, of an item that has no point."""


@dataclass(frozen=True, slots=True)
class Group:
    """Items with one value of a column."""

    name: str
    count: int
    """Items of the group."""


class Map:
    """Layouts and groups of one bundle, read."""

    def __init__(self, folder: Path, spec: BundleSpec):
        """Map the files of `map/`; a bundle without them has no layouts.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self._folder = folder
        self.layouts = [name for name in MODALITIES if f"map/{name}.npy" in spec.sizes]
        """Modalities that have a layout."""
        self.groups: dict[str, list[Group]] = {}
        """Groups by grouping; group i is bit i."""
        if "map/groups.json" in spec.sizes:
            path = folder / "groups.json"
            with reading(path, EXPORT_AGAIN):
                stored = read_json(path, EXPORT_AGAIN)
                self.groups = {
                    name: [Group(group["name"], group["count"]) for group in stored[name]]
                    for name in GROUPINGS
                    if name in stored
                }

    def places(self, layout: str) -> NDArray[np.uint16]:
        """Return the items' points of a layout as uint16 [N - 1, 2], from row 1.

        [-1, 1] becomes [0, 65534]; NO_PLACE twice is no point.
        """
        place_N2 = read_array(self._folder / f"{layout}.npy", EXPORT_AGAIN, mmap=True)[1:]
        scaled_N2 = np.rint((np.clip(place_N2, -1, 1) + 1) * ((NO_PLACE - 1) / 2))
        return np.where(np.isnan(scaled_N2), NO_PLACE, scaled_N2).astype("<u2")

    def members(self, grouping: str) -> NDArray[np.uint16]:
        """Return the items' groups, a bit for each, as uint16 [N - 1], from row 1."""
        stored_N = read_array(self._folder / f"{grouping}.npy", EXPORT_AGAIN, mmap=True)
        return stored_N[1:].astype("<u2")
