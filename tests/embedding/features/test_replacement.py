"""Finished tables stay readable until the next ones are whole, wherever a job is cut off."""

import errno
import itertools
import os
import shutil

import numpy as np
import pytest

from embedding.features.replacement import declare_whole, next_name, replace_tables
from embedding.features.store import FeatureTable, read_feature_manifest
from recsys import files
from tests.embedding.features.test_extraction import (
    NAMES,
    Network,
    check_vectors,
    extract,
    no_leftovers,
    prepare,
)

OLD = ["a", "b", None, "c", "d", "e", "f"]
CHANGES = {
    "one text": (["a", "b", None, "c", "new", "e", "f"], {}),
    "other items": (["f", "new", "a", "b", "c", "d"], {}),
    "another encoder": (OLD, {"revision": "r2"}),
}


class Cut:
    """Counts the steps by which files get, change and lose their names; stops at one of them."""

    def __init__(self, monkeypatch, at, stop):
        self.left, self.stop = at, stop
        for module, name in (
            (os, "replace"),
            (os, "rename"),
            (os, "link"),
            (os, "unlink"),
            (os, "mkdir"),
            (files, "sync"),
            (files, "_exchange"),
        ):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, real):
        def step(*arguments, **named):
            self.left -= 1
            if self.left == 0:
                self.stop()
            return real(*arguments, **named)

        return step


def killed_at(step, monkeypatch, work):
    """Run `work` in a process of its own that ends at a step; return whether it did."""
    child = os.fork()
    if child == 0:
        try:
            Cut(monkeypatch, step, lambda: os._exit(9))
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def contents(workspace):
    """Revision and vectors of each table, as a reader finds them."""
    found = {}
    for name in NAMES:
        table = FeatureTable(workspace / "features" / name)
        table.verify()
        found[name] = (table.manifest.revision, table.read(0, table.num_rows).tobytes())
    return found


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 8])
@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_any_step_leaves_each_table_old_or_new(tmp_path, monkeypatch, change, every):
    values, changed = CHANGES[change]
    start, work = tmp_path / "start", tmp_path / "work"
    extract(start, prepare(start, OLD), Network())
    old = contents(start)
    prepare(start, values)
    shutil.copytree(start, work)
    extract(work, prepare(work, values), Network(), **changed)
    new = contents(work)
    for step in itertools.count(1, every):
        shutil.rmtree(work)
        shutil.copytree(start, work)
        manifest = prepare(work, values)
        was_killed = killed_at(
            step, monkeypatch, lambda m=manifest: extract(work, m, Network(), **changed)
        )
        for name, found in contents(work).items():
            assert found in (old[name], new[name]), f"{name} after step {step}"
        extract(work, manifest, Network(), **changed)
        assert contents(work) == new and no_leftovers(work), f"after step {step}"
        assert sorted(p.name for p in (work / "features").iterdir()) == ["one", "two"]
        if not was_killed:
            break
    assert step > 30
    check_vectors(work, values)


@pytest.mark.parametrize("change", CHANGES)
def test_a_full_disk_leaves_the_tables_that_were_there(tmp_path, monkeypatch, change):
    values, changed = CHANGES[change]
    extract(tmp_path, prepare(tmp_path, OLD), Network())
    old, manifest = contents(tmp_path), prepare(tmp_path, values)

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in (1, 4, 7):
        with monkeypatch.context() as patch, pytest.raises((OSError, files.DiskFullError)):
            Cut(patch, step, full)
            extract(tmp_path, manifest, Network(), **changed)
        assert contents(tmp_path) == old
    extract(tmp_path, manifest, Network(), **changed)
    check_vectors(tmp_path, values)


def test_exchanges_that_were_cut_off_are_made_where_no_exchange_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    extract(tmp_path, prepare(tmp_path, OLD), Network())
    features, (first, second) = tmp_path / "features", NAMES
    folder = features / next_name(first)
    shutil.copytree(features / first, folder)
    shutil.copytree(features / second, features / next_name(second))
    declare_whole(features, list(NAMES))
    # Killed between two renames: the earlier table has no name but this.
    (features / first).rename(folder.with_name(f"{folder.name}.old"))
    assert read_feature_manifest(features / first).count == len(OLD) + 1
    replace_tables(features, list(NAMES))
    assert sorted(p.name for p in features.iterdir()) == sorted(NAMES)
    np.testing.assert_array_equal(FeatureTable(features / first).read(0, 1), 0)
