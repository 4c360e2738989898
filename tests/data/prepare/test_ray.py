"""Prepare on Ray: the files of one process, from any number of partitions, whatever dies on the way."""

import errno
import functools
import os
import re
import signal
import socket
import subprocess
import sys

import duckdb
import pyarrow as pa
import pytest

from launch.prepare import PrepareConfig
from recsys.data.prepare import ray_cluster, ray_files, ray_rows, ray_steps, writing
from recsys.data.prepare.checks import joined_scans
from recsys.data.prepare.pipeline import prepare
from recsys.data.prepare.ray_cluster import RayConfig
from recsys.data.prepare.ray_partitions import partitions_of
from recsys.data.prepare.ray_rows import partitioned_log
from recsys.data.prepare.ray_steps import PART, blocks, file_cuts, split_by_part
from recsys.data.prepare.ray_worker import run_step
from recsys.data.prepare.sources import Source
from recsys.data.text_format import TextFormat
from recsys.errors import UserError
from tests.data.prepare.local_ray import dies_once, ray, with_step
from tests.data.prepare.test_out_of_core import VARIANTS, large_recipe
from tests.data.small_log import INTERACTIONS, recipe, write_source
from tests.warm_jobs import REPOSITORY

NUM_ROWS = 4_000


@pytest.fixture
def on_ray(cluster):
    """Prepare in partitions, on the cluster."""

    def run(made, workspace, partitions=2):
        settings = RayConfig(address=cluster, partitions=partitions)
        return in_partitions(made, workspace, settings)

    return run


def in_partitions(made, workspace, settings):
    hold = functools.partial(partitioned_log, ray=settings, memory_limit="300MB", threads=2)
    return prepare(made, workspace, memory_limit="300MB", threads=1, hold=hold)


def here(made, workspace):
    return prepare(made, workspace, memory_limit="500MB", threads=1)


def lines(capsys):
    """The lines that were printed, without times."""
    said = capsys.readouterr().out.splitlines()
    return {re.sub(r"^\[[^]]*\] | \([\d.]+ s\)$", "", line) for line in said}


def test_partitions_of_this_machine_make_the_files_of_one_process(tmp_path, capsys):
    """Dropped items, rare users, and features of the log: a list, and buckets by quantiles."""
    source = write_source(tmp_path / "raw", interactions=INTERACTIONS + "cid,77,50,5\n")
    made = recipe(
        source,
        interactions__unknown_items="drop",
        interactions__user_min_count=3,
        interactions__features={
            "digits": {"column": "item_id", "kind": "id_list", "separator": "0"},
            "stars": {"column": "rating", "kind": "numeric", "quantiles": 2},
        },
    )
    one = here(made, tmp_path / "one")
    said = lines(capsys)
    two = in_partitions(made, tmp_path / "two", RayConfig(partitions=3))
    assert two.checksums == one.checksums
    assert two == one and one.rows_dropped == {"unknown item": 1}
    assert said <= lines(capsys)
    assert not ray.is_initialized() and os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_to_prepare_is_equal_for_1_2_and_5_partitions(on_ray, tmp_path, variant):
    made = large_recipe(tmp_path / "raw", NUM_ROWS, VARIANTS[variant])
    one = here(made, tmp_path / "one")
    for partitions in (1, 2, 5):
        two = on_ray(made, tmp_path / str(partitions), partitions)
        assert two.checksums == one.checksums
        assert two == one


@pytest.mark.slow
def test_files_end_where_those_of_one_process_end(on_ray, tmp_path, monkeypatch):
    """The splits are cut into several files, which begin and end within partitions."""
    made = large_recipe(tmp_path / "raw", NUM_ROWS, {})
    for file in (writing, ray_rows, ray_files):
        monkeypatch.setattr(file, "ROW_GROUP_ROWS", 1000, raising=False)
    monkeypatch.setattr(writing, "PART_ROWS", 1000)
    one = here(made, tmp_path / "one")
    two = on_ray(made, tmp_path / "two", 3)
    assert len(one.splits["train"].files) == 4
    assert two.splits == one.splits
    assert two.checksums == one.checksums


@pytest.mark.slow
def test_several_files_of_a_log_keep_their_row_numbers(on_ray, tmp_path):
    source = write_source(tmp_path / "raw")
    head, *rows = INTERACTIONS.splitlines()
    (source / "log").mkdir()
    for number, at in enumerate(range(0, len(rows), 5)):
        text = "\n".join([head, *rows[at : at + 5]]) + "\n"
        (source / "log" / f"part-{number}.csv").write_text(text)
    made = recipe(source, interactions__file="log")
    assert on_ray(made, tmp_path / "two").checksums == here(made, tmp_path / "one").checksums


