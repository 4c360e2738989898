"""Chains: base and deltas give the last export; a delta out of order is refused, and nothing changes."""

import json
import os
import shutil

import numpy as np
import pytest

from recsys.bundle.chain import catch_up, compact, move_current, next_delta
from recsys.bundle.delta import DELTAS
from recsys.bundle.spec import point_to, resolve
from recsys.data.prepare import object_store
from recsys.errors import UserError
from recsys.locks import is_shared, share
from tests.bundle.chains import chain, copy_base, delta_folder, export, send

OTHER = np.zeros((3, 2))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of bundles v0 to v10 of an exporting machine."""
    bundles = tmp_path_factory.mktemp("exported") / "bundles"
    chain(bundles, 10)
    return bundles


@pytest.fixture
def remote(exported, tmp_path):
    """Another machine, which has v0."""
    return copy_base(exported, tmp_path / "bundles")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_and_ten_deltas_are_the_last_export_byte_for_byte(exported, remote):
    send(exported, remote, *range(1, 11))
    assert catch_up(remote) == [f"v{number}" for number in range(1, 11)]
    assert resolve(remote / "current") == remote / "v10"
    for number in range(11):
        assert contents(remote / f"v{number}") == contents(exported / f"v{number}")
    same = [(folder / "v10/kept.npy").stat().st_ino for folder in (exported, remote)]
    assert same == [(folder / "v0/kept.npy").stat().st_ino for folder in (exported, remote)]
    assert catch_up(remote) == []


def test_a_gap_is_refused_by_name_and_closed_by_the_missing_delta(exported, remote):
    send(exported, remote, 1, 3)
    with pytest.raises(
        UserError,
        match=r"000003-v3: delta 3 follows v2, which is not here; v1 .* delta 2 is missing",
    ):
        catch_up(remote)
    assert resolve(remote / "current").name == "v1"
    assert sorted(path.name for path in remote.glob("v*")) == ["v0", "v1"]
    send(exported, remote, 2)
    assert catch_up(remote) == ["v2", "v3"]


def test_a_delta_for_another_parent_of_this_name_is_refused(exported, remote):
    shutil.rmtree(remote / "v0")
    export(remote, "v0", table=OTHER)
    send(exported, remote, 1)
    with pytest.raises(UserError, match=r"000001-v1: delta 1 was made for another v0: the sha256"):
        catch_up(remote)
    assert resolve(remote / "current").name == "v0"


@pytest.mark.parametrize("file", ["values", "gaps"])
def test_a_damaged_delta_is_refused_by_its_file_and_nothing_is_left(exported, remote, file):
    send(exported, remote, 1)
    (payload,) = delta_folder(remote, 1).glob(f"*.{file}.npy")
    content = bytearray(payload.read_bytes())
    content[-1] ^= 1
    payload.write_bytes(content)
    with pytest.raises(UserError, match=rf"{payload.name}: .*sha256 differs from delta.json's"):
        catch_up(remote)
    payload.unlink()
    with pytest.raises(UserError, match=rf"{payload.name}: missing; copy it again"):
        catch_up(remote)
    assert sorted(path.name for path in remote.iterdir()) == ["current", DELTAS, "v0"]


def test_a_damaged_file_of_the_parent_is_noticed_where_it_is_patched(exported, remote):
    send(exported, remote, 1)
    table = remote / "v0" / "table.npy"
    content = bytearray(table.read_bytes())
    content[300] ^= 1
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"makes a table.npy of .*v0 whose sha256 differs"):
        catch_up(remote)
    assert not (remote / "v1").exists()


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("version", 2, "delta version 2, expected 1"),
        ("sequence", "one", "sequence: 'one' does not fit"),
        ("name", "../outside", "'../outside' leaves the folder"),
        ("changes", {"/etc/x": {"rule": "whole", "payload": "0"}}, "'/etc/x' leaves the folder"),
        (
            "changes",
            {"x": {"rule": "guess", "payload": "0"}},
            "rule 'guess', expected one of whole",
        ),
    ],
)
def test_a_delta_of_another_schema_is_refused(exported, remote, key, value, reason):
    send(exported, remote, 1)
    path = delta_folder(remote, 1) / "delta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(UserError, match=reason):
        catch_up(remote)
    path.write_text("{")
    with pytest.raises(UserError, match=r"delta.json: cannot be read"):
        catch_up(remote)
    assert resolve(remote / "current").name == "v0"


def test_a_delta_that_is_still_copied_is_not_looked_at(exported, remote, monkeypatch):
    copy, num_files = object_store._copy, len(list(delta_folder(exported, 1).iterdir()))
    seen = []

    def counting(*arguments):
        copy(*arguments)
        seen.append(next_delta(remote))

    monkeypatch.setattr(object_store, "_copy", counting)
    source, target = delta_folder(exported, 1), delta_folder(remote, 1)
    assert object_store.sync(str(source), str(target)) == (num_files, 0)
    assert seen == [None] * (num_files - 1) + [target]
    assert catch_up(remote) == ["v1"]


def test_a_later_delta_of_another_chain_is_refused_and_an_earlier_one_left(exported, remote):
    send(exported, remote, 1)
    export(remote, "other", table=OTHER)
    assert next_delta(remote) is None
    point_to(remote, "v0")
    assert catch_up(remote) == ["v1"]
    other = export(exported.parent / "others", "other", table=OTHER)
    more = export(other.parent, "more", other, table=OTHER + 1)
    shutil.copytree(other.parent / DELTAS, remote / DELTAS, dirs_exist_ok=True)
    with pytest.raises(
        UserError, match=r"000001-more: a delta of the bundle other, given beside v1"
    ):
        catch_up(remote)
    assert more.name == "more"


def test_who_goes_back_stays_there_until_a_newer_delta_comes(exported, remote):
    send(exported, remote, 1, 2)
    catch_up(remote)
    point_to(remote, "v1")
    assert catch_up(remote) == []
    assert resolve(remote / "current").name == "v1"
    send(exported, remote, 3)
    assert catch_up(remote) == ["v3"]


def test_an_export_that_was_faster_stays_current(exported, remote):
    assert not move_current(remote, "v9", instead_of="v8")
    assert resolve(remote / "current").name == "v0"
    assert move_current(remote, "v9", instead_of="v0")


def test_old_versions_are_removed_unless_they_are_open_or_needed(exported, remote):
    send(exported, remote, *range(1, 6))
    catch_up(remote)
    descriptor = share(remote / "v1" / "bundle.json")
    assert is_shared(remote / "v1" / "bundle.json")
    assert compact(remote, keep=2) == ["v2"]
    os.close(descriptor)
    assert compact(remote, keep=2) == ["v1"]
    assert sorted(path.name for path in remote.glob("v*")) == ["v0", "v3", "v4", "v5"]
    # The parent of a delta that is still to come stays, and what cannot be read is left alone.
    point_to(remote, "v4")
    shutil.rmtree(remote / "v5")
    (remote / "broken").mkdir()
    (remote / "broken" / "bundle.json").write_text("{")
    assert compact(remote, keep=0) == ["v3"]
    assert catch_up(remote) == ["v5"]
    # A whole export begins a new chain: the deltas before it have had their time.
    export(remote, "whole", table=OTHER)
    removed = [*(f"{number:06d}-v{number}" for number in range(1, 6))]
    assert compact(remote, keep=0) == ["v5", "v4", *removed]
    assert sorted(path.name for path in remote.iterdir()) == [
        "broken",
        "current",
        DELTAS,
        "v0",
        "whole",
    ]
