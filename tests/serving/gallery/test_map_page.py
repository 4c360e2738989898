"""The map in Chromium: layouts, colours, keys, mouse, touch, a picture; no map, no WebGL, errors."""

import io
import json
import re

import pytest
from PIL import Image


@pytest.fixture
def map_page(page):
    """The page with the map of the tiny bundle."""
    see_map(page)
    return page


def see_map(page, parameters=""):
    page.goto(f"{page.address}gallery/map.html{parameters}")
    page.locator("#map-message").wait_for(state="hidden")
    page.wait_for_function(
        "() => document.querySelectorAll('#map-colours [aria-pressed=true]').length"
    )


def pressed(page, place):
    return page.locator(f"#{place} [aria-pressed=true]").get_attribute("value")


def pixels(page):
    """A hash of what the canvas shows."""
    return page.locator("#map").screenshot()


def await_pictures(page):
    page.wait_for_function(
        "() => document.querySelectorAll('.map-pictures img.loaded').length > 5", timeout=20_000
    )


def test_the_map_opens_by_content_coloured_by_artist(map_page):
    assert pressed(map_page, "map-layouts") == "semantic"
    assert pressed(map_page, "map-colours") == "artist"
    assert map_page.locator("#map-count").inner_text() == "120 pictures"
    legend = map_page.locator("#map-legend li")
    assert legend.count() == 12 and legend.first.inner_text().split()[-1].isdigit()
    await_pictures(map_page)


def test_layouts_become_each_other_and_the_address_names_them(map_page):
    map_page.locator("#map-thumbs").click()
    map_page.wait_for_function("() => !document.querySelector('.map-pictures img')")
    before = pixels(map_page)
    map_page.get_by_role("button", name="style").click()
    map_page.wait_for_timeout(400)
    between = pixels(map_page)
    map_page.wait_for_timeout(1500)
    after = pixels(map_page)
    assert len({before, between, after}) == 3
    assert pressed(map_page, "map-layouts") == "style"
    assert "layout=style" in map_page.url
    map_page.get_by_role("button", name="content").click()
    map_page.wait_for_timeout(2000)
    assert "layout=semantic" in map_page.url


def test_nothing_glides_on_the_map_where_motion_is_unwanted(page):
    page.emulate_media(reduced_motion="reduce")
    see_map(page)
    page.locator("#map-thumbs").click()
    page.get_by_role("button", name="words").click()
    page.wait_for_function("() => location.hash.includes('layout=text')")
    page.wait_for_timeout(100)
    first = pixels(page)
    page.wait_for_timeout(500)
    assert pixels(page) == first


def test_colours_by_tag_and_by_the_taste_of_a_person(map_page, server):
    map_page.get_by_role("button", name="tag", exact=True).click()
    map_page.wait_for_function("() => location.hash.includes('colour=tags')")
    user = server.ask("GET", "/v1/users?limit=1").json["users"][0]["id"]
    map_page.get_by_role("button", name="taste").click()
    map_page.locator("#map-pick").wait_for()
    map_page.locator(".ramp").wait_for()
    map_page.locator("#person").fill(user)
    map_page.keyboard.press("Enter")
    map_page.wait_for_function("id => location.hash.includes(`person=${id}`)", arg=user)
    said = map_page.locator("#map-legend").inner_text()
    assert f"Probability that {user} likes a picture" in said and "%" in said


def test_an_address_opens_its_layout_colours_and_person(page, server):
    user = server.ask("GET", "/v1/users?limit=1").json["users"][0]["id"]
    see_map(page, f"#layout=text&colour=taste&person={user}")
    page.locator(".ramp").wait_for()
    assert (pressed(page, "map-layouts"), pressed(page, "map-colours")) == ("text", "taste")
    assert page.locator("#person").input_value() == user


