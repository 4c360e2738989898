"""Prepare in memory far below its data: every statement spills, and the result is the same."""

import dataclasses
import filecmp
import tracemalloc

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.prepare import writing
from recsys.data.prepare.append import append
from recsys.data.prepare.engine import BATCH_ROWS, Engine, opened_engine
from recsys.data.prepare.pipeline import prepare
from recsys.data.prepare.writing import lists_by_key, write_lists
from recsys.data.recipe import Recipe
from recsys.errors import UserError
from tests.data.small_log import recipe

VARIANTS = {
    "time": {},
    "time, all users unknown": {"interactions__user_min_count": 10**9, "users": None},
    "per user, past": {
        "split": {"strategy": "per_user_time"},
        "history": {"max_length": 50, "recent_length": 10, "negative_length": 50, "scope": "past"},
    },
    "random, past": {
        "split": {"strategy": "random"},
        "history": {"max_length": 50, "recent_length": 10, "negative_length": 20, "scope": "past"},
    },
    "no times, no catalogues": {
        "interactions__timestamp": None,
        "split": {"strategy": "random"},
        "items": None,
        "users": None,
    },
    "uniform negatives": {
        "interactions__label": None,
        "interactions__negatives": {"per_positive": 1},
    },
    "popular negatives": {
        "interactions__label": None,
        "interactions__negatives": {"strategy": "popularity", "per_positive": 1},
    },
}


def large_recipe(folder, num_rows: int, changes: dict) -> Recipe:
    """A log whose first user has a tenth of all rows, a catalogue, and users, as Parquet files."""
    folder.mkdir()
    num_users, num_items = num_rows // 20, num_rows // 20
    with duckdb.connect() as connection:
        connection.execute("SET memory_limit='1GB'; SET threads=1")
        files = {
            "log": f"SELECT 'user ' || CASE WHEN range % 10 = 0 THEN 0 ELSE hash(range) % {num_users} "
            f"END AS user_id, 'item ' || hash(-range) % {num_items} AS item_id, 1500000000 + "
            f"hash(range + {num_rows}) % 100000000 AS time, range % 3 = 0 AS label, 'word ' || "
            f"hash(range // 2) % {num_rows} AS word, (hash(range) % 1000003) / 997.0 AS price, "
            f"'a' || range % 7 || '|b' || hash(range) % {num_rows // 10} AS words "
            f"FROM range({num_rows})",
            "items": f"SELECT 'item ' || range AS item_id, 'title of ' || range AS title, "
            f"['a', 'b' || range // 3, 'c' || range % 50] AS tags, range // 2 AS artist, "
            f"range % 977 AS year FROM range({num_items})",
            "users": f"SELECT 'user ' || range AS user_id, range % 9 AS age FROM range({num_users})",
        }
        for name, query in files.items():
            connection.execute(f"COPY ({query}) TO '{folder / name}.parquet' (FORMAT parquet)")
    sections = {
        "interactions": {
            "file": "log.parquet",
            "user_id": "user_id",
            "item_id": "item_id",
            "timestamp": "time",
            "label": "label",
            "features": {"word": {}, "price": {"kind": "numeric"}, "words": {"kind": "id_list"}},
        },
        "items": {
            "file": "items.parquet",
            "title": "title",
            "text": ["title"],
            "tags": {"tags": {"kind": "id_list"}},
            "features": {
                "kinds": {"column": "tags", "kind": "id_list"},
                "artist": {},
                "year": {"kind": "numeric"},
            },
        },
        "users": {"file": "users.parquet", "features": {"age": {}}},
        "split": {"strategy": "time"},
    }
    return recipe(folder, **sections | {"history": {"max_length": 50}} | changes)


def prepared_within(tmp_path, variant: str, *, num_rows: int, memory_limit: str) -> None:
    made = large_recipe(tmp_path / "raw", num_rows, VARIANTS[variant])
    small = prepare(made, tmp_path / "small", memory_limit=memory_limit, threads=1)
    large = prepare(made, tmp_path / "large", memory_limit="2GB", threads=2)
    assert small.checksums == large.checksums
    assert dataclasses.replace(small, recipe={}) == dataclasses.replace(large, recipe={})


