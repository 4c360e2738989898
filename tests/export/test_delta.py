"""Deltas of real exports: small, equal to a whole export, and whole or not there."""

import gc
import os
import re
import shutil
import signal

import pytest
import torch

from recsys.bundle.bundle import Bundle
from recsys.bundle.chain import catch_up, read_link
from recsys.bundle.delta import DELTAS, read_delta
from recsys.bundle.spec import point_to, resolve
from recsys.checkpoint.read import StoredTables
from recsys.config import from_config
from recsys.errors import UserError
from recsys.export import delta as delta_module
from recsys.export.delta import DeltaConfig, find_base
from recsys.export.export import ExportConfig, export, open_source
from recsys.locks import is_shared
from recsys.run.folder import read_run_folder
from recsys.schema import read_manifest
from recsys.serving.recommender import Recommender
from recsys.serving.requests import NewItem
from recsys.serving.store import Store
from tests.export.untrained import make_workspace, write_run

SETTINGS = ExportConfig(thumbnail_pixels=0, max_auc_loss=None, map=False)
MODEL = {"name": "umair_fps"}
OWN = {"bundle.json", "files.json", "README.md", "tombstones.json"}
"""Files that say when and from what a bundle was exported."""


def source_of(workspace, run):
    return open_source(
        workspace, read_run_folder(workspace / "runs" / run), read_manifest(workspace)
    )


@pytest.fixture(scope="module")
def monday(tmp_path_factory, one_process):
    """A workspace with a bundle of the run `monday`, and two runs of the same weights."""
    workspace = make_workspace(tmp_path_factory.mktemp("monday") / "w", hash_rows=60_000)
    for run in ("monday", "tuesday"):
        write_run(workspace, run, one_process, MODEL)
    export(source_of(workspace, "monday"), SETTINGS, threads=1)
    return workspace


@pytest.fixture
def copied(monday, tmp_path):
    """A copy of it that a test writes to."""
    return shutil.copytree(monday, tmp_path / "w")


def files_of(bundle):
    paths = sorted(path for path in bundle.rglob("*") if path.is_file())
    return {path.relative_to(bundle).as_posix(): path.read_bytes() for path in paths}


def elsewhere(workspace, base, folder):
    """Another machine with the base and all deltas; return the bundle that they give."""
    shutil.copytree(base, folder / base.name)
    point_to(folder, base.name)
    shutil.copytree(workspace / "bundles" / DELTAS, folder / DELTAS)
    return folder / catch_up(folder)[-1]


def of_the_next_day(text: str) -> str:
    """Without item i29 and user u11; with item i77 and user u88."""
    return re.sub(r"\bu11\b", "u88", re.sub(r"\bi29\b", "i77", text))


def test_a_delta_of_a_new_day_gives_what_a_whole_export_gives(copied, tmp_path, one_process):
    today = make_workspace(tmp_path / "today", of_the_next_day)
    write_run(today, "tuesday", one_process, MODEL, run={"name": "tuesday", "seed": 3})
    whole = export(source_of(today, "tuesday"), SETTINGS, threads=1)
    whole = whole.parent.rename(tmp_path / "whole") / whole.name
    shutil.copytree(copied / "bundles", today / "bundles")
    store = Store.open(tmp_path / "events.db")
    recommender = Recommender(Bundle.open(copied / "bundles" / "current"))
    for id in ("added", "i29"):
        item = NewItem(id=id, features={"studio": "s3"})
        with store.writing() as transaction:
            transaction.add_item(
                id=item.id,
                version="other" if item.id == "i29" else recommender.version,
                request=item.model_dump_json().encode(),
                encoded=b"" if item.id == "i29" else recommender.encode_item(item).to_bytes(),
            )
    base = find_base(DeltaConfig(base=str(today / "bundles" / "current")), today / "bundles")
    bundle = export(source_of(today, "tuesday"), SETTINGS, threads=1, base=base)

    made = elsewhere(today, base, tmp_path / "elsewhere")
    assert made.name == whole.name
    assert files_of(made) == files_of(bundle)
    expected, found = files_of(whole), files_of(made)
    assert set(found) - set(expected) == {"tombstones.json"}
    assert [name for name in expected if name not in OWN and found[name] != expected[name]] == []
    (folder,) = (today / "bundles" / DELTAS).iterdir()
    assert read_delta(folder).gone == {"item_id": 1, "user_id": 1}

    lists = [
        Recommender(Bundle.open(place, verify="sha256")).recommend(user=user, k=30)
        for place in (whole, made)
        for user in ("u88", "u3")
    ]
    assert [item.score for each in lists[:2] for item in each.items] == [
        item.score for each in lists[2:] for item in each.items
    ]
    assert lists[2].known_user
    offered = {item.id for each in lists for item in each.items}
    assert "i77" in offered
    served = Recommender(Bundle.open(made), store)
    offered |= {item.id for item in served.recommend(k=100, exclude_seen=False).items}
    assert "i29" not in offered, "it was added, trained on, and is gone"
    assert "added" in offered
    assert not served.bundle.item_rows(["i29"])[0]
    store.close()