@pytest.mark.parametrize("during", ["/v1/map", "/layouts/semantic", "/groups/artist"])
def test_an_address_that_changes_while_the_map_starts_is_followed(page, during):
    page.add_init_script(
        f"""
        const ask = window.fetch;
        window.fetch = async (path, ...more) => {{
          const answer = await ask(path, ...more);
          const isIt = new URL(path, location).pathname.endsWith("{during}");
          if (isIt) location.hash = "layout=style&colour=tags";
          return answer;
        }};
        """
    )
    page.goto(f"{page.address}gallery/map.html")
    page.wait_for_function("() => document.querySelector('#map-layouts [aria-pressed=true]')")
    page.locator("#map-message").wait_for(state="hidden")
    page.locator("#map-colours [value=tags][aria-pressed=true]").wait_for()
    assert (pressed(page, "map-layouts"), pressed(page, "map-colours")) == ("style", "tags")
    page.wait_for_timeout(1500)
    assert page.evaluate("location.hash") == "#layout=style&colour=tags"


def test_one_group_is_shown_alone_and_all_again(map_page):
    first = map_page.locator("#map-legend button").first
    first.click()
    assert map_page.locator("#map-legend button").first.get_attribute("aria-pressed") == "true"
    map_page.locator("#map-legend button").first.click()
    assert map_page.locator("#map-legend [aria-pressed=true]").count() == 0


def test_keys_move_and_zoom_and_enter_opens_the_picture_in_the_middle(map_page):
    map_page.locator("#map-thumbs").click()
    canvas = map_page.locator("#map")
    canvas.focus()
    seen = [pixels(map_page)]
    for key in ("ArrowRight", "ArrowDown", "+", "0"):
        map_page.keyboard.press(key)
        map_page.wait_for_timeout(500)
        seen.append(pixels(map_page))
    assert len(set(seen[:4])) == 4
    map_page.locator("#map-card b").wait_for()
    title = map_page.locator("#map-card b").inner_text()
    assert title in map_page.locator("#map-said").inner_text()
    map_page.keyboard.press("Enter")
    map_page.locator("#dialog").wait_for()
    assert map_page.locator("#dialog-title").inner_text() == title
    map_page.keyboard.press("Escape")
    assert not map_page.locator("#dialog").is_visible()


def test_the_wheel_zooms_and_the_mouse_drags_without_opening(map_page):
    before = pixels(map_page)
    map_page.mouse.move(800, 450)
    map_page.mouse.wheel(0, -400)
    map_page.wait_for_timeout(400)
    zoomed = pixels(map_page)
    map_page.mouse.down()
    map_page.mouse.move(700, 400, steps=4)
    map_page.mouse.up()
    map_page.wait_for_timeout(400)
    assert len({before, zoomed, pixels(map_page)}) == 3
    assert not map_page.locator("#dialog").is_visible()


def test_a_click_opens_the_picture_that_the_pointer_is_at(map_page, server):
    await_pictures(map_page)
    box = map_page.locator(".map-pictures img").nth(3).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    map_page.mouse.move(x, y)
    map_page.locator("#map-card b").wait_for()
    title = map_page.locator("#map-card b").inner_text()
    map_page.mouse.click(x, y)
    map_page.locator("#dialog").wait_for()
    assert map_page.locator("#dialog-title").inner_text() == title
    map_page.locator("#dialog section[aria-label='Near by style'] img").nth(5).wait_for(
        state="attached"
    )


def test_two_fingers_zoom_and_a_tap_opens(server, chromium, page):
    context = chromium.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
    )
    phone = context.new_page()
    phone.address = page.address
    see_map(phone)
    await_pictures(phone)
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    session = context.new_cdp_session(phone)

    def touch(kind, *places):
        points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    assert phone.locator("#map").get_attribute("data-zoom") == "1.00"
    touch("touchStart", (150, 250), (250, 250))
    for step in range(1, 6):
        touch("touchMove", (150 - 12 * step, 250), (250 + 12 * step, 250))
    touch("touchEnd")
    phone.wait_for_timeout(600)
    assert float(phone.locator("#map").get_attribute("data-zoom")) > 1.5
    await_pictures(phone)
    boxes = [image.bounding_box() for image in phone.locator(".map-pictures img.loaded").all()]
    box = next(b for b in boxes if 90 < b["y"] < 400 and 20 < b["x"] < 250)
    phone.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    phone.locator("#dialog").wait_for()
    context.close()


