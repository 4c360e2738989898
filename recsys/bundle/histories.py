"""Item rows of a bundle's users: what the model reads, and what they have seen; by numpy alone.

    users/history.values.npy, .offsets.npy   histories, oldest first
    users/history_negative.values.npy, ...   those of the users' rows of label 0
    users/likers.values.npy, .offsets.npy    the histories by item: user rows [V], ascending
    users/seen.values.npy, .offsets.npy      every liked item of the log

Memory-mapped. Read by users.py, and by recsys/serving/shown.py in a process that has no torch.
Shapes: U users, T items of a history.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.spec import EXPORT_AGAIN
from recsys.files import read_array


class Histories:
    """Liked item rows by user row."""

    def __init__(self, folder: Path, name: str = "history"):
        """Map the files of `users/`.

        Args:
            name: `history`, `history_negative` or `seen`; `likers` for user rows by item row.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self._values, self._offsets = (
            # Plain views: indexing a memmap costs several times as much.
            np.asarray(read_array(folder / f"{name}.{part}.npy", EXPORT_AGAIN, mmap=True))
            for part in ("values", "offsets")
        )

    def of(self, user_row: int) -> NDArray[np.int64]:
        """Return a user's liked item rows [T], oldest first; an item's user rows of `likers`."""
        start, stop = self._offsets.item(user_row), self._offsets.item(user_row + 1)
        return np.asarray(self._values[start:stop], np.int64)

    def holding(self, item_row: int) -> NDArray[np.int64]:
        """Return the rows of the users whose history holds an item [U], ascending; reads all values.

        For bundles of earlier versions, which have no `likers`.
        """
        places = np.flatnonzero(np.asarray(self._values) == item_row)
        return np.unique(np.searchsorted(self._offsets, places, side="right") - 1)
