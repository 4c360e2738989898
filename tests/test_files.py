"""Writing and reading of files: one whole version at every moment, whatever fails in between."""

import errno
import gc
import itertools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from recsys import files, locks
from recsys.files import (
    DamagedFileError,
    DiskFullError,
    new_array,
    new_file,
    new_folder,
    put_back,
    read_array,
    read_json,
    remove_leftovers,
    tidy,
    write_array,
    write_json,
    write_text,
    writing,
)

SYSTEM_CALLS = ("open", "mkdir", "rename", "replace", "unlink", "rmdir", "fsync", "close")


def fill(folder: Path, version: str) -> None:
    """Write a folder whose files all name its version."""
    (folder / "deep").mkdir()
    for name in ("a", "b", "deep/c"):
        (folder / name).write_text(version)


def replace_prepared(root: Path, version: str) -> None:
    with new_folder(root / "prepared") as beside:
        fill(beside, version)


def replace_file(root: Path, version: str) -> None:
    write_text(root / "manifest.json", version * 9)


def version_of(root: Path) -> str:
    """Return the one version that everything with a plain name is of."""
    plain = [p for p in root.iterdir() if not p.name.startswith(".")]
    assert len(plain) == 1
    read = [p.read_text() for p in plain[0].rglob("*") if p.is_file()] if plain[0].is_dir() else []
    assert plain[0].is_file() or len(read) == 3
    (version,) = set(read) if read else {plain[0].read_text()[0]}
    return version


class Killed(BaseException):
    """The process is gone: what it would have done from here on does not happen."""


class Interrupted:
    """Ends or fails the work at its n-th system call that changes names or waits for the disk."""

    def __init__(self, at: int, how: str, patch: pytest.MonkeyPatch):
        self.at, self.how, self.count, self.is_dead = at, how, 0, False
        self.open_files: set[int] = set()
        for name in SYSTEM_CALLS:
            patch.setattr(os, name, self.wrapped(name, getattr(os, name)))
        patch.setattr(files, "_exchange", self.wrapped("exchange", files._exchange))

    def wrapped(self, name: str, call: Callable) -> Callable:
        def interrupted(*args, **kwargs):
            self.count += 1
            self.is_dead = self.is_dead or (self.count, self.how) == (self.at, "killed before")
            if self.is_dead:
                raise Killed
            if (self.count, self.how) == (self.at, "fails"):
                raise OSError(errno.EIO, "Input/output error")
            try:
                # Nobody pulls the plug here.
                result = None if name == "fsync" else call(*args, **kwargs)
                if name == "open":
                    self.open_files.add(result)
                if name == "close":
                    self.open_files.discard(args[0])
            finally:
                if (self.count, self.how) == (self.at, "killed after"):
                    self.is_dead = True
                    raise Killed
            return result

        return interrupted


