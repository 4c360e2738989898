"""Warm starts on new days against training anew on everything, on real users. `make bench`.

MovieLens by two months of its own times, and anime ratings, which have no times, by drawn days. Three
seeds; half an hour a case beside other work, as the jobs are forked. The AUC of all windows together is
held to that of training anew, and both the rows that are trained on and the processor time to a fifth.
Imports and configuration of a process, some five seconds of either training, are not in the processor
time (`train/cpu_seconds`).
"""

import csv
import json
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml

from tests.forked_jobs import run_forked

pytestmark = [pytest.mark.bench, pytest.mark.timeout(36_000)]
FILMS = {
    "genres": {"kind": "id_list"},
    "director": {"kind": "id_list", "separator": ",", "min_count": 3},
    "actors": {"kind": "id_list", "separator": ",", "min_count": 4},
    "keywords": {"kind": "id_list", "min_count": 10},
    "language": {"column": "original_language", "min_count": 5},
}
TITLES = {
    "genres": {"kind": "id_list", "separator": ","},
    "media_type": {"column": "type"},
    "studios": {"kind": "id_list", "separator": ",", "min_count": 3},
}
CASES = {
    "movielens": ("userId", "movieId", "rating >= 4", FILMS, ["experiment=movielens"]),
    "anime": (
        "user_id",
        "MAL_ID",
        "rating >= 8",
        TITLES,
        ["train.epochs=4", "optim.table.l2=2e-4"],
    ),
}
"""Columns of users and items, label, features of the items, and settings of the runs, by data set."""
REFRESH = {
    # A window is a step or two of 1,024 rows: ten times as many earlier ones keep what they would undo.
    "movielens": ['refresh=["train.replay=10","optim.decay=linear"]'],
    # Chosen among 0, 2, 5 and 10 on the drawn days 18 to 23, one seed, scored before training on them.
    # On days 24 to 29 it is not above never refreshed: days that are drawn do not differ.
    "anime": ['refresh=["train.replay=10","optim.decay=linear"]'],
}
"""Arguments of launch/progressive.py that say how a run goes on."""


def two_months(row):
    """The first of two months of a film's rating, None before 2017."""
    day = datetime.fromtimestamp(int(row["timestamp"]), UTC)
    return None if day.year < 2017 else f"{day.year}-{(day.month + 1) // 2 * 2 - 1:02d}"


def write_days(source, raw, name):
    """Write the log as one file for what was before, and one for every window; return their names."""
    with open(source / "ratings.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if name == "anime":
        rng = np.random.default_rng(0)
        for row, day in zip(rows, rng.integers(30, size=len(rows)).tolist(), strict=True):
            row["timestamp"] = 1_700_000_000 + 86_400 * day
            row["window"] = f"day-{day:02d}" if day >= 24 else None
    else:
        for row in rows:
            row["window"] = two_months(row)
    groups = {}
    for row in sorted(rows, key=lambda row: int(row["timestamp"])):
        groups.setdefault(row.pop("window"), []).append(row)
    for window, members in groups.items():
        with open(raw / f"{window or 'before'}.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(members[0]))
            writer.writeheader()
            writer.writerows(members)
    return sorted(window for window in groups if window)


@pytest.mark.parametrize("name", CASES)
def test_going_on_is_as_good_as_training_anew_at_a_fifth_of_the_cost(
    name, real_data, tmp_path, job, capsys
):
    source = real_data / name
    if not source.is_dir():
        pytest.skip(f"no folder {name} in {real_data}")
    user, item, label, features, settings = CASES[name]
    recipe = {
        "name": "days",
        "source": str(tmp_path / "raw"),
        "interactions": {
            "file": "log",
            "user_id": user,
            "item_id": item,
            "timestamp": "timestamp",
            "label": label,
            "unknown_items": "keep",
        },
        "items": {"file": "items.csv", "item_id": item, "features": features},
        "split": {"strategy": "time", "fractions": [0.9, 0.05, 0.05]},
        "history": {"max_length": 20, "recent_length": 5, "scope": "past"},
    }
    for folder in ("data", "raw/log", "later"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "days.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copyfile(source / "items.csv", tmp_path / "raw" / "items.csv")
    windows = write_days(source, tmp_path / "later", name)
    place = [f"--config-dir={tmp_path}", "data=days", f"workspace={tmp_path / 'w'}"]
    for number, window in enumerate(["before", *windows]):
        shutil.move(tmp_path / "later" / f"{window}.csv", tmp_path / "raw" / "log")
        done = job("prepare", *place, f"append={'true' if number else 'false'}")
        assert done.returncode == 0, done.stderr[-2000:]
    overrides = ",".join(f'"{text}"' for text in [*settings, "model.modalities=[]"])
    walk = ["seeds=3", "anew=true", "anew_every=2", f"overrides=[{overrides}]"]
    walk += REFRESH[name]
    done = run_forked("progressive", *place, *walk, timeout_seconds=35_000)
    assert done.returncode == 0, done.stderr[-2000:]
    with capsys.disabled():
        print(f"\n{name}\n" + done.stdout[done.stdout.index("progressive validation") :])
    result = tmp_path / "w" / "progressive" / "progressive" / "progressive.json"
    against = {d["reference"]: d for d in json.loads(result.read_text())["differences"]}
    assert against["anew"]["auc"]["mean"] >= -0.001
    assert against["anew"]["rows_ratio"] <= 0.2 and against["anew"]["cpu_ratio"] <= 0.2
    assert against["never"]["auc"]["mean"] > 0
