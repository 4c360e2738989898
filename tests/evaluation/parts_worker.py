"""Writes predictions that are spread over the ranks: `torchrun parts_worker.py FOLDER`.

Started by test_rows.py. In FOLDER/whole every rank writes its part; while the evaluation FOLDER/earlier
is replaced, the disk is full for rank 1's part. Rank 0 prints what each rank raised.
"""

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recsys.evaluation.predict import Predictions
from recsys.evaluation.rows import write_predictions
from recsys.files import DiskFullError
from recsys.report import evaluation_folder
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


def replace_without_space(target: Path, prepared: Path, ranks: Ranks) -> str:
    """Replace an evaluation while rank 1 has no space for its part; return what this rank raises."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if ranks.rank == 1:
        pq.ParquetWriter.write_table = full
    evaluation_folder._write_shown = lambda folder, *_: (folder / "metrics.json").write_text("new")
    found, unknown = predictions(ranks.rank, ranks.size)
    evaluation: Any = SimpleNamespace(
        predictions=found,
        modality_names=["a", "b"],
        users=SimpleNamespace(unknown_user_N=unknown),
    )
    data: Any = SimpleNamespace(ranks=ranks, prepared=prepared)
    config: Any = None
    try:
        with sharing_errors():
            evaluation_folder.write_evaluation(target, "", evaluation, data, config)
    except DiskFullError as error:
        return str(error)
    return ""


def main() -> None:
    """Write twice; the second time one rank fails."""
    folder = Path(sys.argv[1])
    env = start("cpu", timeout_seconds=60)
    ranks = all_ranks()
    write(folder / "whole", folder, ranks)
    # The ranks still answer each other afterwards.
    every = ranks.gather(replace_without_space(folder / "earlier", folder, ranks))
    if env.is_first:
        print("RESULT " + json.dumps(every), flush=True)
    stop()


if __name__ == "__main__":
    main()
