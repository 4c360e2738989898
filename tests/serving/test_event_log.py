"""Events of a server become a log that prepare reads."""

import dataclasses
import json

import pyarrow.parquet as pq
import pytest

from recsys.config import from_config
from recsys.data.prepare.append import append
from recsys.data.prepare.pipeline import prepare
from recsys.data.recipe import Recipe
from recsys.errors import UserError
from recsys.serving.event_log import EventLogConfig, write_event_log
from recsys.serving.store import Store, StoredEvent


def store_with(path, *events: tuple[str, str, str, float]) -> Store:
    store = Store.open(path)
    with store.writing() as transaction:
        transaction.add_events([
            StoredEvent(id=str(n), user=user, item=item, kind=kind, time=time, position=n + 1)
            for n, (user, item, kind, time) in enumerate(events)
        ])
    return store


def test_a_pair_of_user_and_item_is_one_row_with_the_time_of_its_first_like(tmp_path):
    store = store_with(
        tmp_path / "events.db",
        ("u", "a", "shown", 10.5),
        ("u", "a", "opened", 11.0),
        ("u", "a", "liked", 12.9),
        ("u", "a", "liked", 15.0),
        ("u", "b", "shown", 10.5),
        ("v", "b", "hidden", 9.0),
        ("v", "b", "shown", 8.0),
        ("v", "z", "liked", 99.0),
    )
    counts = write_event_log(store, tmp_path / "raw" / "events.parquet", since=0, until=50)
    assert (counts.events, counts.rows, counts.likes) == (7, 3, 1)
    rows = pq.read_table(tmp_path / "raw" / "events.parquet").to_pylist()
    names = ("user_id", "item_id", "timestamp", "label", "shown", "opened", "hidden", "position")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("v", "b", 8, 0, True, False, True, 6),
        ("u", "b", 10, 0, True, False, False, 5),
        ("u", "a", 12, 1, True, True, False, 1),
    ]


def test_the_probability_of_a_shown_item_is_in_the_log(tmp_path):
    store = store_with(tmp_path / "events.db", ("u", "b", "shown", 2.0))
    shown = StoredEvent(id="s", user="u", item="a", kind="shown", time=1, propensity=0.25)
    with store.writing() as transaction:
        transaction.add_events([
            shown,
            dataclasses.replace(shown, id="l", kind="liked", propensity=None),
        ])
    write_event_log(store, tmp_path / "events.parquet", since=0, until=50)
    rows = pq.read_table(tmp_path / "events.parquet").to_pylist()
    assert [(row["item_id"], row["propensity"]) for row in rows] == [("a", 0.25), ("b", None)]


def test_a_row_that_nobody_did_anything_with_weighs_as_often_as_its_place_is_looked_at(tmp_path):
    store = store_with(
        tmp_path / "events.db",
        ("u", "a", "shown", 1.0),
        ("u", "b", "liked", 2.0),
        ("u", "c", "opened", 3.0),
        ("u", "d", "shown", 4.0),
        ("u", "e", "hidden", 5.0),
    )
    placeless = StoredEvent(id="s", user="u", item="f", kind="shown", time=6)
    with store.writing() as transaction:
        transaction.add_events([placeless])
    path = tmp_path / "events.parquet"
    write_event_log(store, path, since=0, until=50, position_bias=0.5)
    weights = {row["item_id"]: row["weight"] for row in pq.read_table(path).to_pylist()}
    assert weights == {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.5, "e": 1.0, "f": 1.0}
    write_event_log(store, path, since=0, until=50, position_bias=0.0)
    assert set(pq.read_table(path)["weight"].to_pylist()) == {1.0}
    write_event_log(store, path, since=0, until=50)
    assert "weight" not in pq.read_table(path).column_names


