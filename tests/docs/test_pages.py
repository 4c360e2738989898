"""Pages of docs/: their files are written, their commands and Python run, their output is compared."""

import doctest
import re
import shlex

import pytest

from tests.conftest import REPOSITORY
from tests.docs.pages import DOCS, blocks_of, commands_of, follow, same_output

NAMES = sorted(path.name for path in DOCS.glob("*.md"))
TUTORIALS = [name for name in NAMES if any(b.kind == "console" for b in blocks_of(name))]
QUICK = {"prepare", "plan"}
"""Jobs of a few seconds."""


def lines_with_jobs(name: str) -> list[str]:
    """The command lines of a page that start a job, continued lines joined."""
    text = (DOCS / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"(?m)^(?:    |\$ )((?:python|torchrun) .*launch/.*)$", text)


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


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_name_jobs_and_presets_that_exist(name):
    for line in lines_with_jobs(name):
        (job,) = re.findall(r"launch/(\w+)\.py", line)
        assert (REPOSITORY / "launch" / f"{job}.py").is_file(), line
        for argument in shlex.split(line, comments=True):
            group, _, value = argument.partition("=")
            folder = REPOSITORY / "configs" / group
            if not folder.is_dir() or group == "data" or not re.fullmatch(r"[\w-]+", value):
                continue
            assert (folder / f"{value}.yaml").is_file(), f"{line}: {argument}"


def test_an_output_with_another_number_is_another_output():
    assert same_output("[...s] rows: 7\n...", "[  0.3s] rows: 7\nnext: it\n")
    assert not same_output("[...s] rows: 7\n...", "[  0.3s] rows: 8\nnext: it\n")
    assert not same_output("[...s] rows: 7", "[  0.3s] rows: 7\nmore")
