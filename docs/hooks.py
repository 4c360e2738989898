"""Hooks of the documentation site: pages from elsewhere in the repository, tables of keys, equations.

In: the pages of docs/, which GitHub shows as they are. Out: what only the built site has. Named by
mkdocs.yml. LOG.md and the like become pages, any other file that a page links to is shown as code,
links between all of them are rewritten, keys.md gets the keys of every job, and ```math becomes MathML.
"""

import html
import importlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

PAGES = {
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "LOG.md": "log.md",
    "README.md": "README.md",
    "SECURITY.md": "security.md",
    "launch/cluster/README.md": "cluster.md",
}
"""Files of the repository outside docs/, and their pages; the site has a first page of its own."""

_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_CODE_CELL = re.compile(r"(?<=[ |])`[^`\n]*\\\|[^`\n]*`")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of PAGES, and one for every other file that a page links to."""
    texts = {
        f"docs/{file.src_uri}": file.content_string
        for file in files
        if file.is_documentation_page()
    }
    for source, page in PAGES.items():
        texts[source] = (REPOSITORY / source).read_text(encoding="utf-8")
        if page not in files.src_uris:
            files.append(File.generated(config, page, content=texts[source]))
    linked = {target for source, text in texts.items() for target in _targets(source, text)}
    for target in sorted(linked - set(PAGES)):
        path = REPOSITORY / target
        if not target.startswith("docs/") and path.is_file():
            language = _LANGUAGES.get(path.suffix, "text")
            code = f"# {target}\n\n```{language}\n{path.read_text(encoding='utf-8')}```\n"
            files.append(File.generated(config, f"files/{target}.md", content=code))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write the keys of all jobs where a page asks for them, and links as the site needs them."""
    if "<!-- keys -->" in markdown:
        markdown = markdown.replace("<!-- keys -->", key_tables())
    here = page.file.src_uri
    sources = {name: source for source, name in PAGES.items() if name != "README.md"}
    source = sources.get(here, f"docs/{here}")

    def rewritten(match: re.Match[str]) -> str:
        target = _resolved(source, match[1])
        if target.startswith("docs/"):
            found = target.removeprefix("docs/")
        else:
            found = PAGES.get(target, f"files/{target}.md")
        if found not in files.src_uris:
            return match[0]  # MkDocs names it as a dead link
        return f"]({os.path.relpath(found, Path(here).parent)}{match[2] or ''})"

    if here.startswith("files/"):
        return markdown
    # GitHub wants a | in the code of a table escaped; here it is not, and the backslash would show.
    markdown = _CODE_CELL.sub(lambda match: match[0].replace("\\|", "|"), markdown)
    return _LINK.sub(rewritten, markdown)


def _targets(source: str, text: str) -> Iterator[str]:
    """Yield the repository paths that a page's relative links name."""
    for match in _LINK.finditer(text):
        yield _resolved(source, match[1])


def _resolved(source: str, link: str) -> str:
    return os.path.normpath(os.path.join(os.path.dirname(source), link))


def mathml(source: str, *_: Any, **__: Any) -> str:
    """Return a LaTeX equation as MathML, which browsers draw without a script; a line each."""
    lines = [convert(line, display="block") for line in source.strip().splitlines() if line.strip()]
    return f'<div class="math">{"".join(lines)}</div>'


def key_tables() -> str:
    """Return the keys of every job as Markdown: the sections of each job, and a table a section."""
    keys_of = importlib.import_module("recsys.config_keys").keys_of
    users: dict[tuple[str, Any], list[str]] = {}
    for file in sorted((REPOSITORY / "launch").glob("*.py")):
        if file.stem in ("__init__", "doctor"):
            continue
        keys = list(keys_of(importlib.import_module(f"launch.{file.stem}").KEYS))
        roots = [re.split(r"[.\[]", key.name)[0] for key in keys]
        sections: dict[str, list[Any]] = {}
        for key, root in zip(keys, roots, strict=True):
            sections.setdefault(root if roots.count(root) > 1 else file.name, []).append(key)
        for name, of_section in sections.items():
            users.setdefault((name, tuple(of_section)), []).append(file.stem)
    return "\n".join([*_jobs(users), *_sections(users)])


def _heading(name: str, jobs: list[str], users: dict[tuple[str, Any], list[str]]) -> str:
    """Return the heading of a section; with its jobs where others have another of this name."""
    if [other for other, _ in users].count(name) == 1:
        return name
    return f"{name} of {', '.join(jobs)}"


def _jobs(users: dict[tuple[str, Any], list[str]]) -> Iterator[str]:
    yield "| job | sections |\n|---|---|"
    for job in sorted({job for jobs in users.values() for job in jobs}):
        links = [
            f"[{name}](#{_slug(_heading(name, jobs, users))})"
            for (name, _), jobs in users.items()
            if job in jobs
        ]
        yield f"| `{job}` | {', '.join(links)} |"


def _sections(users: dict[tuple[str, Any], list[str]]) -> Iterator[str]:
    for (name, keys), jobs in sorted(users.items(), key=lambda item: item[0][0]):
        said = "" if name.endswith(".py") else f"Read by {', '.join(f'`{job}`' for job in jobs)}.\n"
        yield f"\n## {_heading(name, jobs, users)}\n\n{said}"
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for key in keys:
            default = f"`{key.default}`" if key.default else "required"
            yield f"| `{key.name}` | {_cell(key.type)} | {default} | {_cell(key.text)} |"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    """Return a text for a cell of a table; outside of code, < opens no tag and | ends no cell."""
    parts = text.split("`")
    parts[::2] = [html.escape(part, quote=False).replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)
