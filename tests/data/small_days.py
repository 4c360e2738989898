"""A log that grows day by day on disk, its recipe, and the rows of prepared data by raw ids."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.config import from_config
from recsys.data.dataset import Dataset
from recsys.data.prepare.append import append
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import Recipe
from recsys.schema import read_manifest

HEADER = "user_id,item_id,time,label,place\n"
NOBODY = "nobody,nothing,0,1,x\nnobody,nothing,0,0,x\n"
"""Rows of valid and test where the base is split as given: ids that no day has."""


def write_day(source, number, rows):
    """Write a day's rows (user, item, time, label); the context `place` follows from user and item."""
    lines = [f"{u},{i},{t},{y},p{(len(u) + 3 * int(i[1:])) % 5}\n" for u, i, t, y in rows]
    folder = source / "log" / f"day={number:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part.csv").write_text(HEADER + "".join(lines))


def recipe(source, *, strategy="given", catalogues=(), **changes):
    """The recipe of the log; the base is day 0. `catalogues`: ids of users and of items, if listed."""
    log = {
        "file": "log",
        "user_id": "user_id",
        "item_id": "item_id",
        "timestamp": "time",
        "label": "label",
        "features": {"place": {}},
    }
    if strategy == "given":
        for name in ("valid", "test"):
            folder = source / name / "day=00"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "part.csv").write_text(HEADER + NOBODY)
        log["files"] = {"train": "log/*/*.csv", "valid": "valid/*/*.csv", "test": "test/*/*.csv"}
    node = {
        "name": "days",
        "source": str(source),
        "interactions": {**log, **changes.pop("interactions", {})},
        "split": {"strategy": strategy, "fractions": [0.5, 0.25, 0.25]},
        "history": {"max_length": 3, "recent_length": 1, "scope": "past"},
        **changes,
    }
    for side, ids in zip(("user", "item"), catalogues, strict=False):
        (source / f"{side}s.csv").write_text(
            f"{side}_id,kind\n" + "".join(f"{i},k{int(i[1:]) % 3}\n" for i in ids)
        )
        node[f"{side}s"] = {
            "file": f"{side}s.csv",
            "features": {f"{side}_kind": {"column": "kind"}},
        }
    return from_config(Recipe, node, "data")


def prepared_base(made, workspace):
    """Prepare what is there."""
    return prepare(made, workspace, memory_limit="500MB", threads=1)


def appended(made, workspace, since=None):
    """Append what is new."""
    return append(made, workspace, since=since, memory_limit="500MB", threads=1)


def ids_of(workspace, table):
    """The ids of a table by row, None for row 0."""
    listed = pq.read_table(workspace / "prepared" / "vocab" / f"{table}.parquet")
    assert listed.column("row").to_pylist() == list(range(1, len(listed) + 1))
    return [None, *listed.column("id").to_pylist()]


def rows_of(workspace, split):
    """Rows of a split by raw ids: (user, item, label, time, history..., place), sorted by row id."""
    manifest = read_manifest(workspace)
    sequences = manifest.history.sequences
    names = ["user_id", "item_id", *sequences, "place"]
    dataset = Dataset(workspace / "prepared", manifest, split=split, features=names)
    files = [pq.read_table(workspace / "prepared" / f) for f in manifest.splits[split].files]
    table = pa.concat_tables(files).sort_by("row_id")
    users, items, places = (ids_of(workspace, n) for n in ("user_id", "item_id", "place"))
    user_rows, past = table.column("user_row").to_numpy(), []
    for history in (f for f in dataset.features if f.name in sequences):
        ends = table.column(f"{history.name}_end").to_numpy()
        values, lengths = dataset.history_ids(history, user_rows, ends)
        past.append(np.split(values, np.cumsum(lengths)[:-1]))
    columns = (table.column(n).to_pylist() for n in ("item_row", "label", "timestamp", "place"))
    return [
        (users[u], items[i], label, time)
        + tuple(tuple(items[row] for row in seen) for seen in histories)
        + (places[place],)
        for u, i, label, time, place, *histories in zip(user_rows, *columns, *past, strict=True)
    ]
