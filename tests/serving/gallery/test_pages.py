"""The gallery in Chromium: a person, the dials, a picture, a new visitor, search; errors; phones."""

import io
import time
from contextlib import closing

import pytest
from PIL import Image

from recsys.serving.store import Store

pytestmark = pytest.mark.browser


def see(page, user):
    page.goto(f"{page.address}#person={user}")
    page.wait_for_selector("#dials label")


def order(page):
    return page.eval_on_selector_all(
        "#grid .tile[data-id]", "tiles => tiles.map(t => t.dataset.id)"
    )


def await_order(page, before):
    page.wait_for_function(
        """before => before !=
        [...document.querySelectorAll('#grid .tile[data-id]')].map(t => t.dataset.id).join()""",
        arg=",".join(before),
    )


def test_a_person_is_shown_with_likes_recommendations_mixes_and_reasons(page, user):
    see(page, user)
    assert page.title() == f"{user} - Tessera gallery"
    assert page.locator("#strip img").count() > 0
    assert page.locator("#grid .tile").count() > 5
    assert "content" in page.locator("#grid .mix").first.get_attribute("aria-label")
    assert page.locator("#grid .reason").first.inner_text()
    assert page.eval_on_selector_all("img", "all => all.every(i => i.hasAttribute('alt'))")
    page.wait_for_function("document.querySelector('#grid img').naturalWidth > 1")


def test_a_dial_moved_by_key_reorders_in_place_and_own_weights_bring_it_back(page, user):
    see(page, user)
    before = order(page)
    page.locator("#dials input[name=artists]").focus()
    page.keyboard.press("End")
    await_order(page, before)
    moved = order(page)
    page.get_by_role("button", name="Own weights").click()
    await_order(page, moved)
    assert order(page) == before


@pytest.mark.parametrize("name", ["semantic", "style", "text"])
def test_a_dial_at_full_is_what_the_server_ranks_by_its_factor(page, server, user, name):
    see(page, user)
    place = page.locator(f"#dials input[name={name}]")
    own = page.evaluate("name => document.querySelector(`#dials input[name=${name}]`).value", name)
    with page.expect_request("**/v1/recommend") as sent:
        place.fill("100" if own != "100" else "50")
    dials = sent.value.post_data_json["dials"]
    assert list(dials) == [name] and (dials[name] > 1) == (own != "100")
    page.wait_for_load_state("networkidle")
    answer = server.post("/v1/recommend", sent.value.post_data_json).json
    shown = order(page)
    assert len(shown) > 5
    assert shown == [item["id"] for item in answer["items"]][: len(shown)]


def test_a_person_is_picked_by_id_with_the_keyboard(page, user):
    see(page, user)
    page.locator("#person").focus()
    page.keyboard.type("u")
    page.wait_for_selector("#people option", state="attached")
    other = page.locator("#people option").last.get_attribute("value")
    page.locator("#person").fill(other)
    page.keyboard.press("Enter")
    page.wait_for_function("id => document.getElementById('title').textContent == id", arg=other)
    page.wait_for_selector("#dials label")


def test_a_picture_opens_by_key_with_what_is_near_and_why(page, user):
    see(page, user)
    page.locator("#grid .open").nth(1).focus()
    page.keyboard.press("Enter")
    for name in ("content", "style", "words"):
        near = page.locator(f"section[aria-label='Near by {name}']")
        near.locator("img").nth(5).wait_for(state="attached")
    page.get_by_role("button", name="Why, or why not?").click()
    page.wait_for_selector(".terms")
    assert "Rank 2. Probability" in page.locator("[data-role=why]").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#dialog").is_visible()


def test_a_like_is_stored_and_changes_what_comes_next(page, server, user):
    see(page, user)
    before = order(page)
    page.locator("#grid .like").first.click()
    await_order(page, before)
    assert before[0] not in order(page)
    latest = server.ask("GET", f"/v1/users/{user}").json["likes"][0]
    assert latest["id"] == before[0]
    assert page.locator("#strip img").first.get_attribute("src").split("/")[3] == before[0]


def test_a_hidden_picture_goes_and_does_not_come_again(page, user):
    see(page, user)
    first, second, third = order(page)[:3]
    page.locator("#grid .tile").first.hover()
    page.locator("#grid .hide").first.click()
    page.get_by_text("It does not come again").wait_for()
    assert order(page)[:2] == [second, third]
    page.locator("#grid .open").first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "hide"
    page.keyboard.press("Enter")
    page.wait_for_function("id => !document.querySelector(`[data-id='${id}']`)", arg=second)
    assert order(page)[0] == third
    page.reload()
    page.wait_for_selector("#dials label")
    assert not {first, second} & set(order(page))