@pytest.mark.slow
def test_partitions_may_have_no_rows(on_ray, tmp_path):
    """Seven partitions of three users, with drawn negatives."""
    made = recipe(
        write_source(tmp_path / "raw"),
        interactions__label=None,
        interactions__negatives={"per_positive": 1},
        interactions__features={"rating": {"kind": "dense"}, "item": {"column": "item_id"}},
    )
    two = on_ray(made, tmp_path / "two", 7)
    assert two == here(made, tmp_path / "one") and two.rows_drawn > 0


@pytest.mark.slow
def test_bad_rows_are_reported_as_by_one_process(on_ray, tmp_path):
    bad = INTERACTIONS.replace("bob,40,70,5", "bob,40,then,5").replace("cid,10,20,5", ",99,20,5")
    made = recipe(write_source(tmp_path / "raw", interactions=bad))
    with pytest.raises(UserError) as one:
        here(made, tmp_path / "one")
    with pytest.raises(UserError) as two:
        on_ray(made, tmp_path / "two")
    assert str(two.value) == str(one.value) and "data row" in str(one.value)
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_a_user_with_a_tenth_of_the_log_is_reported(on_ray, tmp_path, capsys):
    on_ray(large_recipe(tmp_path / "raw", NUM_ROWS, {}), tmp_path / "w")
    said = capsys.readouterr().out
    assert "warning: user 'user 0' has 10." in said and "% of the log (4" in said
    assert said.count("warning: user") == 1


# Failures


@pytest.mark.slow
def test_a_worker_that_is_killed_within_a_task_is_replaced(on_ray, tmp_path, monkeypatch):
    made = large_recipe(tmp_path / "raw", NUM_ROWS, {})
    mark = tmp_path / "killed"
    with_step(monkeypatch, ray_steps, "rows_part", dies_once(mark))
    two = on_ray(made, tmp_path / "two")
    assert mark.exists()
    assert two.checksums == here(made, tmp_path / "one").checksums


