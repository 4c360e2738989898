"""The cost of an appended day does not grow with the days behind it. `make bench`."""

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.config import from_config
from recsys.data.prepare.append import append
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import Recipe

pytestmark = pytest.mark.bench
NUM_DAYS = 30
DAY_ROWS = 100_000
NUM_USERS, NUM_ITEMS = 20_000, 10_000
MEASURED = 3
"""Days whose least cost is compared: the first ones after the first append, and the last ones."""


def write_day(source, day, rng):
    """Write a day's rows: users and items drawn evenly, a third of them positives."""
    rows = pa.table({
        "user": pa.array(rng.integers(NUM_USERS, size=DAY_ROWS)),
        "item": pa.array(rng.integers(NUM_ITEMS, size=DAY_ROWS)),
        "time": pa.array(1_700_000_000 + 86_400 * day + rng.integers(86_400, size=DAY_ROWS)),
        "label": pa.array((rng.random(DAY_ROWS) < 0.3).astype(np.int64)),
    })
    folder = source / "log" / f"day={day:02d}"
    folder.mkdir(parents=True)
    pq.write_table(rows, folder / "part.parquet")


def test_the_last_of_thirty_days_costs_at_most_half_more_than_the_first(tmp_path, rng):
    source = tmp_path / "raw"
    log = {"file": "log", "user_id": "user", "item_id": "item", "timestamp": "time"}
    node = {"name": "days", "source": str(source), "interactions": {**log, "label": "label"}}
    node["history"] = {"max_length": 20, "recent_length": 5, "scope": "past"}
    recipe = from_config(Recipe, node, "data")
    for day in range(5):  # so that the users' last positives are many from the first day on
        write_day(source, day, rng)
    limits = {"memory_limit": "2GB", "threads": 1}
    prepare(recipe, tmp_path / "w", **limits)
    seconds = []
    for day in range(5, 5 + NUM_DAYS):
        write_day(source, day, rng)
        begun, begun_wall = time.process_time(), time.perf_counter()
        append(recipe, tmp_path / "w", since=None, **limits)
        seconds.append(time.process_time() - begun)
        print(f"day {day}: {seconds[-1]:.2f} s CPU, {time.perf_counter() - begun_wall:.2f} s")
    # The first append gathers the users' last positives from all rows before.
    first, last = min(seconds[1 : 1 + MEASURED]), min(seconds[-MEASURED:])
    print(f"first {first:.2f} s CPU, last {last:.2f} s CPU: {last / first:.2f} times")
    assert last <= 1.5 * first
    assert last <= 1.5 * seconds[0]
