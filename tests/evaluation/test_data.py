"""Data of an evaluation: users and items are counted as they were known before the split."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recsys.data.dataset import Dataset
from recsys.evaluation.config import BootstrapConfig, EvaluateConfig
from recsys.evaluation.data import EvaluationData
from recsys.evaluation.evaluate import ScoredSplit, evaluate
from recsys.evaluation.predict import Predictions
from recsys.evaluation.segments import SegmentsConfig
from tests.data.small_days import appended, ids_of, prepared_base, recipe, write_day

ROOT = Path(__file__).parents[2]
BASE = [(f"u{1 + n % 2}", f"i{1 + n % 3}", n, int(n % 5 < 3)) for n in range(12)]
DAYS = [
    [("u1", "i3", 20, 1), ("u3", "i1", 21, 0), ("u3", "i2", 22, 1)],
    [("u3", "i1", 30, 1), ("u2", "i3", 31, 0), ("u3", "i3", 32, 1)],
]
CONFIG = EvaluateConfig(
    bootstrap=BootstrapConfig(num_replicates=2), segments=SegmentsConfig(short_history=6)
)


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Prepared data without histories, and two windows appended to it."""
    folder = tmp_path_factory.mktemp("days")
    made = recipe(folder / "raw", history={"max_length": 0, "recent_length": 0})
    write_day(folder / "raw", 0, BASE)
    manifest = prepared_base(made, folder / "w")
    for number, rows in enumerate(DAYS, start=1):
        write_day(folder / "raw", number, rows)
        manifest = appended(made, folder / "w")
    assert manifest.history is None
    return manifest, folder / "w"


def data_of(days, split):
    manifest, workspace = days
    dataset = Dataset(workspace / "prepared", manifest, split=split, features=[])
    return EvaluationData(workspace=workspace, dataset=dataset, tables={})


BEFORE = {
    "test": ({"u1": 6, "u2": 6}, {"i1": 4, "i2": 4, "i3": 4}),
    "window_0001": ({"u1": 6, "u2": 6}, {"i1": 4, "i2": 4, "i3": 4}),
    "window_0002": ({"u1": 7, "u2": 6, "u3": 2}, {"i1": 5, "i2": 5, "i3": 5}),
}
"""Rows of each user and item before a split."""


@pytest.mark.parametrize("split", BEFORE)
def test_users_and_items_are_counted_as_before_the_split(days, split):
    data, (users, items) = data_of(days, split), BEFORE[split]
    found = {"user": data.user_train_count, "item": data.train_count}
    for side, expected in (("user", users), ("item", items)):
        counts = found[side][1:]
        named = dict(zip(ids_of(days[1], f"{side}_id")[1:], counts.tolist(), strict=True))
        assert {name: count for name, count in named.items() if count} == expected
        shown = data.interactions[side]
        numbers = Counter(expected.values())
        assert dict(zip(shown.counts_C, shown.owners_C, strict=True)) == numbers
        assert shown.num_without == len(counts) - len(expected)


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("window_0001", {"none": 2, "short (1 to 6)": 1, "long (7 or more)": 0}),
        ("window_0002", {"none": 0, "short (1 to 6)": 3, "long (7 or more)": 0}),
    ],
)
def test_segments_by_rows_of_the_user_leave_the_window_itself_out(days, split, expected):
    data = data_of(days, split)
    rows = data.dataset.read(0, data.dataset.num_rows).to_pydict()
    names = ("row_id", "user_row", "item_row", "label")
    row_id, user_row, item_row, label = (np.array(rows[name]) for name in names)
    predictions = Predictions(
        row_id=row_id,
        user_row=user_row,
        item_row=item_row,
        label=label.astype(np.float64),
        score=np.full(len(row_id), 0.5),
        weights=np.zeros((len(row_id), 0), np.float32),
    )
    scored = ScoredSplit(predictions=predictions, modality_names=[])
    config = dataclasses.replace(CONFIG, split=split)
    segments = evaluate(data, scored, config).result.segments["training rows of the user"]
    assert {name: segment.num_rows for name, segment in segments.items()} == expected


def test_only_the_data_set_reads_counts_of_prepared_data():
    """Any other reader would count the rows of the window and of later ones, too."""
    named = re.compile(r'(users|items)"? ?/ ?"?(train|drawn)_count')
    readers = {
        path.relative_to(ROOT).as_posix()
        for folder in ("recsys", "embedding", "launch")
        for path in (ROOT / folder).rglob("*.py")
        if named.search(path.read_text())
    }
    # An export has the counts of all windows, and a bundle's file is called alike.
    others = {"recsys/export/export.py", "recsys/bundle/items.py"}
    assert readers == {"recsys/data/dataset.py"} | others
