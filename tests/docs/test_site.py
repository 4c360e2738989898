"""The documentation site: it builds without a warning, no link is dead, and it needs no other host."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from recsys.config_keys import keys_of
from recsys.run.config import RunConfig
from recsys.serving.recommender import Recommender
from tests.conftest import REPOSITORY

LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
"""Attributes that a browser follows by itself; links are followed by people."""


class Page(HTMLParser):
    """The ids and references of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        for name in ("href", "src"):
            if given.get(name):
                self.references.append((tag, name, given[name]))


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(REPOSITORY / "mkdocs.yml"), strict=True, site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    found = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(found) > 20
    return found


def test_every_link_within_the_site_has_its_page_and_anchor(site, pages):
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for _, _, reference in page.references:
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                dead.append(f"{path.relative_to(site)}: {reference}")
            elif parts.fragment and unquote(parts.fragment) not in pages[target].ids:
                dead.append(f"{path.relative_to(site)}: {reference} has no such anchor")
    assert not dead


def test_pages_load_nothing_from_other_hosts(pages):
    found = [
        f"{path.name}: {reference}"
        for path, page in pages.items()
        for tag, name, reference in page.references
        if (tag, name) in LOADED and urlsplit(reference).netloc
    ]
    assert not found


def test_style_sheets_load_nothing_from_other_hosts(site):
    sheets = list(site.rglob("*.css"))
    assert len(sheets) > 1
    outer = re.compile(r"(?:@import|url\()\s*['\"]?(?:https?:)?//")
    assert not [sheet.name for sheet in sheets if outer.search(sheet.read_text(encoding="utf-8"))]


def test_every_key_of_training_is_on_the_page_of_keys_with_its_text(site):
    text = html.unescape((site / "keys.html").read_text(encoding="utf-8"))
    keys = list(keys_of([RunConfig]))
    assert len(keys) > 100
    assert not [key.name for key in keys if f"<code>{key.name}</code>" not in text]
    plain = " ".join(re.sub(r"<[^>]*>", "", text).split())
    (epochs,) = [key for key in keys if key.name == "train.epochs"]
    assert epochs.text in plain


def test_every_public_method_of_the_recommender_is_on_the_page_of_the_interface(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    methods = [n for n in vars(Recommender) if not n.startswith("_")]
    assert len(methods) > 10
    path = "recsys.serving.recommender.Recommender"
    assert not [name for name in methods if f'id="{path}.{name}"' not in text]


def test_equations_are_mathml_and_repository_files_are_pages(site):
    assert (site / "model.html").read_text(encoding="utf-8").count("<math") >= 5
    assert "<h1" in (site / "log.html").read_text(encoding="utf-8")
    assert (site / "files" / "launch" / "cluster" / "serving.yaml.html").is_file()


def test_site_opens_from_disk_and_its_search_finds_a_page(site, browser_page):
    asked, failed = [], []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.on("pageerror", lambda error: failed.append(str(error)))
    browser_page.goto((site / "index.html").as_uri())
    # By keys: the search listens to them.
    browser_page.locator(".md-search__input").first.press_sequentially("calibration")
    hit = browser_page.locator(".md-search-result__link").first
    hit.wait_for()
    assert "html" in hit.get_attribute("href")
    assert not failed
    assert all(urlsplit(url).scheme in ("file", "data", "blob") for url in asked), asked
