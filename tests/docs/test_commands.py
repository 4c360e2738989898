"""Commands of the pages about the drawn world, run in the order of the page, on a tiny drawn world."""

import re
import shlex

import pandas as pd
import pytest

from tests.docs.test_pages import lines_with_jobs
from tests.serving import tiny
from tests.small_runs import SMALL

SMALL_TRAINING = [*SMALL, "train.epochs=1"]
OF_SERVERS = {"serve", "loadtest"}
"""Jobs that run until they are stopped; the tests of serving start them."""
OF_SITES = {"data.source=", "s3://", "HOST:", "cluster=", "http://host", "suite=style", "=<"}
OF_SITES |= {"vector_bits=", "engine=ray append=true"}
"""Parts of lines that name files, stores or machines which a test has not, or make vectors anew."""


def commands(name: str) -> list[tuple[str, list[str], int]]:
    """(job, arguments, ranks) of the lines of a page that a tiny drawn world can run."""
    found = []
    for line in (text.replace("<name>", "demo") for text in lines_with_jobs(name)):
        words = shlex.split(line, comments=True)
        place = next(index for index, word in enumerate(words) if word.startswith("launch/"))
        job = re.fullmatch(r"launch/(\w+)\.py", words[place])
        if job[1] in {*OF_SERVERS, "doctor"} or any(part in line for part in OF_SITES):
            continue
        found.append((job[1], words[place + 1 :], 2 if words[0] == "torchrun" else 0))
    return found


def smaller(job: str, arguments: list[str], workspace, ids: str) -> list[str]:
    """The arguments with the sizes of a tiny world, in its workspace."""
    changed = []
    for argument in arguments:
        argument = re.sub(r"(?<==)(workspaces/demo|W|\$W)(?=/|$)", str(workspace), argument)
        argument = argument.replace("items=[id,id]", f"items=[{ids}]")
        argument = re.sub(r"^seeds=\d+$", "seeds=2", argument)
        argument = re.sub(r"^trials=\d+$", "trials=2", argument)
        if argument.startswith("overrides="):
            more = ",".join(f'"{text}"' for text in SMALL_TRAINING)
            argument = argument.removesuffix("]") + f",{more}]"
        changed.append(argument)
    if any(a.startswith("suite=") for a in changed) and not any("variants=" in a for a in changed):
        first = {"ablation": "full,without_style", "baselines": "umair_fps,fm"}
        (suite,) = [a.removeprefix("suite=") for a in changed if a.startswith("suite=")]
        changed.append(f"variants=[{first[suite]}]")
    if job == "sweep":
        changed.append("sweep.trials=2")
    if job == "train":
        changed += SMALL_TRAINING
    return changed


PAGES = {
    "quick-start.md": 3,
    "evaluation.md": 1,
    "comparing.md": 4,
    "encoders.md": 2,
    "gallery.md": 2,
    "many-machines.md": 2,
    "operations.md": 2,
    "paper.md": 1,
}
"""Pages, and how many of their commands run at least."""


@pytest.fixture(scope="module")
def site(tmp_path_factory, job):
    """A tiny drawn world with the runs of `make train`, evaluated."""
    workspace = tiny.make_workspace(tmp_path_factory.mktemp("site"), job)
    for run, modalities in (("ids_only", "[]"), ("umair_fps", "[semantic,style,text]")):
        tiny.train(workspace, job, run, f"model.modalities={modalities}")
        place = ["data=demo", f"workspace={workspace}", f"run.name={run}"]
        done = job("evaluate", *place, "split=test")
        assert done.returncode == 0, done.stderr
    return workspace


@pytest.mark.slow
@pytest.mark.timeout(3600)  # the studies of comparing.md train a dozen models
@pytest.mark.parametrize("name", PAGES)
def test_every_command_of_a_page_works_on_a_tiny_drawn_world(name, site, job):
    items = pd.read_parquet(site / "raw" / "items.parquet", columns=["item_id"])
    ids = ",".join(map(str, items["item_id"][:2]))
    ran = 0
    for launched, arguments, ranks in commands(name):
        given = smaller(launched, arguments, site, ids)
        done = job(launched, *given, ranks=ranks, timeout_seconds=1800)
        assert done.returncode == 0, f"{launched} {given}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        ran += 1
    assert ran >= PAGES[name]
