"""Which checkpoints count: whole ones, the newest first; damaged ones are named and passed over."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from recsys.checkpoint.integrity import (
    best_checkpoint,
    check_whole,
    damage_of,
    describe_file,
    forget_unfinished,
    latest_checkpoint,
    newest_whole,
    point_to_best,
    prune,
    restore_best,
    write_manifest,
)
from recsys.checkpoint.state import TrainState, stored_state
from recsys.files import sha256_of
from recsys.locks import hold, new_owner
from recsys.runtime.env import Env

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))


def write(folder, step):
    """A checkpoint of two small files."""
    path = folder / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "index.json").write_text(json.dumps({"step": step}))
    (path / "dense.safetensors").write_bytes(bytes(range(100)))
    files = {name: describe_file(path / name) for name in ("index.json", "dense.safetensors")}
    write_manifest(path, files)
    return path


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


DAMAGES = {
    "truncated": (
        lambda path: (path / "dense.safetensors").write_bytes(bytes(range(99))),
        "dense.safetensors has 99 bytes, its manifest says 100",
    ),
    "flipped": (
        lambda path: flip(path / "dense.safetensors", 50),
        "dense.safetensors has other content than its manifest says",
    ),
    "missing": (
        lambda path: (path / "dense.safetensors").unlink(),
        "dense.safetensors is missing",
    ),
    "index": (lambda path: flip(path / "index.json", 3), "index.json has other content"),
    "no manifest": (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    "cut manifest": (
        lambda path: (path / "manifest.json").write_text('{"files": {"index.js'),
        "manifest.json cannot be read",
    ),
    "other manifest": (
        lambda path: (path / "manifest.json").write_text('{"files": {}}'),
        "manifest.json does not list index.json",
    ),
    "path in the manifest": (
        lambda path: (path / "manifest.json").write_text(
            '{"files": {"index.json": {"bytes": 12, "sha256": "'
            + sha256_of(path / "index.json")
            + '"}, "../x": {"bytes": 1, "sha256": ""}}}'
        ),
        "manifest.json lists '../x', which is no plain file name",
    ),
    "binary manifest": (
        lambda path: (path / "manifest.json").write_bytes(b"\xff\xfe\x00"),
        "manifest.json cannot be read",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, capsys, case):
    harm, sentence = DAMAGES[case]
    earlier, newest = write(tmp_path, 9), write(tmp_path, 10)
    assert newest_whole(tmp_path, ALONE) == newest
    assert capsys.readouterr().out == ""
    harm(newest)
    assert newest_whole(tmp_path, ALONE) == earlier
    warning = capsys.readouterr().out
    assert f"warning: checkpoint {newest} is damaged and skipped: {sentence}" in warning
    with pytest.raises(ValueError, match="the checkpoint is damaged"):
        check_whole(newest, ALONE)
    check_whole(earlier, ALONE)


def test_any_flipped_bit_of_any_file_is_seen(tmp_path):
    """The manifest's own bytes too, but for those that mean the same to JSON."""
    path = write(tmp_path, 1)
    for name in ("index.json", "dense.safetensors", "manifest.json"):
        for position in range((path / name).stat().st_size):
            before = (path / name).read_bytes()
            flip(path / name, position)
            after = (path / name).read_bytes()
            try:
                same = name == "manifest.json" and json.loads(before) == json.loads(after)
            except ValueError:
                same = False
            assert (damage_of(path) is None) == same, (name, position)
            (path / name).write_bytes(before)


def test_every_file_is_some_ranks_share(tmp_path):
    path = write(tmp_path, 1)
    flip(path / "dense.safetensors", 0)
    found = [damage_of(path, part=rank, num_parts=3) for rank in range(3)]
    assert [damage is None for damage in found] == [True, False, True]


def test_where_none_is_whole_nothing_starts_from_scratch(tmp_path):
    assert newest_whole(tmp_path, ALONE) is None
    for step in (1, 2):
        flip(write(tmp_path, step) / "index.json", 0)
    with pytest.raises(
        ValueError, match=r"none of its 2 checkpoint\(s\) is whole .*overwrite=true"
    ):
        newest_whole(tmp_path, ALONE)


