"""launch/doctor.py: one sentence for every kind of mismatch, and the command as typed."""

import re
import subprocess
import sys

import pytest

from launch import doctor
from recsys.runtime.lookup import lookup_problems

CPU = dict.fromkeys(doctor.MODULES, "1.0.0") | {
    "torch": "2.13.0+cpu",
    "torchvision": "0.28.0",
    "torchrec": "1.8.0",
    "fbgemm-gpu": None,
    "fbgemm-gpu-cpu": "1.8.0",
}
GPU = CPU | {"torch": "2.13.0", "fbgemm-gpu": "1.8.0", "fbgemm-gpu-cpu": None}
OLDER_GPU = GPU | {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "torchrec": "1.6.2",
    "fbgemm-gpu": "1.6.0",
}


def problems(versions, *, num_gpus=0, cuda=None, python=(3, 11)):
    return doctor.version_problems(python=python, versions=versions, num_gpus=num_gpus, cuda=cuda)


@pytest.mark.parametrize(
    ("versions", "machine"),
    [
        (CPU, {}),
        (GPU, {"num_gpus": 8, "cuda": "13.0"}),
        (OLDER_GPU, {"num_gpus": 1, "cuda": "12.8"}),
        # A CPU install on a machine with a GPU is a choice (make setup DEVICE=cpu).
        (CPU, {"num_gpus": 1}),
        # A CUDA build of torch runs on a machine without a GPU.
        (CPU | {"torch": "2.13.0"}, {"cuda": "13.0"}),
    ],
)
def test_versions_that_fit_together_have_no_problem(versions, machine):
    assert problems(versions, **machine) == []


@pytest.mark.parametrize(
    ("versions", "machine", "sentence"),
    [
        (CPU, {"python": (3, 10)}, "Python 3.10: Tessera needs 3.11 or newer"),
        (CPU | {"torch": None}, {}, "torch is not installed: run `make setup`"),
        (CPU | {"duckdb": None}, {}, "duckdb is not installed: run `make setup`"),
        (
            CPU | {"torch": "2.12.1"},
            {},
            "torch 2.12.1 is no release Tessera was measured with (2.13 or 2.11): run `make setup`",
        ),
        (
            CPU | {"torchrec": "1.6.2"},
            {},
            "torchrec 1.6.2 does not go with torch 2.13.0+cpu: "
            "`pip install --no-deps torchrec==1.8.0`",
        ),
        (
            OLDER_GPU | {"torchvision": "0.28.0"},
            {"num_gpus": 1, "cuda": "12.8"},
            "torchvision 0.28.0 does not go with torch 2.11.0: "
            "`pip install --no-deps torchvision==0.26.0`",
        ),
        (
            CPU | {"fbgemm-gpu-cpu": "1.9.0"},
            {},
            "fbgemm-gpu-cpu 1.9.0 does not go with torch 2.13.0+cpu: "
            "`pip install --no-deps fbgemm-gpu-cpu==1.8.0`",
        ),
        (
            CPU | {"fbgemm-gpu-cpu": None},
            {},
            "fbgemm-gpu-cpu is not installed: `pip install --no-deps fbgemm-gpu-cpu==1.8.0`",
        ),
        (
            GPU | {"fbgemm-gpu": None},
            {"num_gpus": 1, "cuda": "13.0"},
            "fbgemm-gpu is not installed: `pip install --no-deps fbgemm-gpu==1.8.0`",
        ),
        (
            CPU | {"fbgemm-gpu": "1.8.0"},
            {},
            "fbgemm-gpu 1.8.0 and fbgemm-gpu-cpu 1.8.0 are both installed and overwrite each "
            "other: `pip uninstall fbgemm-gpu fbgemm-gpu-cpu`, then "
            "`pip install --no-deps fbgemm-gpu-cpu==1.8.0`",
        ),
        (
            GPU,
            {"cuda": "13.0"},
            "fbgemm-gpu 1.8.0 does not import without an NVIDIA driver, and this machine has "
            "none: `pip uninstall fbgemm-gpu`, then "
            "`pip install --no-deps fbgemm-gpu-cpu==1.8.0`",
        ),
        (
            GPU | {"torch": "2.13.0+cpu"},
            {"num_gpus": 2},
            "fbgemm-gpu 1.8.0 needs a CUDA build of torch, and torch 2.13.0+cpu is a CPU build: "
            "`make clean`, then `make setup DEVICE=gpu`",
        ),
        (
            CPU | {"torch": "2.13.0"},
            {"num_gpus": 2, "cuda": "13.0"},
            "fbgemm-gpu-cpu 1.8.0 beside a CUDA build of torch on a machine with 2 GPU(s) leaves "
            "tables without GPU kernels: `pip uninstall fbgemm-gpu-cpu`, then "
            "`pip install --no-deps fbgemm-gpu==1.8.0`",
        ),
    ],
)
def test_each_mismatch_has_one_sentence_that_says_what_to_install(versions, machine, sentence):
    found = problems(versions, **machine)
    assert len(found) == 1
    assert found[0].startswith(sentence)