@pytest.mark.slow
def test_a_tenth_of_changed_rows_are_a_fifth_of_the_bundle_at_most(copied, tmp_path, monkeypatch):
    read, read_dense = StoredTables.read, StoredTables.read_dense

    def changed(self, name, start, stop):
        """Rows of which every tenth has been trained since."""
        block_BD = read(self, name, start, stop)
        is_changed_B = torch.arange(start, stop) % 10 == 3
        return torch.where(is_changed_B[:, None], 1.25 * block_BD.flip(1), block_BD)

    monkeypatch.setattr(StoredTables, "read", changed)
    monkeypatch.setattr(
        StoredTables,
        "read_dense",
        lambda self: {name: 1.01 * values for name, values in read_dense(self).items()},
    )
    base = resolve(copied / "bundles" / "current")
    bundle = export(source_of(copied, "tuesday"), SETTINGS, threads=1, base=base)
    (folder,) = (copied / "bundles" / DELTAS).iterdir()
    delta = read_delta(folder)
    assert (delta.sequence, delta.chain, delta.parent) == (1, base.name, base.name)
    assert delta.changes["tables/studio.values.npy"].rule == "rows"
    sizes = [sum(map(len, files_of(place).values())) for place in (folder, bundle)]
    assert sizes[0] < 0.2 * sizes[1]
    link = read_link(bundle)
    assert (link.sequence, link.chain, link.parent) == (1, base.name, base.name)
    same = [(place / "vocab/item_id.texts.npy").stat().st_ino for place in (base, bundle)]
    assert same[0] == same[1], "unchanged files take no space"


@pytest.mark.slow
def test_a_delta_export_that_is_killed_leaves_nothing(copied, monkeypatch):
    base = resolve(copied / "bundles" / "current")
    source = source_of(copied, "tuesday")

    def names():
        found = copied.glob("bundles/**/*")
        return {path.relative_to(copied).as_posix() for path in found if ".part" not in str(path)}

    before = names()
    write_changes = delta_module.write_changes

    def half(*arguments):
        write_changes(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(delta_module, "write_changes", half)
    process = os.fork()
    if process == 0:
        export(source, SETTINGS, threads=1, base=base)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    left = {name for name in names() - before if not name.endswith(".lock")}
    assert left == {"bundles/deltas"}
    monkeypatch.undo()
    export(source, SETTINGS, threads=1, base=base)
    hidden = [path for path in copied.glob("bundles/**/.*")]
    assert hidden == [], "what was left is removed"


def test_the_job_writes_a_delta_where_the_run_has_changed_and_none_where_it_has_not(copied, job):
    bundles = copied / "bundles"
    base = resolve(bundles / "current")

    def export_job(base, run="monday", **more):
        keys = [f"{name}={value}" for name, value in more.items()]
        place = [f"workspace={copied}", f"run.name={run}", f"base={base}"]
        return job("export", "data=demo", *place, "thumbnail_pixels=0", "map=false", *keys)

    done = export_job(bundles / "current", max_auc_loss="null")
    assert done.returncode == 0, done.stderr
    assert f"nothing has changed since {base}: no delta" in done.stdout
    assert not (bundles / DELTAS).exists()
    done = export_job(bundles / "current", "tuesday", max_auc_loss="null")
    assert done.returncode == 0, done.stderr
    assert re.search(r"delta: number 1 after .*\d+ files changed.*% of the bundle", done.stdout)
    newest = find_base(DeltaConfig(base=str(next((bundles / DELTAS).iterdir()))), bundles)
    with pytest.raises(UserError, match=f"{base.name}: the run has been exported before; write"):
        export(source_of(copied, "monday"), SETTINGS, threads=1, base=newest)


def test_an_open_bundle_says_so_until_it_is_closed(copied):
    base = resolve(copied / "bundles" / "current")
    bundle = Bundle.open(base)
    assert is_shared(base / "bundle.json")
    del bundle
    gc.collect()
    assert not is_shared(base / "bundle.json")


def test_a_base_that_is_none_is_refused_by_name(copied):
    bundles = copied / "bundles"
    base = resolve(bundles / "current")

    def refused(base):
        with pytest.raises(UserError) as error:
            find_base(from_config(DeltaConfig, {"base": str(base)}, ""), bundles)
        return str(error.value)

    assert f"{bundles}/nothing/bundle.json: no bundle here" in refused(bundles / "nothing")
    shutil.copytree(base, copied / "other" / base.name)
    assert f"expected a bundle below {bundles}" in refused(copied / "other" / base.name)
    table = base / "tables" / "item_id.values.npy"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    assert f"{table}: cannot be read (changed since" in refused(base)
    with pytest.raises(UserError, match="keep"):
        from_config(DeltaConfig, {"keep": -1}, "")