def test_events_say_what_was_shown_and_opened_with_its_answer_and_place(page, server, user):
    with page.expect_response("**/v1/recommend") as answer:
        see(page, user)
    first, second = order(page)[:2]
    page.wait_for_timeout(1200)
    with page.expect_request("**/v1/events") as sent:
        page.locator("#grid .open").first.click()
    events = sent.value.post_data_json["events"]
    assert {e["kind"] for e in events if e["item"] == first} == {"shown", "opened"}
    asked = answer.value.headers["x-request-id"]
    assert {(e["user"], e["request_id"]) for e in events} == {(user, asked)}
    assert {e["position"] for e in events if e["item"] == first} == {1}
    assert len({(e["item"], e["kind"]) for e in events}) == len(events)
    page.keyboard.press("Escape")
    page.locator("#grid .open").nth(1).click()
    page.goto("about:blank")
    with closing(Store.open(server.log.parent / "events.db")) as store:
        for _ in range(100):
            stored = [e for some in store.events_between(0, 1e11) for e in some]
            if (user, second, "opened") in {(e.user, e.item, e.kind) for e in stored}:
                return
            time.sleep(0.1)
    raise AssertionError("an event that waited when the page was left is not stored")


def test_artist_and_tag_are_links_that_filter_and_a_mark_lifts_the_filter(page, user):
    see(page, user)
    page.locator("#grid .open").first.focus()
    page.keyboard.press("Enter")
    link = page.locator("#dialog .by a")
    artist = link.inner_text()
    link.focus()
    page.keyboard.press("Enter")
    page.locator("#marks li", has_text=f"by {artist}").wait_for()
    page.wait_for_selector("#dials label")
    shown = page.eval_on_selector_all("#grid .by", "all => all.map(e => e.textContent)")
    assert set(shown) == {artist}
    page.locator("#grid .open").first.click()
    page.locator("#dialog .tags[aria-label=Tags] a").first.click()
    page.locator("#marks li").first.wait_for()
    assert "tag=" in page.url and not page.locator("#dialog").is_visible()
    page.go_back()
    page.locator("#marks li", has_text=f"by {artist}").wait_for()
    page.get_by_role("button", name="Lift the filter").click()
    page.locator("#marks li").first.wait_for(state="detached")


def test_people_who_like_a_picture_are_counted_and_lead_to_their_pages(page, server, user):
    see(page, user)
    page.locator("#strip button").first.focus()
    page.keyboard.press("Enter")
    likers = page.locator("#dialog [aria-label='People who like it'] a")
    likers.first.wait_for()
    item = page.locator("#dialog").get_attribute("data-id")
    expected = server.ask("GET", f"/v1/items/{item}/likers?limit=12").json
    assert likers.all_inner_texts() == expected["users"]
    assert str(expected["count"]) in page.locator("#dialog .likers h3").inner_text().replace(
        "One", "1"
    )
    likers.last.click()
    other = expected["users"][-1]
    page.wait_for_function("id => document.getElementById('title').textContent == id", arg=other)


def test_a_new_visitor_chooses_five_and_is_recommended_others_at_once(page):
    page.goto(page.address)
    page.get_by_role("button", name="I am new").click()
    page.wait_for_selector("#grid .tile[aria-setsize='30']")
    chosen = order(page)[:5]
    for place in range(5):
        page.locator("#grid .open").nth(place).focus()
        page.keyboard.press("Enter")
    page.wait_for_selector("#dials label")
    assert page.locator("#title").inner_text() == "For you"
    assert page.locator("#strip li").count() == 5
    assert not set(chosen) & set(order(page))


def test_search_by_words_and_by_a_picture_by_content_and_style(page, user):
    see(page, user)
    page.locator("#words").fill("red fox")
    page.keyboard.press("Enter")
    page.get_by_text("nearest first").wait_for()
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 40, 40)).save(stream, "PNG")
    file = {"name": "red.png", "mimeType": "image/png", "buffer": stream.getvalue()}
    page.locator("#upload").set_input_files(file)
    page.locator("h1", has_text="Near to red.png").wait_for()
    page.get_by_text("nearest first").wait_for()
    page.get_by_role("button", name="By style").click()
    page.locator("button[aria-pressed=true]", has_text="By style").wait_for()
    page.get_by_text("nearest first").wait_for()


def test_a_search_that_overtakes_a_person_is_what_remains(page, user):
    def late(route):
        page.locator("#words").fill("red fox")
        page.locator("#words").press("Enter")
        route.continue_()

    page.route("**/v1/recommend", late)
    page.goto(f"{page.address}#person={user}")
    page.get_by_text("nearest first").wait_for()
    page.wait_for_load_state("networkidle")
    assert "nearest first" in page.locator("#status").inner_text()
    assert not page.locator("#dials").is_visible()


def test_an_unknown_person_is_told_in_the_servers_words(page):
    page.goto(f"{page.address}#person=nobody")
    page.locator("#status.error").wait_for()
    assert "'nobody' given" in page.locator("#status").inner_text()
    # Chromium logs every answer of 404 itself.
    assert all("404" in error for error in page.errors)
    page.errors.clear()


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_page_scrolls_sideways(page, user, width):
    page.set_viewport_size({"width": width, "height": 800})
    see(page, user)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_glides_where_motion_is_unwanted(page, user):
    page.emulate_media(reduced_motion="reduce", color_scheme="dark")
    see(page, user)
    before = order(page)
    page.locator("#dials input[name=artists]").press("End")
    await_order(page, before)
    assert page.evaluate("document.getAnimations().length") == 0
