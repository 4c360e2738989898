"""docs/extending.md: its blocks, applied to a copy of the repository, pass the commands of the page."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.house import MAX_FILE_LINES
from tests.test_tree import REPOSITORY

PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
SECTIONS = {title: body for title, body in re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", PAGE)}
BLOCK = re.compile(r"(?ms)^`([^`\n]+)`(, new|, at the end|):\n\n```(\w+)\n(.*?)^```$")
COMMANDS = re.compile(r"(?ms)^```sh\n(.*?)^```$")


def parts_of(hunk, *kept):
    """The lines of a hunk that begin with one of these signs, without it; an empty line is kept."""
    lines = [line or " " for line in hunk.splitlines()]
    assert all(line[0] in " +-" for line in lines), hunk
    return "".join(f"{line[1:]}\n" for line in lines if line[0] in kept)


def changed(text, hunk):
    """A file's text with a hunk's lines replaced; they must be there, and be there once."""
    old, new = parts_of(hunk, " ", "-"), parts_of(hunk, " ", "+")
    assert f"\n{text}".count(f"\n{old}") == 1, f"{f'{text}'.count(old)} places for\n{old}"
    return f"\n{text}".replace(f"\n{old}", f"\n{new}")[1:]


def apply(folder, name, how, language, block):
    """Write one block of the page to its file."""
    file = folder / name
    if how == ", new":
        assert not file.exists(), f"{name} is there already"
        file.write_text(block, encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    if how == ", at the end":
        text += f"\n\n{block}"
    else:
        assert language == "diff", name
        for hunk in re.split(r"(?m)^@@\n", block):
            text = changed(text, hunk)
    file.write_text(text, encoding="utf-8")


def commands_of(text):
    return [line for block in COMMANDS.findall(text) for line in block.splitlines()]


def run(folder, command):
    """Run a command of the page in the copy."""
    name, *arguments = shlex.split(command)
    assert name == "python", command
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with all examples of the page."""
    folder = tmp_path_factory.mktemp("copy")
    caches = shutil.ignore_patterns("__pycache__")
    for name in (".ci", "configs", "docs", "embedding", "launch", "recsys", "tests"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=caches)
    for file in REPOSITORY.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    for block in BLOCK.findall(PAGE):
        apply(folder, *block)
    return folder


def test_every_block_of_the_page_is_applied_or_run():
    assert len(SECTIONS) == len(set(COMMANDS_OF_SECTIONS.values())) == 5
    assert PAGE.count("```") == 2 * (len(BLOCK.findall(PAGE)) + len(COMMANDS.findall(PAGE)))


def test_every_change_of_the_page_finds_its_place(tmp_path):
    blocks = BLOCK.findall(PAGE)
    for name in {name for name, *_ in blocks}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, tmp_path / name)
    for block in blocks:
        apply(tmp_path, *block)


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_touches_as_many_files_as_the_table_says(title):
    (said,) = re.findall(rf"(?m)^\| \[{title.lower()}\]\(#\S+\) \| (\d+) \|", PAGE)
    assert len({name for name, *_ in BLOCK.findall(SECTIONS[title])}) == int(said)


@pytest.mark.slow
def test_the_examples_are_formatted_and_keep_the_rules_of_the_code(extended):
    touched = sorted({name for name, *_ in BLOCK.findall(PAGE) if name.endswith(".py")})
    for task in ("check", "format --check"):
        run(extended, f"python -m ruff {task} {' '.join(touched)}")
    for name in touched:
        is_source = not name.startswith("tests/")
        lines = (extended / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= MAX_FILE_LINES or not is_source, name
    (command,) = commands_of(PAGE[: PAGE.index("\n## ")])
    run(extended, f"{command} -q -k 'not importing'")


COMMANDS_OF_SECTIONS = {c: title for title, body in SECTIONS.items() for c in commands_of(body)}


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, id=f"{title}: {c}") for c, title in COMMANDS_OF_SECTIONS.items()],
)
@pytest.mark.slow
def test_the_examples_pass_the_tests_that_their_sections_name(extended, command):
    assert " passed" in run(extended, f"{command} -q")
