"""Whose run a folder is: a restart of the same torchrun goes on with it, whatever it was told."""

import pytest

from recsys.train.run import open_run_folder, read_run_config
from tests import tiny_world


def open_as(workspace, launch, **run):
    config = read_run_config({"run": {"name": "r", **run}})
    return open_run_folder(workspace, config, tiny_world.manifest(), launch)


@pytest.mark.parametrize("asked", [{"overwrite": True}, {"resume": "never"}])
def test_a_restart_keeps_what_its_own_start_has_trained(tmp_path, asked):
    folder = open_as(tmp_path, "start 1", **asked)
    (folder / "checkpoints").mkdir()
    assert open_as(tmp_path, "start 1", **asked) == folder
    assert (folder / "checkpoints").is_dir()


@pytest.mark.parametrize("launch", ["start 2", None])
def test_another_start_deletes_or_refuses_as_it_was_told(tmp_path, launch):
    folder = open_as(tmp_path, "start 1")
    (folder / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds a run already"):
        open_as(tmp_path, launch, resume="never")
    open_as(tmp_path, launch, overwrite=True)
    assert not (folder / "checkpoints").exists()


def test_plain_python_is_never_the_same_start(tmp_path):
    folder = open_as(tmp_path, None)
    (folder / "checkpoints").mkdir()
    open_as(tmp_path, None, overwrite=True)
    assert not (folder / "checkpoints").exists()
