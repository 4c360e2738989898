"""Users of a bundle: rows of their features and their histories, memory-mapped.

    users/<feature>.values.npy, .offsets.npy   rows of the users' features, as in prepared/users
    users/history.values.npy, .offsets.npy     item rows the user liked, oldest first, as far as the model
                                               may read them
    users/history_negative.values.npy, .offsets.npy   the same of rows of label 0, where they are prepared
    users/likers.values.npy, .offsets.npy      user rows by item, of the histories
    users/seen.values.npy, .offsets.npy        every item row the user liked in the log, of all splits
    users/last_time.npy                        int64 [U]: time of the last interaction, 0: not known

Shapes: U users, T items of a history.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.histories import Histories
from recsys.bundle.items import FeatureRows, open_features
from recsys.bundle.spec import BundleSpec
from recsys.bundle.tables import mapped
from recsys.schema import Manifest


class UserStore:
    """Users of the files, read."""

    def __init__(self, folder: Path, spec: BundleSpec):
        """Map the files of `users/`.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self.num_rows = spec.manifest.num_user_rows
        self.features: dict[str, FeatureRows] = open_features(folder, user_features(spec.manifest))
        history = spec.manifest.history
        self._histories = {
            name: Histories(folder, name) for name in (history.sequences if history else ())
        }
        # Bundles of earlier versions have histories alone.
        has_seen = "users/seen.values.npy" in spec.sizes
        self._seen = Histories(folder, "seen") if has_seen else self._histories.get("history")
        file = folder / "last_time.npy"
        self._last_time_U = mapped(file).numpy() if file.is_file() else None

    def history(self, user_row: int, sequence: str = "history") -> NDArray[np.int64]:
        """Return the item rows a user liked [T], oldest first; empty for row 0 and without histories.

        Args:
            sequence: `history_negative`: those of the user's rows of label 0.
        """
        found = self._histories.get(sequence)
        return np.zeros(0, np.int64) if found is None else found.of(user_row)

    def seen(self, user_row: int) -> NDArray[np.int64]:
        """Return the item rows a user liked anywhere in the log [T], in no order.

        Lists leave them out. A history lacks some: those of the validation and test splits, where the
        model reads training positives alone (history.scope=train).
        """
        return np.zeros(0, np.int64) if self._seen is None else self._seen.of(user_row)

    def last_time(self, user_row: int) -> int:
        """Return the time of a user's last interaction in the log's unit; 0 where it is not known."""
        return 0 if self._last_time_U is None else int(self._last_time_U[user_row])

    @property
    def newest_time(self) -> int:
        """Time of the last interaction of all users in the log's unit; 0 where it is not known."""
        return 0 if self._last_time_U is None else int(self._last_time_U.max(initial=0))


def user_features(manifest: Manifest) -> list[str]:
    """Return the features of the users file, in the manifest's order, dense ones last."""
    features = manifest.all_features
    return [f.name for f in features if f.source == "user" and f.name != "user_id"]
