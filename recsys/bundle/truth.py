"""Truth of a bundle of the drawn world: the oracle's probabilities, which only the gallery shows.

    truth/users.npy    float32 [U, D]; NaN: not known
    truth/items.npy    float32 [N, D]; the inner product of both is the true logit

Other data have no such folder. Shapes: U users, N items, D the oracle's dimensions.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.spec import EXPORT_AGAIN
from recsys.files import read_array


class Truth:
    """The oracle of one bundle."""

    def __init__(self, folder: Path):
        """Map the files of `truth/`.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self._users_UD, self._items_ND = (
            read_array(folder / f"{name}.npy", EXPORT_AGAIN, mmap=True)
            for name in ("users", "items")
        )

    def probabilities(self, user_row: int) -> NDArray[np.float32]:
        """Return the true probability of every item for a user [N]; NaN where it is not known."""
        return 1 / (1 + np.exp(-(self._items_ND @ self._users_UD[user_row])))