def test_problems_are_reported_together():
    assert len(problems(CPU | {"torchrec": None, "fbgemm-gpu-cpu": "1.7.0", "rich": None})) == 3


def test_a_package_that_does_not_import_is_named_with_its_error(monkeypatch):
    monkeypatch.setitem(doctor.MODULES, "rich", "no_such_module")
    (found,) = doctor.import_problems(["rich", "tqdm"])
    assert found.startswith("rich is installed but does not import (ModuleNotFoundError: No module")


def test_the_lookup_on_this_machine_gives_the_right_numbers():
    assert lookup_problems("") == []


def test_the_job_passes_in_this_environment(job):
    done = job("doctor")
    assert done.returncode == 0, done.stderr
    assert "torchrec" in done.stdout
    assert done.stdout.rstrip().endswith("ready")


def test_without_any_package_the_command_says_so_and_fails(repository, tmp_path):
    # -I -S: an interpreter that sees the standard library only.
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(repository / "launch" / "doctor.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "torch is not installed: run `make setup`" in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_of_a_job_are_printed_with_type_default_and_text(capsys):
    assert doctor.main(["config=train"]) == 0
    printed = capsys.readouterr().out
    assert (
        "train.epochs  (int, 1 or more; default 10)\n    Most passes over the training split"
        in printed
    )
    assert "train.metric  (auc or log_loss; default auc)" in printed
    assert "workspace  (text; required)" in printed
    kinds = r"data.items.features.<name>.kind  \(id, .* or \w+; default id\)"
    assert re.search(kinds, printed)
    assert "run.threads  (int or null; default null)" in printed
    forms = (
        r"model.umcm  \(attention, senet, .* or \w+, with model.name=umair_fps; default attention\)"
    )
    assert re.search(forms, printed)
    assert "model.dense_precision  (fp32, tf32 or bf16; default fp32)" in printed
    assert "model.cross_heads  (int, with model.name=autoint; default 2)\n    Heads" in printed


def test_types_and_bounds_of_every_job_are_words(capsys):
    for job in ("compare", "embed", "evaluate", "neighbours", "plan", "sweep", "train"):
        assert doctor.main([f"config={job}"]) == 0
        assert not re.search(r"Annotated|FieldInfo|Literal", capsys.readouterr().out), job
    assert doctor.main(["config=plan"]) == 0
    printed = capsys.readouterr().out
    for line in (
        "tables.<name>.width  (int, 4 or more, a multiple of 4 or null; default null)",
        "tables.<name>.cache_load_factor  (float, more than 0, 1 or less or null; default null)",
        "plan.feature_lengths  (dict[str, float], each 0 or more; default {})",
        "rows  (dict[str, int], each 1 or more or null; default null)",
    ):
        assert line in printed


def test_an_unknown_job_is_refused_with_the_jobs_that_there_are(capsys):
    assert doctor.main(["config=nothing"]) == 1
    assert "expected config=<job>, one of compare, demo" in capsys.readouterr().err
