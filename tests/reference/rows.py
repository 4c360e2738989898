"""What an example holds, the slow way: one row after another, straight from the prepared files."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recsys.schema import Manifest


def expected_examples(
    prepared: Path, manifest: Manifest, split: str, features: list[str]
) -> dict[int, dict]:
    """Return row_id -> label, user, item and a list of rows for every feature."""
    specs = {f.name: f for f in manifest.features}

    def side_list(folder: str, name: str, row: int) -> list[int]:
        values = np.load(prepared / folder / f"{name}.values.npy")
        offsets_file = prepared / folder / f"{name}.offsets.npy"
        if not offsets_file.is_file():
            return [int(values[row])]
        offsets = np.load(offsets_file)
        return values[offsets[row] : offsets[row + 1]].tolist()

    def history(row: dict, folder: str, length: int) -> list[int]:
        values = np.load(prepared / folder / "values.npy")
        start = int(np.load(prepared / folder / "offsets.npy")[row["user_row"]])
        past = values[start : start + row[f"{folder}_end"]].tolist()
        return past[-length:] if length else []

    def rows_of(name: str, row: dict) -> list[int]:
        spec = specs[name]
        if name in ("user_id", "item_id"):
            return [row["user_row" if name == "user_id" else "item_row"]]
        if spec.source == "history":
            assert manifest.history is not None
            if name == "history_negative":
                return history(row, name, manifest.history.negative_length)
            recent = name == "history_recent"
            return history(
                row,
                "history",
                manifest.history.recent_length if recent else manifest.history.max_length,
            )
        if spec.source == "interaction":
            return row[name] if spec.is_list else [row[name]]
        return side_list(f"{spec.source}s", name, row[f"{spec.source}_row"])

    examples = {}
    for file in manifest.splits[split].files:
        for row in pq.read_table(prepared / file).to_pylist():
            examples[row["row_id"]] = {
                "label": row["label"],
                "user": row.get("user_row", 0),
                "item": row.get("item_row", 0),
                "features": {name: rows_of(name, row) for name in features},
            }
    return examples
