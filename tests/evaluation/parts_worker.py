"""Writes predictions that are spread over the ranks: `torchrun parts_worker.py FOLDER`.

Started by test_rows.py. In FOLDER/whole every rank writes its part; before it writes one of
FOLDER/failed, rank 1 runs out of space. Rank 0 prints what each rank raised.
"""

import json
import sys
from pathlib import Path

import numpy as np

from recsys.errors import StorageError
from recsys.evaluation.predict import Predictions
from recsys.evaluation.rows import write_predictions
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import start, stop
from recsys.runtime.ranks import Ranks, all_ranks

NUM_ROWS = 501


def predictions(rank: int, size: int) -> tuple[Predictions, np.ndarray]:
    """Return the rows of a rank in any order, and the hashes of their unknown users."""
    row = np.random.default_rng(5).permutation(NUM_ROWS)[rank::size]
    found = Predictions(
        row_id=row,
        user_row=row % 7,
        item_row=row % 5,
        label=(row % 3 == 0).astype(np.uint8),
        score=np.sqrt(row + 1) / 30,
        weights=np.stack([row / 1000, 1 - row / 1000], axis=1).astype(np.float32),
    )
    return found, np.where(row % 7 == 0, row % 11 + 1, 0).astype(np.uint64)


def write(folder: Path, prepared: Path, ranks: Ranks) -> None:
    """Write the part of a rank."""
    found, unknown = predictions(ranks.rank, ranks.size)
    write_predictions(
        folder,
        found,
        modality_names=["a", "b"],
        prepared=prepared,
        unknown_users_N=unknown,
        ranks=ranks,
    )


def main() -> None:
    """Write twice; the second time one rank fails."""
    folder = Path(sys.argv[1])
    env = start("cpu", timeout_seconds=60)
    ranks = all_ranks()
    write(folder / "whole", folder, ranks)
    raised = ""
    try:
        with sharing_errors():
            if env.rank == 1:
                raise StorageError("no space left for part 1")
            write(folder / "failed", folder, ranks)
    except StorageError as error:
        raised = str(error)
    every = ranks.gather(raised)
    if env.is_first:
        print("RESULT " + json.dumps(every), flush=True)
    stop()


if __name__ == "__main__":
    main()