def test_a_bundle_without_a_map_says_how_to_get_one(page):
    card = {"version": "v", "items": 9, "layouts": [], "groups": {}}
    page.route("**/v1/map", lambda route: route.fulfill(body=json.dumps(card)))
    page.goto(f"{page.address}gallery/map.html")
    page.get_by_text("This bundle has no map").wait_for()
    assert "map=true" in page.locator("#map-status").inner_text()
    assert page.locator("#map-panel").is_hidden()


def test_an_error_is_told_in_the_servers_words_and_tried_again(page):
    problem = json.dumps({"detail": "the bundle is being opened; try again later"})
    page.route("**/layouts/semantic", lambda route: route.fulfill(status=503, body=problem))
    page.goto(f"{page.address}gallery/map.html")
    page.get_by_text("the bundle is being opened").wait_for()
    page.unroute("**/layouts/semantic")
    page.get_by_role("button", name="Try again").click()
    page.locator("#map-message").wait_for(state="hidden")
    await_pictures(page)
    # Chromium logs every answer of 503 itself.
    assert all("503" in error for error in page.errors)
    page.errors.clear()


def test_an_unknown_person_is_told_and_another_is_shown(page):
    page.goto(f"{page.address}gallery/map.html#colour=taste&person=nobody")
    page.get_by_text("'nobody' given").wait_for()
    page.get_by_role("button", name="Try again").click()
    page.locator(".ramp").wait_for()
    assert page.locator("#person").input_value() not in ("", "nobody")
    assert all("404" in error for error in page.errors)
    page.errors.clear()


def test_an_error_of_the_taste_is_not_hidden_by_a_layout_that_comes_later(page):
    def late(route):
        page.wait_for_timeout(700)
        route.continue_()

    page.route("**/layouts/*", late)
    page.goto(f"{page.address}gallery/map.html#colour=taste&person=nobody")
    page.get_by_text("'nobody' given").wait_for()
    page.wait_for_selector("#map[aria-label*=content]")
    assert page.get_by_text("'nobody' given").is_visible()
    page.errors.clear()  # of the 404


def test_a_newer_bundle_is_told_and_loaded(page):
    gone = json.dumps({"detail": "version: 'old' given; 'new' is served now, load the map again"})
    page.route("**/layouts/style", lambda route: route.fulfill(status=404, body=gone))
    see_map(page)
    page.get_by_role("button", name="style").click()
    page.get_by_text("load the map again").wait_for()
    page.unroute("**/layouts/style")
    with page.expect_navigation():
        page.get_by_role("button", name="Try again").click()
    page.locator("#map-message").wait_for(state="hidden")
    assert all("404" in error for error in page.errors)
    page.errors.clear()


@pytest.mark.parametrize("drawn", ["webgl", "processor"])
def test_points_are_drawn_by_webgl_and_without_it(page, drawn):
    see_map(page, f"#drawn={drawn}")
    assert page.locator("#map").get_attribute("data-drawn") == drawn
    page.locator("#map-thumbs").click()
    page.wait_for_function("() => !document.querySelector('.map-pictures img')")
    shown = Image.open(io.BytesIO(pixels(page))).convert("RGB")
    legend = page.locator("#map-legend .swatch").evaluate_all(
        "all => all.map(mark => getComputedStyle(mark).backgroundColor)"
    )
    colours = {colour for _, colour in shown.getcolors(1 << 24)}
    named = {tuple(map(int, re.findall(r"\d+", text))) for text in legend}
    assert len(colours & named) >= 10


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_map_does_not_scroll_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    see_map(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_the_gallery_leads_to_the_map(page):
    page.goto(page.address)
    page.get_by_role("link", name="Map").click()
    page.locator("#map-message").wait_for(state="hidden")
