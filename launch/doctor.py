"""Say whether this machine can run Tessera: packages, devices, threads, one real table lookup.

In: nothing. Out: a list on the screen; exit code 0 when everything needed is there and fits
together, 1 otherwise, with one sentence per problem that says what to install. `make setup` runs
it last.

    python launch/doctor.py
    python launch/doctor.py config=train        # every key of a job: name, type, default, text

Packages are imported inside functions only: a missing one is a finding, not a traceback.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

FAMILIES: tuple[dict[str, str], ...] = (
    {"torch": "2.13", "torchvision": "0.28", "torchrec": "1.8", "fbgemm": "1.8"},
    {"torch": "2.11", "torchvision": "0.26", "torchrec": "1.6", "fbgemm": "1.6"},
)
"""Releases (major.minor) that fit together, the newest first."""

MODULES: dict[str, str] = {
    "torch": "torch",
    "fbgemm-gpu": "fbgemm_gpu",
    "fbgemm-gpu-cpu": "fbgemm_gpu",
    "torchrec": "torchrec",
    "torchvision": "torchvision",
    "sentence-transformers": "sentence_transformers",
    "duckdb": "duckdb",
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "pillow": "PIL.Image",
    "hydra-core": "hydra",
    "pydantic": "pydantic",
    "scikit-learn": "sklearn",
    "threadpoolctl": "threadpoolctl",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "safetensors": "safetensors",
    "xxhash": "xxhash",
    "rich": "rich",
    "tqdm": "tqdm",
    "tessera-recsys": "recsys.schema",
}
"""Distribution -> the module that must import."""

SETUP = "run `make setup`"


def main(arguments: Sequence[str] = ()) -> int:
    """Print the findings, or with `config=<job>` the keys of a job; return the exit code."""
    if arguments:
        return print_keys(arguments)
    # torchrec asks torch.fx something at import that makes it warn; nobody can act on it.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    versions = installed_versions(tuple(MODULES))
    gpus = gpu_names()
    print(f"python                 {platform.python_version()} on {platform.platform()}")
    for name, version in versions.items():
        if version is not None:
            print(f"{name:22s} {version}")
    print(f"machine                {machine_facts()}")
    for gpu in gpus:
        print(f"gpu                    {gpu}")
    if not gpus:
        print("gpu                    none: jobs run on the CPU (gloo)")

    cuda = torch_cuda()
    if gpus and cuda is None:
        print("note                   torch is a CPU build: `make setup DEVICE=gpu` uses the GPUs")
    problems = version_problems(
        python=sys.version_info[:2], versions=versions, num_gpus=len(gpus), cuda=cuda
    )
    # A wrong mix of versions fails to import in ways that say less than the sentences above.
    if not problems:
        problems = import_problems([n for n in MODULES if versions[n] is not None])
    if not problems:
        problems = importlib.import_module("recsys.runtime.lookup").lookup_problems(SETUP)
    if not problems:
        print("doctor: every package imports and a table was looked up and updated; ready")
        return 0
    print(f"\ndoctor: {len(problems)} problem(s)", file=sys.stderr)
    for problem in problems:
        print(f"- {problem}", file=sys.stderr)
    return 1


def print_keys(arguments: Sequence[str]) -> int:
    """Print every key of the job that `config=<job>` names; return the exit code."""
    launch = Path(__file__).resolve().parent
    jobs = sorted({file.stem for file in launch.glob("*.py")} - {"__init__", "doctor"})
    word, _, job = arguments[0].partition("=")
    job = job or "train"
    if len(arguments) > 1 or word != "config" or job not in jobs:
        given = " ".join(arguments)
        print(f"error: {given}: expected config=<job>, one of {', '.join(jobs)}", file=sys.stderr)
        return 1
    spec = importlib.util.spec_from_file_location(f"launch.{job}", launch / f"{job}.py")
    assert spec is not None and spec.loader is not None, job
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the text of its own dataclasses is looked for
    spec.loader.exec_module(module)
    for key in importlib.import_module("recsys.config_keys").keys_of(module.KEYS):
        value = f"default {key.default}" if key.default else "required"
        print(f"{key.name}  ({key.type}; {value})\n    {key.text}")
    return 0


def installed_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return the version of every distribution; None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def gpu_names() -> list[str]:
    """Return the NVIDIA GPUs the driver lists; empty without a driver."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return []
    if listed.returncode != 0:
        return []
    return [line.split(" (UUID")[0] for line in listed.stdout.splitlines() if line[:3] == "GPU"]


def machine_facts() -> str:
    """Return memory, cores and the threads that jobs will use, in words."""
    try:
        limits = importlib.import_module("recsys.runtime.limits")
        found = importlib.import_module("recsys.runtime.threads")
    except ImportError:
        return "not known"  # a package that is missing is reported by itself
    memory_gib = limits.usable_memory_bytes() / 2**30
    try:
        threads = found.threads_of_process(None)
        said = f"a job of one process uses {threads.count} thread(s) ({threads.reason})"
    except ValueError as error:  # a UserError; this file imports nothing that may be missing
        said = str(error)
    return f"{limits.usable_cores()} cores, {memory_gib:.1f} GiB of memory; {said}"