@pytest.mark.slow
def test_a_log_larger_than_memory_is_prepared(tmp_path):
    prepared_within(tmp_path, "time", num_rows=200_000, memory_limit="30MB")


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_statement_fits_into_memory_far_below_its_data(tmp_path, variant):
    # As text the log has some 80 bytes a row; the database keeps several tables as long as it.
    prepared_within(tmp_path, variant, num_rows=2_000_000, memory_limit="100MB")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_an_items_file_of_texts_larger_than_memory_is_prepared_and_appended(tmp_path, kind):
    """100 MB of texts, which the database's own sort keeps in memory."""
    (tmp_path / "raw").mkdir()

    def write(num_items, first_row, num_rows):
        options = "parquet, ROW_GROUP_SIZE 4096" if kind == "parquet" else "csv"
        files = {
            f"items.{kind}' (FORMAT {options}": f"SELECT 'item ' || range AS item_id, 'a|b' || "
            f"range // 3 AS tags, repeat(md5(range::VARCHAR), 16) AS about FROM range({num_items})",
            f"log-{first_row}.csv' (FORMAT csv": f"SELECT 'user ' || hash(range) % 1000 AS user_id, "
            f"'item ' || hash(-range) % {num_items} AS item_id, range AS time, range % 3 = 0 AS label "
            f"FROM range({first_row}, {first_row + num_rows})",
        }
        with duckdb.connect() as connection:
            connection.execute("SET memory_limit='1GB'; SET threads=1")
            for name, query in files.items():
                connection.execute(f"COPY ({query}) TO '{tmp_path}/raw/{name})")

    write(200_000, 10**6, 20_000)
    tags = {"tags": {"kind": "id_list"}}
    made = recipe(
        tmp_path / "raw",
        interactions__file="log-*.csv",
        interactions__label="label == true",
        items={"file": f"items.{kind}", "text": ["about"], "tags": tags, "features": tags},
        split={"strategy": "time"},
    )
    large = {"memory_limit": "2GB", "threads": 2}
    small = {"memory_limit": "60MB", "threads": 1}
    whole = prepare(made, tmp_path / "large", **large)
    assert prepare(made, tmp_path / "small", **small).checksums == whole.checksums
    write(201_000, 2 * 10**6, 5_000)
    whole = append(made, tmp_path / "large", since=None, **large)
    assert append(made, tmp_path / "small", since=None, **small).checksums == whole.checksums


def test_rows_written_by_number_are_the_file_of_a_sorted_query(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(writing, "ROW_GROUP_ROWS", 70)
    rows = pa.table({
        "row": pa.array(rng.permutation(1000).astype(np.int32)),
        "text": [None if n % 7 == 0 else f"text {n}" * (n % 5) for n in range(1000)],
        "tags": [None if n % 3 else [f"t{n % 4}", "x"][: n % 9] for n in range(1000)],
    })
    with duckdb.connect() as connection:
        engine = Engine(connection, tmp_path)
        table = engine.create_from("rows", rows)
        query, names = f"SELECT * FROM {table}", ["item_row", "text", "tags"]
        writing.write_parquet(engine, f"{query} ORDER BY row", tmp_path / "a.parquet", names)
        path = tmp_path / "b.parquet"
        writing.write_by_row(engine, query, path, "row", names=names, count=1000)
        with pytest.raises(AssertionError, match="has 1000 rows, not 999"):
            writing.write_by_row(engine, query, tmp_path / "c", "row", count=999)
    assert filecmp.cmp(tmp_path / "a.parquet", tmp_path / "b.parquet", shallow=False)
    assert pq.ParquetFile(path).num_row_groups == 15


def test_memory_that_does_not_suffice_for_a_stream_is_one_sentence(tmp_path):
    many = "SELECT repeat(md5(range::VARCHAR), 200) AS text FROM range(20000) ORDER BY hash(text)"
    with pytest.raises(
        UserError, match=r"^memory_limit=20MB with run.threads=1: not enough .*raise"
    ):
        with opened_engine(tmp_path / "work", "20MB", 1) as engine:
            for _ in engine.batches(many):
                pass


def test_lists_are_written_in_pieces_of_one_batch(tmp_path):
    num_rows, num_values = 400_000, 2_000_000
    lists = f"SELECT range // 5 AS key, CAST(range AS INTEGER) AS value FROM range({num_values})"
    with duckdb.connect() as connection:
        engine = Engine(connection, tmp_path)
        write_lists(engine, lists, tmp_path / "warm.npy", tmp_path / "up.npy", num_rows)
        asked, batches = [], engine.batches
        engine.one = engine.rows = engine.create = None  # the query runs in a stream, once
        engine.batches = lambda query: asked.append(query) or batches(query)
        tracemalloc.start()
        total, longest = write_lists(
            engine, lists, tmp_path / "v.npy", tmp_path / "o.npy", num_rows
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert asked == [lists]
    values, offsets = np.load(tmp_path / "v.npy"), np.load(tmp_path / "o.npy")
    np.save(tmp_path / "same.npy", values)
    assert filecmp.cmp(tmp_path / "v.npy", tmp_path / "same.npy", shallow=False)
    assert (total, longest) == (num_values, 5) and np.array_equal(values, np.arange(num_values))
    assert np.array_equal(offsets, np.arange(num_rows + 1) * 5)
    batch_bytes = BATCH_ROWS * (8 + 4)  # a key and a value
    assert peak_bytes < 8 * batch_bytes < values.nbytes < offsets.nbytes + values.nbytes


@given(
    lists=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), max_size=8),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_lists_are_the_same_however_the_database_cuts_its_batches(lists, cuts):
    keys = [3 * key for key, values in enumerate(lists) for _ in values]
    values = [value for values in lists for value in values]
    flat = pa.record_batch({
        "key": pa.array(keys, pa.int64()),
        "value": pa.array(values, pa.int32()),
    })
    bounds = sorted({0, *(min(cut, len(keys)) for cut in cuts), len(keys)})
    batches = [flat.slice(a, b - a) for a, b in zip(bounds, [*bounds[1:], len(keys)], strict=True)]
    found = [row for table in lists_by_key(batches) for row in table.to_pylist()]
    assert found == [{"key": 3 * key, "value": values} for key, values in enumerate(lists)]
