"""Whose run a folder is: a restart of the same torchrun goes on with it, whatever it was told."""

import dataclasses
import os

import pytest
import torch
import yaml

from recsys.checkpoint.integrity import describe_file, write_manifest
from recsys.run import scoring
from recsys.run.config import read_run_config
from recsys.run.folder import open_run_folder, read_run_folder, with_exchange
from recsys.runtime.env import Env
from recsys.runtime.torchrun import agent_of, name_of_process
from tests import tiny_world


def open_as(workspace, launch, **run):
    config = read_run_config({"run": {"name": "r", **run}})
    return open_run_folder(workspace, config, tiny_world.manifest(), launch)


@pytest.mark.parametrize("asked", [{"overwrite": True}, {"resume": "never"}])
def test_a_restart_keeps_what_its_own_start_has_trained(tmp_path, asked):
    """Restarted workers, a lost host, a host that took its place: an agent is there that was before."""
    folder = open_as(tmp_path, ["agent 1", "agent 2"], **asked)
    (folder / "checkpoints").mkdir()
    for agents in (["agent 1", "agent 2"], ["agent 2"], ["agent 2", "agent 3"], ["agent 3"]):
        assert open_as(tmp_path, agents, **asked) == folder
        assert (folder / "checkpoints").is_dir()


@pytest.mark.parametrize("agents", [["agent 3", "agent 4"], []])
def test_another_start_deletes_or_refuses_as_it_was_told(tmp_path, agents):
    folder = open_as(tmp_path, ["agent 1", "agent 2"])
    (folder / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="holds a run already"):
        open_as(tmp_path, agents, resume="never")
    open_as(tmp_path, agents, overwrite=True)
    assert not (folder / "checkpoints").exists()


def test_plain_python_is_never_the_same_start(tmp_path):
    folder = open_as(tmp_path, [])
    (folder / "checkpoints").mkdir()
    open_as(tmp_path, [], overwrite=True)
    assert not (folder / "checkpoints").exists()


def test_a_folder_that_names_its_start_by_a_rendezvous_id_is_another_starts(tmp_path):
    """As the folders were written once: people give every start the same id."""
    folder = open_as(tmp_path, [])
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("launch: []", "launch: mine"))
    (folder / "checkpoints").mkdir()
    open_as(tmp_path, ["mine"], overwrite=True)
    assert not (folder / "checkpoints").exists()


ONE_CPU = Env(device=torch.device("cpu"), rank=0, local_rank=0, world_size=1, local_world_size=1)
EIGHT_GPUS = dataclasses.replace(
    ONE_CPU, device=torch.device("cuda"), world_size=8, local_world_size=8
)


def exchange_of(workspace, env, **plan):
    """Precisions that a start takes; they are in the folder's configuration from then on."""
    given = read_run_config({"run": {"name": "r"}, "plan": plan})
    config = with_exchange(workspace, given, env)
    open_run_folder(workspace, config, tiny_world.manifest())
    return config.plan.forward_communication, config.plan.backward_communication


def save_something(workspace):
    """A checkpoint of no weights, whole as far as a folder of a run looks at it."""
    folder = workspace / "runs/r/checkpoints/step-00000001"
    folder.mkdir(parents=True)
    (folder / "index.json").write_text("{}")
    write_manifest(folder, {"index.json": describe_file(folder / "index.json")})


def test_a_resumed_run_exchanges_vectors_in_the_precision_of_its_start(tmp_path, capsys):
    assert exchange_of(tmp_path, ONE_CPU) == ("fp32", "fp32")
    assert exchange_of(tmp_path, EIGHT_GPUS) == ("fp16", "bf16"), "nothing was trained before"
    save_something(tmp_path)
    assert not capsys.readouterr().out
    assert exchange_of(tmp_path, ONE_CPU) == ("fp16", "bf16")
    assert "exchange between ranks: as at the start of run 'r'" in capsys.readouterr().out
    assert exchange_of(tmp_path, EIGHT_GPUS) == ("fp16", "bf16")
    asked = exchange_of(tmp_path, EIGHT_GPUS, forward_communication="fp32")
    assert asked == ("fp32", "bf16"), "a choice of the user stays"


def test_a_run_of_a_version_that_knew_no_other_precision_goes_on_exactly(tmp_path):
    exchange_of(tmp_path, EIGHT_GPUS)
    file = tmp_path / "runs/r/config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["plan"]["forward_communication"], stored["plan"]["backward_communication"]
    file.write_text(yaml.safe_dump(stored))
    save_something(tmp_path)
    assert exchange_of(tmp_path, EIGHT_GPUS) == ("fp32", "fp32")


def test_a_saved_plan_has_its_own_precision(tmp_path):
    given = read_run_config({"plan": {"file": "plan.json"}})
    assert with_exchange(tmp_path, given, EIGHT_GPUS) == given