def test_a_quick_look_sees_sizes_and_takes_the_newest(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    earlier, newest = write(tmp_path, 9), write(tmp_path, 10)
    assert latest_checkpoint(tmp_path) == newest
    (newest / "dense.safetensors").unlink()
    assert latest_checkpoint(tmp_path) == earlier


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    paths = [write(tmp_path, step) for step in range(1, 7)]
    point_to_best(tmp_path, paths[1].name, 0.7)
    prune(tmp_path, paths[-1], keep_last=2)
    kept = ["best.json", "step-00000002", "step-00000005", "step-00000006"]
    assert names(tmp_path) == kept


def test_damaged_ones_do_not_count_among_the_last(tmp_path):
    paths = [write(tmp_path, step) for step in range(1, 6)]
    (paths[3] / "index.json").unlink()
    prune(tmp_path, paths[4], keep_last=2)
    assert names(tmp_path) == ["step-00000003", "step-00000005"]


def test_a_damaged_later_one_does_not_push_out_what_was_just_saved(tmp_path):
    """Training went back from step 9 to step 2 and has saved step 4."""
    for step in (2, 4):
        write(tmp_path, step)
    flip(write(tmp_path, 9) / "index.json", 0)
    prune(tmp_path, tmp_path / "step-00000004", keep_last=1)
    assert names(tmp_path) == ["step-00000004"]


def test_best_pointer_catches_up_with_a_resume(tmp_path):
    """Killed between the checkpoint and best.json."""
    for step in (3, 6):
        write(tmp_path, step)
    point_to_best(tmp_path, "step-00000003", 0.6)
    state = TrainState(step=6, best_step=6, best_metric=0.7)
    restore_best(tmp_path, state)
    assert best_checkpoint(tmp_path).name == "step-00000006"
    assert json.loads((tmp_path / "best.json").read_text())["metric"] == 0.7


def test_a_lost_best_checkpoint_is_forgotten(tmp_path, capsys):
    write(tmp_path, 6)
    state = TrainState(step=6, best_step=3, best_metric=0.7)
    restore_best(tmp_path, state)
    assert state.best_metric is None
    assert "step-00000003 is not whole any more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"finished": True, "evaluations_without_improvement": 2}, "no validation had a value of"),
        ({"step": 6}, "trained up to step-00000006 and has no validation yet; train on"),
        ({"best_metric": 0.7, "best_step": 3}, "best validation was that of step 3; train on"),
        (None, "expected a run trained with this run.name"),
    ],
)
def test_a_run_without_a_best_checkpoint_says_why(tmp_path, state, why):
    if state is not None:
        path = write(tmp_path, 6)
        (path / "index.json").write_text(json.dumps({"state": state}))
        files = {name: describe_file(path / name) for name in ("index.json", "dense.safetensors")}
        write_manifest(path, files)
    with pytest.raises(ValueError, match=rf"best.json: no best checkpoint here; .*{why}"):
        best_checkpoint(tmp_path)


def begun(folder: Path, name: str, owner: str) -> list[str]:
    """Leave a half-written checkpoint with its lock; return the names of both."""
    stem = folder / f".{name}.{owner}"
    Path(f"{stem}.part").mkdir()
    (Path(f"{stem}.part") / "index.json").write_text("{")
    Path(f"{stem}.lock").touch()
    return [f"{stem.name}.lock", f"{stem.name}.part"]


def test_half_written_folders_of_dead_processes_are_removed_and_nothing_else(tmp_path):
    write(tmp_path, 1)
    # A process was killed between taking the name of an earlier one and giving it to the new.
    write(tmp_path, 3)
    owner = new_owner()
    (tmp_path / "step-00000003").rename(tmp_path / f".step-00000003.{owner}.part.old")
    begun(tmp_path, "step-00000003", owner)
    begun(tmp_path, "step-00000002", new_owner())
    forget_unfinished(tmp_path)
    assert names(tmp_path) == ["step-00000001", "step-00000003"]
    assert damage_of(tmp_path / "step-00000003") is None


def test_half_written_folders_of_living_processes_and_other_hosts_stay(tmp_path, capsys):
    write(tmp_path, 1)
    owner = new_owner()
    mine = begun(tmp_path, "step-00000002", owner)
    other = begun(tmp_path, "step-00000002", "elsewhere-0000aaaa-1111bbbb-2222cccc")
    lock = hold(tmp_path / mine[0])
    forget_unfinished(tmp_path)
    assert names(tmp_path) == sorted([*mine, *other, "step-00000001"])
    assert "begun on another machine and is left alone" in capsys.readouterr().err
    os.close(lock)
    forget_unfinished(tmp_path)
    assert names(tmp_path) == sorted([*other, "step-00000001"])


def test_what_earlier_versions_left_is_put_back_or_named(tmp_path, capsys):
    write(tmp_path, 3)
    (tmp_path / "step-00000003").rename(tmp_path / ".step-00000003.old")
    (tmp_path / ".step-00000002").mkdir()
    forget_unfinished(tmp_path)
    assert names(tmp_path) == [".step-00000002", "step-00000003"]
    assert f"{tmp_path / '.step-00000002'} is half a checkpoint" in capsys.readouterr().out


def test_a_removal_that_was_killed_is_finished_by_the_next_start(tmp_path, monkeypatch):
    write(tmp_path, 1)
    write(tmp_path, 2)
    child = os.fork()
    if child == 0:
        monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: os._exit(9))
        prune(tmp_path, tmp_path / "step-00000002", 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(names(tmp_path)) == 3
    forget_unfinished(tmp_path)
    assert names(tmp_path) == ["step-00000002"]


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "step-00000001/..", "", 7, "best"])
def test_the_pointer_to_the_best_checkpoint_does_not_lead_out_of_the_run(tmp_path, name):
    write(tmp_path, 1)
    point_to_best(tmp_path, "step-00000001", 0.5)
    assert best_checkpoint(tmp_path).name == "step-00000001"
    (tmp_path / "best.json").write_text(json.dumps({"checkpoint": name, "metric": 0.5}))
    with pytest.raises(ValueError, match=r"best.json: cannot be read .*; train on"):
        best_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"best.json: cannot be read"):
        prune(tmp_path, tmp_path / "step-00000001", 1)


@pytest.mark.parametrize("content", ["", "{", '{"metric": 1}', "[]"])
def test_a_damaged_pointer_to_the_best_checkpoint_is_named(tmp_path, content):
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(ValueError, match=r"best.json: .*; train on \(launch/train.py\)"):
        best_checkpoint(tmp_path)


def test_a_loop_state_from_before_a_key_was_there_has_its_default():
    assert stored_state({"epoch": 2, "step": 9}) == TrainState(epoch=2, step=9)
    with pytest.raises(ValueError, match="with momentum, expected only best_metric, .*version of"):
        stored_state({"epoch": 2, "momentum": 0.9})
