"""Appending on Ray: the files of one process, whoever appends which day and whatever dies on the way."""

import errno
import functools
import json
import os
import shutil
import signal

import pytest

from recsys.data.prepare import ray_steps, ray_window_steps
from recsys.data.prepare.pipeline import prepare
from recsys.data.prepare.ray_cluster import RayConfig
from recsys.data.prepare.ray_rows import partitioned_log
from recsys.data.prepare.ray_window import partitioned_window
from recsys.data.prepare.window import whole_window
from recsys.errors import UserError
from tests.data.prepare.drawn_days import (
    appended,
    check_days,
    content_of,
    prepared,
    recipe,
    recipe_node,
    write_day,
)
from tests.data.prepare.local_ray import dies_once, with_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def on_ray(cluster):
    """Holders of a window's rows on Ray."""

    def hold(partitions):
        settings = RayConfig(address=cluster, partitions=partitions)
        return functools.partial(partitioned_window, ray=settings, memory_limit="300MB", threads=2)

    return hold


@pytest.mark.parametrize("variant", ["rare", "uniform", "popularity", "dislikes"])
def test_days_appended_on_ray_are_those_of_one_process(on_ray, tmp_path, rng, variant):
    holds = {str(count): [on_ray(count)] * 2 for count in (1, 2, 3, 5)}
    holds["by both"] = [on_ray(2), whole_window]
    check_days(tmp_path, variant, rng, holds, num_days=2)


def test_a_base_and_windows_of_both_engines_follow_each_other(on_ray, cluster, tmp_path, rng):
    """Prepared on Ray and appended here, and the other way round."""
    source, settings = tmp_path / "raw", RayConfig(address=cluster, partitions=3)
    made = recipe(source, "uniform")
    write_day(source, 0, rng)
    log = functools.partial(partitioned_log, ray=settings, memory_limit="300MB", threads=2)
    prepare(made, tmp_path / "ray", memory_limit="300MB", threads=1, hold=log)
    prepared(made, tmp_path / "here")
    assert content_of(tmp_path / "ray") == content_of(tmp_path / "here")
    for day, (first, second) in enumerate([(whole_window, on_ray(3)), (on_ray(2), whole_window)]):
        write_day(source, 1 + day, rng)
        appended(made, tmp_path / "ray", first)
        appended(made, tmp_path / "here", second)
        assert content_of(tmp_path / "ray") == content_of(tmp_path / "here")


def test_the_command_appends_on_ray_what_it_appends_here(tmp_path, rng, job):
    source, node = tmp_path / "raw", recipe_node("listed")
    write_day(source, 0, rng)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "days.yaml").write_text(json.dumps(node))
    keys = (f"--config-dir={tmp_path}", "data=days", f"data.source={source}", "run.threads=1")
    for name in ("here", "ray"):
        assert job("prepare", *keys, f"workspace={tmp_path / name}").returncode == 0
    write_day(source, 1, rng)
    for name, engine in (("here", "local"), ("ray", "ray")):
        workspace = f"workspace={tmp_path / name}"
        done = job("prepare", *keys, workspace, "append=true", f"engine={engine}")
        assert done.returncode == 0, done.stderr
        assert "window: split=window_0001, or split=next" in done.stdout
    assert "Ray: workers on 1 cores of this machine" in done.stdout
    assert content_of(tmp_path / "ray") == content_of(tmp_path / "here")


def test_new_files_alone_are_read_and_a_killed_worker_is_replaced(
    on_ray, tmp_path, rng, monkeypatch
):
    source, mark = tmp_path / "raw", tmp_path / "killed"
    made = recipe(source, "popularity")
    write_day(source, 0, rng)
    prepared(made, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for section in ("log", "items", "users"):
        file = source / section / "0.csv"
        file.write_bytes(b"?" * file.stat().st_size)  # nothing that can be read
    write_day(source, 1, rng)
    one = appended(made, tmp_path / "one")
    for name in ("draw_part", "earlier_of_files", "items_of_files", "window_histories_part"):
        steps = ray_steps if name == "draw_part" else ray_window_steps
        with_step(monkeypatch, steps, name, dies_once(mark.with_name(name)))
    two = appended(made, tmp_path / "two", on_ray(2))
    assert len(list(tmp_path.glob("*_*"))) == 4
    assert two == one and content_of(tmp_path / "two") == content_of(tmp_path / "one")


@pytest.mark.parametrize("failure", ["killed", "full"])
def test_an_append_that_fails_leaves_everything_as_it_was(
    on_ray, tmp_path, rng, monkeypatch, failure
):
    made = recipe(tmp_path / "raw", "listed")
    write_day(tmp_path / "raw", 0, rng)
    prepared(made, tmp_path / "w")
    before = content_of(tmp_path / "w")
    write_day(tmp_path / "raw", 1, rng)
    kill, code = signal.SIGKILL, errno.ENOSPC

    def fail():
        if failure == "killed":
            os.kill(os.getpid(), kill)
        raise OSError(code, os.strerror(code))

    with_step(monkeypatch, ray_steps, "write_file", fail)
    said = "workers died again and again" if failure == "killed" else "disk of a worker is full"
    with pytest.raises(UserError, match=said):
        appended(made, tmp_path / "w", on_ray(2))
    assert content_of(tmp_path / "w") == before
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["prepared"]
