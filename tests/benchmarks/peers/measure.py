"""What the peers' scripts share: the log as arrays, the command line, the result.

    python tests/benchmarks/peers/fuxictr_dcn.py WORKSPACE RESULT.json --threads 2

Runs in the peers' own environment: nothing of Tessera is imported, its files are read as they are.
"""

import argparse
import json
import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

BATCH, DIM, CROSS_LAYERS, DEEP_DIMS = 4096, 16, 3, [400, 400, 400]
LEARNING_RATE = 1e-3


class Log:
    """The prepared files of a workspace: every field's rows, its ids and the labels by split."""

    def __init__(self, workspace: Path, max_rows: int | None):
        prepared = workspace / "prepared"
        manifest = json.loads((prepared / "manifest.json").read_text())
        self.workspace = workspace
        rows = {table["name"]: table["num_rows"] for table in manifest["tables"]}
        self.fields = {f["name"]: rows[f["table"]] for f in manifest["features"]}
        self.splits = {}
        for split, spec in manifest["splits"].items():
            columns = ["item_row" if name == "item_id" else name for name in self.fields]
            table = pq.read_table([prepared / file for file in spec["files"]]).select([
                *columns,
                "label",
            ])
            table = table.slice(0, max_rows) if max_rows else table
            arrays = {name: table.column(name).to_numpy() for name in [*columns, "label"]}
            if "item_row" in arrays:
                arrays["item_id"] = arrays.pop("item_row")
            self.splits[split] = arrays

    def vectors(self) -> dict[str, np.ndarray]:
        """Vectors [items, dim] by modality; none where the log has no items."""
        found = {}
        for folder in sorted((self.workspace / "features").glob("*")):
            parts = sorted(folder.glob("shard-?????.npy"))
            found[folder.name] = np.concatenate([np.load(part) for part in parts])
        return found


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-rows", type=int)
    parser.add_argument("--variant", default="")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    return options


def tree_bytes(pid: int) -> int:
    """Resident bytes of a process and its descendants, shared pages counted for each."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            todo += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += pages * resource.getpagesize()
    return total


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve by ranks, ties shared."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positive = labels > 0
    num = int(positive.sum())
    return float((ranks[positive].sum() - num * (num + 1) / 2) / (num * (len(labels) - num)))


def write_result(
    path: Path,
    *,
    train_rows: int,
    train_seconds: float,
    train_cpu_seconds: float,
    valid_rows: int,
    valid_seconds: float,
    valid_auc: float,
) -> None:
    path.write_text(
        json.dumps({
            "train_samples_per_second": train_rows / train_seconds,
            "eval_samples_per_second": valid_rows / valid_seconds,
            "auc": valid_auc,
            "train_cpu_microseconds_per_sample": 1e6 * train_cpu_seconds / train_rows,
            "torch": torch.__version__,
        })
    )
