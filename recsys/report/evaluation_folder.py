"""The folder of an evaluation: runs/<name>/eval/<split>/, written beside and renamed.

In: an evaluation and the data it read. Out: metrics.json and report.html, by rank 0, and
predictions.parquet, a folder with a part of each rank. Called by launch/evaluate.py on every rank.
"""

import contextlib
from pathlib import Path

from embedding.features.catalogue import Catalogue
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.data import EvaluationData
from recsys.evaluation.evaluate import Evaluation
from recsys.evaluation.result import write_result
from recsys.evaluation.rows import write_predictions
from recsys.files import new_folder
from recsys.report.evaluation_page import DataCounts, write_report
from recsys.report.items import read_items
from recsys.schema import SplitSpec


def write_evaluation(
    target: Path,
    title: str,
    evaluation: Evaluation,
    data: EvaluationData,
    config: EvaluateConfig,
) -> None:
    """Write the folder, each rank its predictions; it appears whole, in the place of an earlier one.

    Edge cases: an error on a rank leaves the earlier folder as it was.

    Raises:
        DiskFullError: there is no space on a rank; names the file.
    """
    ranks = data.ranks
    with contextlib.ExitStack() as on_first:
        beside = on_first.enter_context(new_folder(target)) if ranks.rank == 0 else Path()
        beside = ranks.gather(beside)[0]
        if ranks.rank == 0:
            (beside / "predictions.parquet").mkdir()
            _write_shown(beside, title, evaluation, data, config)
        ranks.gather(None)  # the folder of the parts is there
        write_predictions(
            beside / "predictions.parquet",
            evaluation.predictions,
            modality_names=evaluation.modality_names,
            prepared=data.prepared,
            unknown_users_N=evaluation.users.unknown_user_N,
            ranks=ranks,
        )
        ranks.gather(None)  # all parts are written


def _write_shown(
    folder: Path,
    title: str,
    evaluation: Evaluation,
    data: EvaluationData,
    config: EvaluateConfig,
) -> None:
    """Write metrics and report."""
    rows = sorted({row for user in evaluation.sample_users for row in user.item_rows})
    items = read_items(Catalogue(data.prepared), data.manifest, rows) if rows else {}
    write_result(folder / "metrics.json", evaluation.result)
    write_report(
        folder / "report.html",
        title=title,
        evaluation=evaluation,
        level=config.bootstrap.level,
        counts=data_counts(data, evaluation),
        items=items,
    )


def data_counts(data: EvaluationData, evaluation: Evaluation) -> DataCounts:
    """Return the data's own statistics."""
    manifest = data.manifest
    facts = {
        f"{name} rows (positive)": f"{split.num_rows:,} ({_share(split)})"
        for name, split in manifest.splits.items()
    }
    if manifest.num_user_rows:
        facts["users"] = f"{manifest.num_user_rows - 1:,}"
    if manifest.num_item_rows:
        facts["items"] = f"{manifest.num_item_rows - 1:,}"
    for name, num_items in evaluation.vector_counts.items():
        dim = data.tables[name].dim
        facts[f"items with {name} vector"] = f"{num_items:,}, {dim} numbers each"
    facts["sparse features"] = ", ".join(f.name for f in manifest.features)
    if manifest.dense:
        facts["dense features"] = ", ".join(f.name for f in manifest.dense)
    return DataCounts(
        facts=facts,
        by_item=evaluation.interactions.get("item"),
        by_user=evaluation.interactions.get("user"),
    )


def _share(split: SplitSpec) -> str:
    return f"{split.num_positives / split.num_rows:.1%}" if split.num_rows else "-"
