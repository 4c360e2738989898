"""Evaluates on ranks of which one ends in the middle: `torchrun killed_worker.py FOLDER STAGE RANK`.

Started by test_killed_ranks.py. The rank ends where a stage begins, without a word to the others: its
connections close, as they do for a process that was killed. (It ends with code 0, since the test's
launcher would kill the others for any other.) A job prints what the others raise.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq

from recsys.evaluation.predict import by_score
from recsys.job import run_job
from recsys.metrics import row_sums
from recsys.metrics.predictions import labelled_scores
from recsys.metrics.summary import evaluate_rows_of
from recsys.report import evaluation_folder
from recsys.runtime.collectives import sharing_errors
from recsys.runtime.env import start, stop
from recsys.runtime.ranks import all_ranks
from tests.evaluation.parts_worker import predictions


def job() -> None:
    """Sort, measure and write, with the folder of an earlier evaluation in the way."""
    folder, stage, victim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    start("cpu", timeout_seconds=60)
    ranks = all_ranks()

    def ended(*_: Any) -> None:
        os._exit(0)

    if ranks.rank == victim:
        if stage == "metrics":
            row_sums.last_of_bins = ended
        else:
            pq.ParquetWriter.write_table = ended
    evaluation_folder._write_shown = lambda beside, *_: (beside / "metrics.json").write_text("new")
    found, unknown = predictions(ranks.rank, ranks.size)
    with sharing_errors():
        found = by_score(found, ranks)
        evaluate_rows_of(labelled_scores(found.label, found.score / 2, ranks=ranks))
        evaluation: Any = SimpleNamespace(
            predictions=found,
            modality_names=["a", "b"],
            users=SimpleNamespace(unknown_user_N=None),
        )
        data: Any = SimpleNamespace(ranks=ranks, prepared=folder)
        config: Any = None
        evaluation_folder.write_evaluation(folder / "earlier", "", evaluation, data, config)
    stop()


if __name__ == "__main__":
    run_job(job)