@pytest.mark.slow
def test_a_worker_that_always_dies_is_one_sentence(on_ray, tmp_path, monkeypatch):
    number = signal.SIGKILL
    with_step(monkeypatch, ray_steps, "split_part", lambda: os.kill(os.getpid(), number))
    with pytest.raises(UserError, match="workers died again and again"):
        on_ray(recipe(write_source(tmp_path / "raw")), tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_full_disk_of_one_worker_is_one_sentence_and_nothing_is_left(
    on_ray, tmp_path, monkeypatch
):
    mark, code = tmp_path / "full", errno.ENOSPC

    def fill_once():
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        raise OSError(code, os.strerror(code))

    with_step(monkeypatch, ray_steps, "write_file", fill_once)
    with pytest.raises(UserError, match="the disk of a worker is full; free some space"):
        on_ray(recipe(write_source(tmp_path / "raw")), tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_worker_whose_memory_does_not_suffice_names_the_settings(on_ray, tmp_path, monkeypatch):
    def fail():
        raise duckdb.OutOfMemoryException("Out of Memory Error: failed")

    with_step(monkeypatch, ray_steps, "split_part", fail)
    with pytest.raises(UserError, match=r"memory_limit=300MB .* or raise ray.partitions"):
        on_ray(recipe(write_source(tmp_path / "raw")), tmp_path / "w")


@pytest.mark.slow
def test_a_cluster_with_another_token_is_named(cluster, tmp_path):
    """By a process of its own: Ray reads the token once."""
    code = f"""
import pathlib
from recsys.data.prepare.ray_cluster import started_cluster
from recsys.errors import UserError
try:
    with started_cluster(
        address="{cluster}", memory_limit="1GB", threads=1, scratch=pathlib.Path("{tmp_path}")
    ):
        print("let in")
except UserError as error:
    print(f"refused: {{error}}")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAY_AUTH_TOKEN": "0" * 64, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert f"refused: ray.address={cluster}: no Ray cluster answers there" in done.stdout
    assert "RAY_AUTH_TOKEN has to be that of the cluster" in done.stdout


@pytest.mark.slow
def test_an_error_while_a_file_is_read_is_its_own(on_ray, tmp_path, monkeypatch):
    def fail(engine, **arguments):
        raise UserError("log.csv: broken off")
        yield

    monkeypatch.setattr(ray_steps, "read_piece", fail)
    with pytest.raises(UserError, match=r"^log.csv: broken off$"):
        on_ray(recipe(write_source(tmp_path / "raw")), tmp_path / "w")


@pytest.mark.parametrize(
    "name", ["LocalRayletDiedError", "RaySystemError", "RpcError", "WorkerCrashedError"]
)
def test_a_ray_that_is_gone_is_one_sentence(tmp_path, name):
    made = ray_cluster.Cluster.__new__(ray_cluster.Cluster)
    made._ray = ray
    kind = getattr(ray.exceptions, name)
    said = (
        "workers died" if name == "WorkerCrashedError" else "Ray's head, or this machine's Ray, is"
    )
    with pytest.raises(UserError, match=said), made._named_errors():
        raise kind("gone") if name in ("RaySystemError", "RpcError") else kind()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="engine=ray: needs the package ray: pip install -r requ"):
        in_partitions(recipe(write_source(tmp_path / "raw")), tmp_path / "w", RayConfig())
    assert not (tmp_path / "w").exists()


def test_a_machine_that_does_not_see_the_workspace_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"work is not there on {socket.gethostname()}; all mach"):
        run_step(None, "1GB", tmp_path / "work", [], {})


def test_keys_that_rule_each_other_out_are_named():
    assert not PrepareConfig(engine="ray", append=True, since="0").problems()
    (problem,) = PrepareConfig(ray=RayConfig(partitions=2)).problems()
    assert "ray.partitions are read with engine=ray only" in problem
    assert not PrepareConfig(engine="ray", ray=RayConfig(partitions=2)).problems()


# Pieces without Ray


def test_rows_are_cut_by_partition_in_their_order():
    table = pa.table({"x": [5, 6, 7, 8, 9], PART: pa.array([2, 0, 2, 0, 2], pa.int32())})
    parts = [part.to_pydict() for part in split_by_part(table, 4)]
    assert parts == [{"x": [6, 8]}, {"x": []}, {"x": [5, 7, 9]}, {"x": []}]


def test_blocks_join_batches_and_there_is_at_least_one():
    table = pa.table({"x": list(range(10))})
    found = blocks(pa.RecordBatchReader.from_batches(table.schema, table.to_batches(3)), 5)
    assert [block.num_rows for block in found] == [6, 4]
    empty = pa.RecordBatchReader.from_batches(table.schema, [])
    assert [block.num_rows for block in blocks(empty, 5)] == [0]


def test_files_are_cut_across_tables():
    # Tables of 3, 0, 5 and 2 rows; files of 4: rows 0-3, 4-7, 8-9.
    assert list(file_cuts([3, 0, 5, 2], 4)) == [(0, 3, 0, 4), (2, 3, 1, 4), (3, 4, 0, 2)]
    assert list(file_cuts([4, 4], 4)) == [(0, 1, 0, 4), (1, 2, 0, 4)]


def test_scans_of_parts_are_those_of_all_rows():
    # (rows, then of each condition: bad rows, the first, its value)
    parts = [
        (10, 0, None, None, 1, 3, "x"),
        (5, 2, 1, "a", 0, None, None),
        (5, 1, 0, "b", 1, 0, "y"),
    ]
    assert joined_scans(parts) == (20, 3, 11, "a", 2, 3, "x")


def test_every_core_gets_as_many_partitions():
    assert partitions_of(12, 2) == 2
    assert partitions_of(20_000_000, 2) == 6  # five would leave a core idle for a third of the time
    assert partitions_of(10**10, 100) == 600


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_pieces_of_files_are_all_rows_in_their_order(tmp_path, name):
    query = "SELECT range AS n, 'x' || range AS text FROM range(10)"
    duckdb.sql(f"COPY ({query}) TO '{tmp_path / name}'")
    with duckdb.connect() as connection:
        source = Source(
            connection, "log", tmp_path, name, key="k", written=TextFormat(), copies=tmp_path
        )
        whole = connection.sql("SELECT n, text FROM log").fetchall()
    pieces = source.pieces(4)
    assert len(pieces) == (3 if name.endswith("parquet") else 1)
    found = []
    for piece in pieces:
        with duckdb.connect() as connection:
            source.open_piece(connection, piece)
            rows = connection.sql("SELECT n, text, source_row FROM log").fetchall()
        assert [row[2] for row in rows] == list(range(len(rows)))
        found += [row[:2] for row in rows]
    assert found == whole == [(str(n), f"x{n}") for n in range(10)]
