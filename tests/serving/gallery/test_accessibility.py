"""Accessibility of every view of the gallery by axe-core: both themes, desktop and phone."""

import pytest

from tests.slow_cases import slow_but


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


def catalogue_map(page, user):
    page.goto(f"{page.address}gallery/map.html#layout=style")
    page.locator("#map-message").wait_for(state="hidden")
    page.locator("#map-legend button").first.click()


def map_of_taste(page, user):
    page.goto(f"{page.address}gallery/map.html#colour=taste&person={user}")
    page.locator(".ramp").wait_for()
    page.locator("#map").focus()
    page.keyboard.press("+")
    page.locator("#map-card b").wait_for()


VIEWS = (
    person,
    picture,
    visitor,
    found,
    artist,
    everything,
    truth,
    unknown,
    loading,
    catalogue_map,
    map_of_taste,
)


@pytest.mark.parametrize(
    "view",
    slow_but(VIEWS, person, picture, everything, catalogue_map),
    ids=lambda view: view.__name__,
)
def test_axe_finds_nothing_serious(page, serious_findings, user, view):
    view(page, user)
    assert not serious_findings(page)