def torch_cuda() -> str | None:
    """Return the CUDA version torch was built for; None for a CPU build or without torch."""
    try:
        return importlib.import_module("torch").version.cuda
    except (ImportError, OSError):
        return None  # a torch that does not import is reported by import_problems


def version_problems(
    *,
    python: Sequence[int],
    versions: Mapping[str, str | None],
    num_gpus: int,
    cuda: str | None,
) -> list[str]:
    """Return one sentence for everything that is missing or does not fit together.

    Args:
        python: major and minor version of the interpreter.
        versions: distribution -> version, None where it is not installed (`MODULES` has the names).
        num_gpus: NVIDIA GPUs of this machine.
        cuda: CUDA version torch was built for, None for a CPU build.
    """
    problems = []
    if tuple(python[:2]) < (3, 11):
        problems.append(
            f"Python {python[0]}.{python[1]}: Tessera needs 3.11 or newer; make .venv with it: "
            f"`make setup PYTHON=python3.11`"
        )
    for name in MODULES:
        if versions.get(name) is None and not name.startswith(("torch", "fbgemm")):
            problems.append(f"{name} is not installed: {SETUP}")

    torch_version = versions.get("torch")
    if torch_version is None:
        return [*problems, f"torch is not installed: {SETUP}"]
    family = next((f for f in FAMILIES if _release(torch_version) == f["torch"]), None)
    if family is None:
        known = " or ".join(f["torch"] for f in FAMILIES)
        return [
            *problems,
            f"torch {torch_version} is no release Tessera was measured with ({known}): {SETUP}",
        ]
    for name in ("torchvision", "torchrec"):
        problems += _fit_problems(name, versions.get(name), family[name], torch_version)

    return problems + _fbgemm_problems(
        torch=torch_version,
        release=family["fbgemm"],
        builds=(versions.get("fbgemm-gpu"), versions.get("fbgemm-gpu-cpu")),
        num_gpus=num_gpus,
        cuda=cuda,
    )


def _fbgemm_problems(
    *,
    torch: str,
    release: str,
    builds: tuple[str | None, str | None],
    num_gpus: int,
    cuda: str | None,
) -> list[str]:
    """Return a sentence where FBGEMM's GPU and CPU builds, in this order, do not go with torch."""
    gpu_build, cpu_build = builds
    wanted = "fbgemm-gpu" if cuda is not None and num_gpus else "fbgemm-gpu-cpu"
    if gpu_build is not None and cpu_build is not None:
        return [
            f"fbgemm-gpu {gpu_build} and fbgemm-gpu-cpu {cpu_build} are both installed and "
            f"overwrite each other: `pip uninstall fbgemm-gpu fbgemm-gpu-cpu`, then "
            f"`pip install --no-deps {wanted}=={release}.0`"
        ]
    if gpu_build is None and cpu_build is None:
        return _fit_problems(wanted, None, release, torch)
    if gpu_build is not None and not num_gpus:
        return [
            f"fbgemm-gpu {gpu_build} does not import without an NVIDIA driver, and this machine "
            f"has none: `pip uninstall fbgemm-gpu`, then "
            f"`pip install --no-deps fbgemm-gpu-cpu=={release}.0`"
        ]
    if gpu_build is not None and cuda is None:
        return [
            f"fbgemm-gpu {gpu_build} needs a CUDA build of torch, and torch {torch} is a "
            f"CPU build: `make clean`, then `make setup DEVICE=gpu`"
        ]
    if cpu_build is not None and wanted == "fbgemm-gpu":
        return [
            f"fbgemm-gpu-cpu {cpu_build} beside a CUDA build of torch on a machine with "
            f"{num_gpus} GPU(s) leaves tables without GPU kernels: "
            f"`pip uninstall fbgemm-gpu-cpu`, then "
            f"`pip install --no-deps fbgemm-gpu=={release}.0`"
        ]
    name = "fbgemm-gpu" if gpu_build is not None else "fbgemm-gpu-cpu"
    return _fit_problems(name, gpu_build or cpu_build, release, torch)


def import_problems(names: Sequence[str]) -> list[str]:
    """Import every distribution's module; return one sentence for each that fails."""
    problems = []
    for name in names:
        try:
            if name in ("torchvision", "sentence-transformers"):
                # Declares the two operators a CUDA wheel of torchvision lacks beside a CPU torch.
                importlib.import_module("embedding.torchvision_ops")
            importlib.import_module(MODULES[name])
        except Exception as error:  # whatever a broken package raises is the finding
            line = (str(error).splitlines() or [""])[0]
            problems.append(
                f"{name} is installed but does not import "
                f"({type(error).__name__}: {line}): {SETUP} in a fresh .venv (`make clean` first)"
            )
    return problems


def _release(version: str) -> str:
    """Return major.minor of a version: 2.13 of 2.13.0+cpu."""
    return ".".join(version.split("+")[0].split(".")[:2])


def _fit_problems(name: str, version: str | None, release: str, torch_version: str) -> list[str]:
    if version is None:
        given = f"{name} is not installed"
    elif _release(version) != release:
        given = f"{name} {version} does not go with torch {torch_version}"
    else:
        return []
    return [f"{given}: `pip install --no-deps {name}=={release}.0`"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