def test_a_period_without_events_is_refused_and_nothing_is_written(tmp_path):
    store = store_with(tmp_path / "events.db", ("u", "a", "liked", 10.0))
    with pytest.raises(
        UserError, match=r"no event between 1970-01-01 00:00:11\+00:00 and the last"
    ):
        write_event_log(store, tmp_path / "events.parquet", since=11, until=1e11)
    assert not (tmp_path / "events.parquet").exists()


def test_moments_are_utc_and_are_checked():
    config = EventLogConfig(workspace="w", since="1970-01-02", until="1970-01-02T01:00+01:00")
    assert config.problems() == [
        "until=1970-01-02T01:00+01:00: expected a moment after since=1970-01-02"
    ]
    assert config.start == config.end == 86_400
    (problem,) = EventLogConfig(workspace="w", since="yesterday").problems()
    assert "since='yesterday': expected a moment such as" in problem


def test_prepare_reads_events_as_a_log_of_the_drawn_world(tmp_path, job):
    world = tmp_path / "world"
    sizes = ["world.num_items=50", "world.num_users=40", "world.num_exposures=400", "processes=1"]
    done = job("demo", f"workspace={world}", *sizes)
    assert done.returncode == 0, done.stderr
    drawn = pq.read_table(world / "raw" / "interactions.parquet").to_pylist()
    pairs = list({(row["user_id"], row["item_id"]): None for row in drawn})[:100]
    day = 86_400.0
    store_with(
        world / "events.db",
        *[(user, item, "shown", n * day) for n, (user, item) in enumerate(pairs)],
        *[
            (user, item, "liked", n * day + 60)
            for n, (user, item) in enumerate(pairs)
            if n % 3 == 0
        ],
        ("new user", pairs[0][1], "liked", 3.5 * day),
        (pairs[0][0], "added item", "liked", 3.5 * day),
    ).close()
    done = job("events", f"workspace={world}", "until=1970-04-01")
    assert done.returncode == 0, done.stderr
    assert "122 events" in done.stdout
    next_line = next(k for k in done.stdout.splitlines() if "next: " in k).split("next: ")[1]
    arguments = next_line.split()[2:]
    done = job("prepare", *arguments)
    assert done.returncode == 0, done.stderr
    prepared = tmp_path / "world-events" / "prepared"
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["rows_dropped"] == {"unknown item": 1}
    tables = [pq.read_table(prepared / "interactions" / s) for s in ("train", "valid", "test")]
    labels = [label for table in tables for label in table["label"].to_pylist()]
    assert (len(labels), sum(labels)) == (91, 31)


def test_the_events_of_the_next_day_are_appended_as_a_window(tmp_path):
    """A file for each day, in one folder: prepare reads the first, append=true the next alone."""
    first = [(f"u{n % 4}", f"i{n % 5}", "liked" if n % 3 else "shown", float(n)) for n in range(20)]
    store = store_with(
        tmp_path / "events.db",
        *first,
        ("u1", "i9", "liked", 100.0),
        ("new", "i1", "shown", 120.0),
    )
    folder = tmp_path / "raw" / "events"
    log = {"file": "events", "user_id": "user_id", "item_id": "item_id", "label": "label"}
    log |= {"timestamp": "timestamp", "timestamp_format": "seconds"}
    node = {"name": "events", "source": str(tmp_path / "raw"), "interactions": log}
    recipe = from_config(Recipe, node, "data")
    limits = {"memory_limit": "500MB", "threads": 1}
    write_event_log(store, folder / "1.parquet", since=0, until=100)
    prepare(recipe, tmp_path / "w", **limits)
    write_event_log(store, folder / "2.parquet", since=100, until=200)
    manifest = append(recipe, tmp_path / "w", since=None, **limits)
    window = manifest.splits["window_0001"]
    assert (window.num_rows, window.num_positives) == (2, 1)
    assert (window.timestamp_min, window.timestamp_max) == (100, 120)
    assert [file.path for file in manifest.files] == ["events/2.parquet"]
