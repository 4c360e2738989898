"""A server of the tiny bundle, and Chromium, for the tests of this folder."""

from importlib.resources import files

import pytest

from recsys.bundle.bundle import Bundle
from tests.serving.server.running import Server

WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}
MOTION_ENDED = """Promise.allSettled(document.getAnimations()
    .filter(one => one.effect.getComputedTiming().iterations !== Infinity)
    .map(one => one.finished))"""
FINDINGS = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .filter((found) => ['serious', 'critical'].includes(found.impact))
  .map((found) => `${found.id}: ${found.nodes.slice(0, 3).map((n) => n.html).join(' | ')}`)"""
OPENER = "recsys.serving.recommender:Recommender"


@pytest.fixture(scope="session")
def server(tiny_bundle, tmp_path_factory):
    """A server with one worker that all tests of the gallery share."""
    folder = tmp_path_factory.mktemp("gallery")
    with Server(tiny_bundle, folder / "log", opener=OPENER, request_seconds=60) as running:
        running.wait(seconds=120)
        yield running


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


@pytest.fixture(scope="session")
def serious_findings():
    """Return a function of a page: axe-core's serious findings by width and theme; {} for none."""
    package = pytest.importorskip("axe_playwright_python")
    axe = files(package).joinpath("axe.min.js").read_text(encoding="utf-8")

    def find(page) -> dict[str, list[str]]:
        page.evaluate(axe)
        problems = {}
        for scheme in ("light", "dark"):
            for name, (width, height) in WIDTHS.items():
                page.set_viewport_size({"width": width, "height": height})
                page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                page.wait_for_timeout(100)
                page.evaluate(MOTION_ENDED)  # text that fades in has less contrast
                if findings := page.evaluate(FINDINGS):
                    problems[f"{name}, {scheme}"] = findings
        return problems

    return find
