"""docs/serving.md and docs/serving.ipynb: their lines work, word for word, against the tiny bundle."""

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from recsys.serving.load.client import Connection, get
from recsys.serving.load.config import LoadTestConfig
from recsys.serving.load.server import server_under_load
from tests.docs.pages import blocks_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text(encoding="utf-8")
README = (DOCS.parent / "README.md").read_text(encoding="utf-8")
PORT = "http://127.0.0.1:8000"


def curls(text: str) -> list[str]:
    """The lines of a page that ask a server."""
    return re.findall(r"^    (.*curl .*)$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def site(tiny_bundle, tmp_path_factory):
    """A folder in which workspaces/demo is the tiny world."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "workspaces").mkdir()
    (folder / "workspaces" / "demo").symlink_to(tiny_bundle.parents[1])
    return folder


@pytest.fixture(scope="module")
def server(tiny_bundle):
    with server_under_load(LoadTestConfig(bundle=str(tiny_bundle))) as running:
        yield running


def answer_of(line: str, site: Path, address: str) -> str:
    """Run a line in a shell, and return what it prints."""
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=site,
        env={**os.environ, "SERVER": address},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_every_line_of_the_page_gets_an_answer(site, server):
    """In the order of the page: a new item is added, then read."""
    lines = curls(PAGE)
    assert len(lines) > 12
    for line in lines:
        text = answer_of(line, site, f"http://{server.address}")
        if line.endswith("/metrics"):
            assert "# TYPE" in text
            continue
        answer = json.loads(text)
        assert "expected" not in answer, (line, answer)
        assert {"version", "stored", "status"} & set(answer), (line, answer)
        if '"k": 5' in line:
            assert len(answer["items"]) == 5, (line, answer)


@pytest.mark.slow
def test_lines_of_the_readme_get_recommendations(site, server):
    lines = curls(README)
    assert len(lines) == 3 and all(PORT in line for line in lines)
    for line in lines:
        text = answer_of(line.replace(PORT, f"http://{server.address}"), site, "")
        assert len(json.loads(text)["items"]) in (5, 20), (line, text)


@pytest.mark.slow
def test_every_route_of_the_server_is_asked_on_the_page_or_is_the_gallerys(server):
    asked = set(re.findall(r"\$SERVER(/v1/\w+)", PAGE))
    of_gallery = set(re.findall(r"/v1/\w+", (DOCS / "gallery.md").read_text(encoding="utf-8")))

    async def described() -> set[str]:
        async with Connection(server.host, server.port) as connection:
            status, body = await connection.ask(get(server.address, "/openapi.json"))
        assert status == 200
        return {path for path in json.loads(body)["paths"] if path.startswith("/v1/")}

    served = {re.match(r"/v1/\w+", path)[0] for path in asyncio.run(described())}
    assert asked <= served
    assert served <= asked | of_gallery


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(site):
    notebook = nbformat.read(DOCS / "serving.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(site)}}
    )
    client.execute()
    shown = json.dumps(notebook.cells)
    assert "image/png" in shown and "scored as in training" in shown


def test_python_of_the_page_prints_recommendations(site, monkeypatch, capsys):
    monkeypatch.chdir(site)
    (block,) = [b for b in blocks_of("serving.md") if b.kind == "python"]
    exec(compile(block.text, "serving.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["1", "2", "3", "4", "5"]
    assert all(re.fullmatch(r"\d i\d+ 0\.\d\d \w.+", line) for line in printed), printed


def test_commands_of_the_page_are_those_of_the_jobs():
    root = DOCS.parent
    for name in re.findall(r"launch/(\w+)\.py", PAGE):
        assert (root / "launch" / f"{name}.py").is_file(), name
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (DOCS / target).exists(), target
