"""Handles of tables: a step reads what it was given, and nothing by a name it happens to know."""

from pathlib import Path

import duckdb
import pytest

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.pipeline import prepare
from recsys.data.prepare.sources import Source
from recsys.data.prepare.split import split_log
from recsys.data.recipe import SplitRecipe
from recsys.data.text_format import TextFormat
from tests.data.small_log import recipe, write_source


@pytest.fixture
def engine():
    with duckdb.connect() as connection:
        yield Engine(connection, Path())


def test_two_tables_of_one_name_are_two_tables(engine):
    one = engine.create("log", "SELECT 1 AS a")
    two = engine.create("log", "SELECT 2 AS a, 'x' AS b")
    assert one != two and one.columns == ("a",) and two.columns == ("a", "b")
    assert engine.rows(f"SELECT {one}.a, {two}.a FROM {one}, {two}") == [(1, 2)]
    engine.append(one, f"SELECT a FROM {two}")
    assert engine.count(one) == 2 and engine.count(one, "a > 1") == 1
    engine.delete(one, "a > 1")
    assert engine.rows(f"FROM {one}") == [(1,)]
    engine.drop(one)
    with pytest.raises(duckdb.CatalogException):
        engine.count(one)


def test_a_step_names_the_columns_that_a_table_lacks():
    with pytest.raises(AssertionError, match=r"t1_log lacks \['b', 'c'\]; it has \('a',\)"):
        Table("t1_log", ("a",)).needs("a", "b", "c")


def test_a_step_runs_on_part_of_a_table_as_on_all_of_it(engine):
    columns = "row_id, 'u' || row_id % 7 AS user_id, 'i' AS item_id, row_id // 3 AS ts, -1 AS given"
    whole = engine.create("log", f"SELECT {columns} FROM range(700) AS r(row_id)")
    recipe_of = SplitRecipe(strategy="per_user_time", fractions=[0.6, 0.2, 0.2])
    expected = set(engine.rows(f"FROM {split_log(engine, whole, recipe_of)}"))
    found = set()
    for part in range(3):
        users = f"CAST(substr(user_id, 2) AS INTEGER) % 3 = {part}"
        some = engine.create("log", f"SELECT * FROM {whole} WHERE {users}")
        found |= set(engine.rows(f"FROM {split_log(engine, some, recipe_of)}"))
    assert found == expected and len(expected) == 700


OURS = {
    "SELECT nowhere": duckdb.BinderException,
    "SELECT CAST('x' AS INTEGER)": duckdb.ConversionException,
    "SELECT regexp_matches(name, '[') FROM (VALUES ('a'), ('b')) AS v(name)": (
        duckdb.InvalidInputException
    ),
    "SELECT CAST(i AS TINYINT) FROM range(300) AS r(i)": duckdb.ConversionException,
}
"""SQL that is wrong whatever the file holds."""


@pytest.mark.parametrize("query", OURS)
def test_sql_of_our_own_that_is_wrong_is_not_the_users_mistake(tmp_path, monkeypatch, query):
    monkeypatch.setattr(
        "recsys.data.prepare.pipeline.check_rows", lambda engine, *_: engine.one(query)
    )
    with pytest.raises(OURS[query]):
        prepare(
            recipe(write_source(tmp_path / "raw")),
            tmp_path / "w",
            memory_limit="500MB",
            threads=1,
        )
    assert not (tmp_path / "w").exists()


def opened(engine, path):
    view = engine.unused("log")
    return Source(
        engine.connection,
        view,
        path.parent,
        path.name,
        key="log",
        written=TextFormat(),
        copies=path.parent,
    )


@pytest.mark.parametrize("query", OURS)
def test_a_scan_blames_a_file_only_where_it_cannot_be_read(engine, tmp_path, query):
    (tmp_path / "log.csv").write_text("a,b\n1,2\n")
    source, problems = opened(engine, tmp_path / "log.csv"), Problems()
    with pytest.raises(OURS[query]):
        problems.scan(engine, source, query)
    assert problems.found == [] and problems.scan(engine, source, "SELECT 1") == (1,)
    (tmp_path / "log.csv").write_text("a,b\n1,2\n1,2,3\n")
    assert problems.scan(engine, source, f"SELECT sum(a::INTEGER) FROM {source.view}") is None
    (found,) = problems.found
    assert f"{tmp_path / 'log.csv'}: cannot be read (" in found and "Line: 3" in found
