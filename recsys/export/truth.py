"""Export of the drawn world's truth: the oracle's probability of every user and item, for the gallery.

In: W/truth/world.json, where the workspace has one, and the bundle's vocabularies. Out: truth/users.npy
and truth/items.npy of recsys/bundle/truth.py. No model reads them.
Shapes: U users, N items, D the oracle's dimensions.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.vocabulary import Vocabulary
from recsys.demo.world import oracle_of
from recsys.files import write_array
from recsys.schema import UNKNOWN_ROW, Manifest


def write_truth(folder: Path, workspace: Path, manifest: Manifest) -> bool:
    """Write `truth/` of a bundle in the making; False where the workspace has no truth of its users.

    Args:
        folder: the bundle's, with `vocab/`.
    """
    oracle = oracle_of(workspace)
    if oracle is None or not manifest.num_user_rows:
        return False
    num_rows = {"user_id": manifest.num_user_rows, "item_id": manifest.num_item_rows}
    parts = {"user_id": (oracle.user_ids, oracle.users), "item_id": (oracle.item_ids, oracle.items)}
    vectors = {}
    for table, (ids, vectors_KD) in parts.items():
        vocabulary = Vocabulary(folder / "vocab", table)
        vectors[table] = _by_row(vocabulary, num_rows[table], ids, vectors_KD)
    if any(np.isnan(vectors_ND[1:]).all() for vectors_ND in vectors.values()):
        return False  # the data was made of other files than the drawn ones
    (folder / "truth").mkdir()
    write_array(folder / "truth" / "users.npy", vectors["user_id"])
    write_array(folder / "truth" / "items.npy", vectors["item_id"])
    return True


def _by_row(
    vocabulary: Vocabulary, num_rows: int, ids: list[str], vectors_KD: NDArray
) -> NDArray[np.float32]:
    """Return the vectors by row [N, D]; NaN for rows whose id is none of those given [K]."""
    vectors_ND = np.full((num_rows, vectors_KD.shape[1]), np.nan, np.float32)
    rows_K = vocabulary.rows_of(ids)
    vectors_ND[rows_K[rows_K != UNKNOWN_ROW]] = vectors_KD[rows_K != UNKNOWN_ROW]
    return vectors_ND
