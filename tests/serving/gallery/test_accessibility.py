"""Accessibility of every view of the gallery by axe-core: both themes, desktop and phone."""

from importlib.resources import files

import pytest

pytestmark = pytest.mark.browser

WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}
FINDINGS = """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
  .filter((found) => ['serious', 'critical'].includes(found.impact))
  .map((found) => `${found.id}: ${found.nodes.slice(0, 3).map((n) => n.html).join(' | ')}`)"""


@pytest.fixture(scope="module")
def axe():
    package = pytest.importorskip("axe_playwright_python")
    return files(package).joinpath("axe.min.js").read_text(encoding="utf-8")


def person(page, user):
    page.goto(f"{page.address}#person={user}")
    page.wait_for_selector("#dials label")


def picture(page, user):
    person(page, user)
    page.locator("#grid .open").first.click()
    page.get_by_role("button", name="Why, or why not?").click()
    page.wait_for_selector(".terms")
    page.locator(".near img").nth(17).wait_for(state="attached")


def visitor(page, user):
    page.goto(page.address)
    page.get_by_role("button", name="I am new").click()
    page.locator("#grid .open").first.click()
    page.locator(".chosen").wait_for()


def found(page, user):
    person(page, user)
    page.locator("#words").fill("red fox")
    page.keyboard.press("Enter")
    page.get_by_text("nearest first").wait_for()


def artist(page, user):
    page.goto(f"{page.address}#person={user}&artist=Brandt")
    page.wait_for_selector("#dials label")


def everything(page, user):
    page.goto(f"{page.address}#view=all")
    page.locator("#grid .open").first.wait_for()


def truth(page, user):
    page.goto(f"{page.address}#view=truth&person={user}")
    page.locator("#grid .share").first.wait_for()


def unknown(page, user):
    page.goto(f"{page.address}#person=nobody")
    page.locator("#status.error").wait_for()
    page.errors.clear()  # Chromium logs the answer of 404 itself


def loading(page, user):
    page.route("**/v1/recommend", lambda route: None)
    page.goto(f"{page.address}#person={user}")
    page.locator("#grid .skeleton").first.wait_for()


VIEWS = (person, picture, visitor, found, artist, everything, truth, unknown, loading)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_axe_finds_nothing_serious(page, axe, user, view):
    view(page, user)
    page.evaluate(axe)
    problems = {}
    for scheme in ("light", "dark"):
        for name, (width, height) in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.wait_for_timeout(100)
            if findings := page.evaluate(FINDINGS):
                problems[f"{name}, {scheme}"] = findings
    assert not problems
