"""Pages of docs/: their files are written, their commands and Python run, their output is compared."""

import doctest
import importlib
import re
import shlex

import pytest
from hydra import compose, initialize_config_dir

from recsys.config import read_job
from recsys.job import typed_arguments
from tests.conftest import REPOSITORY
from tests.docs.pages import DOCS, blocks_of, commands_of, follow, same_output

NAMES = sorted(path.name for path in DOCS.glob("*.md"))
OTHERS = ["../README.md", "../launch/cluster/README.md"]
"""Pages elsewhere, as seen from docs/."""
TUTORIALS = [name for name in NAMES if any(b.kind == "console" for b in blocks_of(name))]
QUICK = {"prepare", "plan"}
"""Jobs of a few seconds."""


def _text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def lines_with_jobs(name: str) -> list[str]:
    """The command lines of a page that start a job, continued lines joined."""
    text = _text(name).replace("\\\n", " ")
    return re.findall(r"(?m)^(?:    |\$ )((?:python|torchrun) .*launch/.*)$", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_page_shows_what_its_commands_print(name, tmp_path):
    assert follow(name, tmp_path, QUICK) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own-data.md"])
def test_a_page_shows_what_its_long_commands_print(name, tmp_path):
    assert follow(name, tmp_path, {*QUICK, "train", "evaluate"}) > 2


@pytest.mark.parametrize(
    "name", [n for n in NAMES if any(">>>" in b.text for b in blocks_of(n) if b.kind == "python")]
)
def test_a_dialogue_with_python_goes_as_the_page_says(name):
    text = "\n".join(b.text for b in blocks_of(name) if b.kind == "python" and ">>>" in b.text)
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_every_tutorial_has_a_test_of_each_of_its_jobs():
    for name in TUTORIALS:
        commands = [
            command
            for block in blocks_of(name)
            if block.kind == "console"
            for command, _ in commands_of(block)
        ]
        jobs = {job for command in commands for job in re.findall(r"launch/(\w+)\.py", command)}
        assert jobs <= QUICK or name == "own-data.md", f"{name}: give it a slow test"


@pytest.mark.parametrize("name", [name for name in [*NAMES, *OTHERS] if lines_with_jobs(name)])
def test_keys_of_the_commands_of_a_page_are_those_of_their_jobs(name):
    for line in lines_with_jobs(name):
        (job,) = re.findall(r"launch/(\w+)\.py", line)
        if job == "doctor" or "--config-dir" in line:  # has no keys; has a recipe of the page's own
            continue
        keys = importlib.import_module(f"launch.{job}").KEYS
        given = shlex.split(re.sub(r"<[^>]*>", "demo", line).replace("$W", "W"), comments=True)
        given = [text for text in given[given.index(f"launch/{job}.py") + 1 :] if text != "&&"]
        assert all("=" in text for text in given), line
        with initialize_config_dir(version_base=None, config_dir=str(REPOSITORY / "configs")):
            read_job(compose(job, overrides=typed_arguments(given, keys)), keys)


def test_targets_of_make_on_the_pages_exist():
    targets = re.findall(r"(?m)^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    named = {
        target
        for name in NAMES
        for target in re.findall(r"(?m)(?:^    |`)make ([a-z]\S*?)[\s`]", _text(name))
    }
    assert {"train", "serve", "docs"} <= named <= set(targets)


def test_an_output_with_another_number_is_another_output():
    assert same_output("[...s] rows: 7\n...", "[  0.3s] rows: 7\nnext: it\n")
    assert not same_output("[...s] rows: 7\n...", "[  0.3s] rows: 8\nnext: it\n")
    assert not same_output("[...s] rows: 7", "[  0.3s] rows: 7\nmore")
