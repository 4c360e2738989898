"""A server of the tiny bundle, and Chromium, for the tests of this folder."""

import shutil

import pytest

from recsys.bundle.bundle import Bundle
from tests.serving.server.running import Server

OPENER = "recsys.serving.recommender:Recommender"


@pytest.fixture(scope="session")
def server(tiny_bundle, tmp_path_factory):
    """A server with one worker that all tests of the gallery share."""
    folder = tmp_path_factory.mktemp("gallery")
    with Server(tiny_bundle, folder / "log", opener=OPENER, request_seconds=60) as running:
        running.wait(seconds=120)
        yield running


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium, driven by Playwright; the test is skipped where it is not installed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def bundle(tiny_bundle):
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="session")
def user(bundle):
    """The user with most likes."""
    row = max(range(1, bundle.users.num_rows), key=lambda row: len(bundle.users.history(row)))
    return bundle.vocabularies["user_id"].id_of(row)


@pytest.fixture
def page(server, chromium):
    """A page whose end checks that no error was logged and no other host was asked."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800})
    opened = context.new_page()
    opened.set_default_timeout(30_000)
    errors, elsewhere = [], []
    opened.on("console", lambda said: said.type == "error" and errors.append(said.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))

    def check(request):
        if not request.url.startswith((opened.address, "blob:", "data:")):
            elsewhere.append(request.url)

    opened.on("request", check)
    opened.address = f"http://127.0.0.1:{server.port}/"
    opened.errors = errors
    yield opened
    context.close()
    assert not errors
    assert not elsewhere