def test_an_evaluation_exchanges_exactly_unless_it_is_told_otherwise():
    """Its scores are the same on any number of ranks."""
    half = {"forward_communication": "fp16", "backward_communication": "bf16"}
    config = read_run_config({"plan": half})
    read = scoring._only_read(config, "cuda", plan=None, placements={})
    assert read.plan.forward_communication == "fp32"
    told = scoring._only_read(config, "cuda", plan=half, placements={})
    assert told.plan.forward_communication == "fp16"


def write_process(proc, pid, parent, command, environment):
    (proc / str(pid)).mkdir(parents=True)
    fields = ["S", str(parent), *["0"] * 17, str(pid * 10), "0"]
    (proc / str(pid) / "stat").write_text(f"{pid} ({command}) {' '.join(fields)}\n")
    (proc / str(pid) / "environ").write_bytes(b"\0".join(e.encode() for e in environment) + b"\0")


def test_the_agent_is_found_behind_scripts_around_the_worker(tmp_path):
    """Of two starts from one shell with one id the agents differ, of two restarts they do not."""
    marked = ["HOME=/", "TORCHELASTIC_RUN_ID=mine"]
    write_process(tmp_path, 10, 1, "bash", ["HOME=/"])
    for agent, workers in ((20, (21, 22)), (30, (31,))):
        write_process(tmp_path, agent, 10, "pt (main) x", ["HOME=/", "MY_TORCHELASTIC_RUN_ID=1"])
        for worker in workers:
            write_process(tmp_path, worker, agent, "sh", marked)
            write_process(tmp_path, worker + 100, worker, "python", marked)
    found = [agent_of(worker, tmp_path) for worker in (21, 121, 122, 31, 131)]
    assert found == [20, 20, 20, 30, 30]
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("b007\n")
    assert name_of_process(20, tmp_path).endswith(", begun 200 ticks after boot b007")


def test_a_process_has_one_name_and_another_has_another():
    parent = os.getppid()
    assert name_of_process(os.getpid()) == name_of_process(os.getpid())
    assert name_of_process(parent) != name_of_process(os.getpid())


def test_a_run_from_before_a_key_was_there_was_made_with_its_default(tmp_path):
    folder = open_as(tmp_path, [])
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    for section, key in (
        ("model", "umcm_dropout"),
        ("model", "projection_dropout"),
        ("optim", "dense_l2"),
    ):
        del stored[section][key]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    assert read_run_folder(folder) == read_run_config({"run": {"name": "r"}})
    open_as(tmp_path, [])
    config = read_run_config({"run": {"name": "r"}, "model": {"umcm_dropout": 0.5}})
    del stored["model"]["umcm"]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    with pytest.raises(ValueError, match="model.umcm_dropout was 0.0, is 0.5"):
        open_run_folder(tmp_path, config, tiny_world.manifest(), [])


def test_a_configuration_that_was_cut_off_within_a_line_is_named_with_a_way_on(tmp_path):
    folder = open_as(tmp_path, [])
    file = folder / "config.yaml"
    whole = file.read_text()
    # Valid YAML, in which nothing but the end is wrong.
    file.write_text(whole[: whole.index("launch:")].rstrip())
    with pytest.raises(ValueError, match=r"config.yaml.*cut off: .*put back a copy"):
        read_run_folder(folder)


def with_epochs(epochs, **optim):
    return read_run_config({"run": {"name": "r"}, "train": {"epochs": epochs}, "optim": optim})


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
def test_a_resume_with_other_epochs_says_what_becomes_of_the_learning_rate(tmp_path, capsys, decay):
    folder = open_run_folder(tmp_path, with_epochs(2, decay=decay), tiny_world.manifest())
    save_something(tmp_path)
    capsys.readouterr()
    open_run_folder(tmp_path, with_epochs(2, decay=decay), tiny_world.manifest())
    assert capsys.readouterr().out == ""
    open_run_folder(tmp_path, with_epochs(5, decay=decay), tiny_world.manifest())
    (line,) = capsys.readouterr().out.splitlines()
    assert "train.epochs was 2, is 5" in line
    changed = f"its learning rate now falls to 0 ({decay}) over 5 epochs instead of 2"
    assert (changed in line) == (decay != "constant")
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["extended"] == ["train.epochs was 2, is 5"]
    assert stored["train"]["epochs"] == 5


def test_overwriting_replaces_the_folder_in_one_step(tmp_path, monkeypatch):
    folder = open_as(tmp_path, [])
    (folder / "checkpoints").mkdir()

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("recsys.run.folder.write_text", fails)
    with pytest.raises(OSError, match="Input/output"):
        open_as(tmp_path, [], overwrite=True)
    assert (folder / "checkpoints").is_dir() and (folder / "config.yaml").is_file()
    assert [path.name for path in folder.parent.iterdir()] == ["r"]