@pytest.mark.parametrize("how", ["killed before", "killed after", "fails"])
@pytest.mark.parametrize("kind", ["file", "folder", "folder without exchange"])
def test_one_whole_version_is_there_whichever_system_call_is_the_last(
    tmp_path, monkeypatch, kind, how
):
    replace = replace_file if kind == "file" else replace_prepared
    if kind == "folder without exchange":
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    replace(tmp_path, "1")
    seen = set()
    for at in itertools.count(1):
        with monkeypatch.context() as patch:
            interrupted = Interrupted(at, how, patch)
            with suppress(OSError, Killed):
                replace(tmp_path, "2")
        for descriptor in interrupted.open_files:  # as the kernel does; their locks go with them
            os.close(descriptor)
        if interrupted.count < at:
            break
        if how != "fails":
            put_back(tmp_path / "prepared")
        seen.add(version_of(tmp_path))
        replace(tmp_path, "1")
        remove_leftovers(tmp_path)
        assert version_of(tmp_path) == "1"
        left = [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
        assert not left, f"after call {at}"
    assert at > (8 if kind == "file" else 30)
    assert seen == {"1", "2"}


def test_a_failed_rename_leaves_the_version_before_without_any_repair(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    replace_prepared(tmp_path, "1")
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        replace_prepared(tmp_path, "2")
    assert version_of(tmp_path) == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["prepared"]


def test_an_error_in_the_block_leaves_the_version_before(tmp_path):
    replace_prepared(tmp_path, "1")
    with pytest.raises(KeyError), new_folder(tmp_path / "prepared") as beside:
        fill(beside, "2")
        raise KeyError("x")
    write_json(tmp_path / "prepared" / "a", {"x": 1})
    with pytest.raises(KeyError), new_file(tmp_path / "prepared" / "a") as path:
        path.write_text("half")
        raise KeyError("x")
    assert read_json(tmp_path / "prepared" / "a", "") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["prepared"]
    assert len(list((tmp_path / "prepared").iterdir())) == 3


@contextmanager
def another_process_builds(root: Path) -> Iterator[subprocess.Popen]:
    """Have another process half-way through both kinds of replacement."""
    code = (
        "import sys; from recsys.files import new_file, new_folder\n"
        f"with new_folder({str(root / 'prepared')!r}) as f, new_file({str(root / 'x.json')!r}):\n"
        "    (f / 'half').write_text('x'); print('there', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == b"there\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_half_built_folders_of_living_processes_stay_and_of_dead_ones_go(tmp_path):
    with another_process_builds(tmp_path):
        hidden = sorted(p.name for p in tmp_path.iterdir())
        assert len(hidden) == 3
        replace_prepared(tmp_path, "1")
        remove_leftovers(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == [*hidden, "prepared"]
    tidy(tmp_path / "prepared")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["prepared"]


def test_the_first_file_of_a_process_in_a_folder_ends_what_killed_ones_left_there(tmp_path):
    with another_process_builds(tmp_path):
        pass
    (left,) = tmp_path.glob(".x.json.*.part")
    write_json(tmp_path / "y.json", {})
    assert not left.exists()


def test_half_built_folders_of_other_machines_stay_with_a_note(tmp_path, capfd):
    replace_prepared(tmp_path, "1")
    (tmp_path / ".prepared.other-host-12345678-9abcdef0.part").mkdir()
    (tmp_path / ".prepared.other-host-12345678-9abcdef0.lock").touch()
    (tmp_path / ".x.json.other-host-12345678-9abcdef0.part").touch()
    replace_prepared(tmp_path, "2")
    remove_leftovers(tmp_path)
    assert version_of(tmp_path) == "2"
    assert len(list(tmp_path.iterdir())) == 4
    assert "begun on another machine" in capfd.readouterr().err


def owned(name: str, machine: str, boot: str, monkeypatch, tmp_path) -> str:
    """Return a name in the making as a process of that machine and boot gives it; locks say so too."""
    for attribute, text in (("_MACHINE_ID", machine), ("_BOOT_ID", boot)):
        file = tmp_path.with_name(f"{tmp_path.name}-{attribute}")
        file.write_text(text)
        monkeypatch.setattr(locks, attribute, file)
    return f".{name}.{locks.new_owner()}"


@pytest.mark.parametrize(
    ("machine", "boot", "is_taken_for_dead"),
    [
        ("machine-a", "1111aaaa", True),
        ("machine-b", "1111aaaa", True),  # another container on the same kernel
        ("machine-a", "2222bbbb", True),  # before this machine was started again
        ("machine-b", "2222bbbb", False),  # a host of the same name
        ("", "2222bbbb", False),  # a host that cannot be told from this one
    ],
)
def test_a_half_built_folder_is_taken_for_dead_on_the_machine_that_began_it_only(
    tmp_path, monkeypatch, machine, boot, is_taken_for_dead
):
    stem = owned("prepared", machine, boot, monkeypatch, tmp_path)
    (tmp_path / f"{stem}.part").mkdir()
    (tmp_path / f"{stem}.lock").touch()
    (tmp_path / f"{stem}.part.old").mkdir()
    file = tmp_path / f"{owned('x.json', machine, boot, monkeypatch, tmp_path)}.part"
    file.touch()
    owned("", "machine-a" if machine else "", "1111aaaa", monkeypatch, tmp_path)
    put_back(tmp_path / "prepared")
    assert (tmp_path / "prepared").exists() == is_taken_for_dead
    tidy(tmp_path / "prepared")
    remove_leftovers(tmp_path)
    assert len(list(tmp_path.iterdir())) == (1 if is_taken_for_dead else 4)


def test_a_link_to_a_folder_on_another_disk_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "w").mkdir()
    replace_prepared(tmp_path / "disk", "1")
    (tmp_path / "w" / "prepared").symlink_to(tmp_path / "disk" / "prepared")
    replace_prepared(tmp_path / "w", "2")
    assert (tmp_path / "w" / "prepared").is_symlink()
    assert version_of(tmp_path / "disk") == "2"


# Full disks


@contextmanager
def limited(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond `num_bytes`: writes fail as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_numbers(path: Path) -> None:
    connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE t AS SELECT random() AS x FROM range(1000000)")
    connection.close()


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(1 << 20)),
    "numpy": lambda path: np.save(path, np.zeros(1 << 20, dtype=np.uint8)),
    "torch": lambda path: torch.save(torch.zeros(1 << 18), path),
    "safetensors": lambda path: save_file({"x": torch.zeros(1 << 18)}, path),
    "arrow": lambda path: pq.write_table(
        pa.table({"x": np.random.default_rng(0).random(1 << 17)}), path
    ),
    "duckdb": write_numbers,
    "map": lambda path: new_array(path, np.uint8, (1 << 20,)),
}


@pytest.mark.parametrize("library", WRITERS)
def test_every_library_that_finds_the_disk_full_gives_the_same_sentence(tmp_path, library):
    replace_prepared(tmp_path, "1")
    with (
        limited(1 << 16),
        pytest.raises(DiskFullError, match=r"cannot be written, .* bytes free") as caught,
        new_folder(tmp_path / "prepared") as beside,
    ):
        WRITERS[library](beside / "x.npy")
    assert str(caught.value).startswith(str(tmp_path / "prepared"))
    assert version_of(tmp_path) == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["prepared"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_bytes_needed_and_free(tmp_path, code):
    with pytest.raises(DiskFullError) as caught, writing(tmp_path / "x.npy", 123_456):
        raise OSError(code, os.strerror(code))
    assert str(caught.value).startswith(f"{tmp_path / 'x.npy'}: cannot be written, ")
    assert "123,456 bytes needed" in str(caught.value)


def test_errors_that_are_no_full_disk_pass_as_they_are(tmp_path):
    for error in (OSError(errno.EACCES, "Permission denied"), RuntimeError("shape"), KeyError("x")):
        with pytest.raises(type(error)) as caught, writing(tmp_path / "x"):
            raise error
        assert caught.value is error


# Damaged files


def damaged(path: Path, how: str) -> None:
    """Make a file missing, empty, half as long, or full of bytes that mean nothing."""
    content = path.read_bytes()
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "half":
        path.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        path.write_bytes(b"\x93garbage" * (1 + len(content) // 8))


@pytest.mark.parametrize("how", ["missing", "empty", "half", "garbage"])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_damaged_array_is_named_with_the_command_that_makes_it_anew(tmp_path, how, mmap):
    path = tmp_path / "offsets.npy"
    np.save(path, np.arange(1000))
    assert read_array(path, "", mmap=mmap)[7] == 7
    damaged(path, how)
    with pytest.raises(DamagedFileError) as caught:
        read_array(path, "run launch/prepare.py again", mmap=mmap)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).endswith("; run launch/prepare.py again")


@pytest.mark.parametrize("how", ["missing", "empty", "half", "garbage"])
def test_damaged_json_is_named_with_the_command_that_makes_it_anew(tmp_path, how):
    path = tmp_path / "best.json"
    path.write_text(json.dumps({"checkpoint": "step-00000001"}))
    damaged(path, how)
    with pytest.raises(DamagedFileError, match=rf"{path}: .*; train again"):
        read_json(path, "train again")


def test_an_archive_in_the_place_of_an_array_is_refused(tmp_path):
    path = tmp_path / "x.npy"
    with open(path, "wb") as stream:
        np.savez(stream, a=np.arange(3))
    with pytest.raises(DamagedFileError, match="an archive of arrays"):
        read_array(path, "run embed")


def strictly(text: str) -> object:
    """What a strict JSON reader makes of it; Python's own takes NaN and Infinity too."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_json_does_not_have_are_null(tmp_path):
    content = {
        "auc": float("nan"),
        "all": {"gauc": np.float64("nan"), "interval": [float("-inf"), 0.5]},
        "pair": (float("inf"), 1, True, None, "NaN"),
    }
    write_json(tmp_path / "metrics.json", content)
    assert strictly((tmp_path / "metrics.json").read_text()) == {
        "auc": None,
        "all": {"gauc": None, "interval": [None, 0.5]},
        "pair": [None, 1, True, None, "NaN"],
    }


def test_arrays_are_read_by_many_threads_while_garbage_is_collected(tmp_path):
    """A collection lets another thread run amid the header's literal, which Python 3.11 does not bear."""
    path = tmp_path / "values.npy"
    write_array(path, np.arange(6).reshape(2, 3))
    thresholds = gc.get_threshold()
    interval = sys.getswitchinterval()

    def lets_others_run(*_: object) -> None:
        sum(range(50))

    def read(_: int) -> bool:
        return all(read_array(path, "again", mmap=True)[1, 2] == 5 for _ in range(200))

    gc.callbacks.append(lets_others_run)
    gc.set_threshold(5)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(8)))
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(lets_others_run)
