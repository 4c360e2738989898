"""The gallery in Chromium: a person, the dials, a picture, a new visitor, search; errors; phones."""

import io
import time
from contextlib import closing
from urllib.parse import parse_qs, urlparse

import pytest
from PIL import Image

from recsys.serving.store import Store


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


def test_truth_shows_the_oracles_probability_beside_ours_where_we_are_wrong_most(
    page, server, user
):
    see(page, user)
    page.locator("#views a", has_text="Truth").click()
    page.locator("#grid .share").first.wait_for()
    page.locator("#person").fill(user)
    page.keyboard.press("Enter")
    page.wait_for_function("u => document.title.startsWith(`Truth of ${u}`)", arg=user)
    page.locator("#grid .share").first.wait_for()
    known = server.ask("GET", f"/v1/users/{user}/truth").json["items"]
    ids = [item["id"] for item in known]
    scores = server.post("/v1/score", {"user": user, "items": ids}).json["items"]
    ours = {item["id"]: item["score"] for item in scores}
    true = {item["id"]: item["probability"] for item in known}
    wrong = sorted(ids, key=lambda id: -abs(ours[id] - true[id]))
    assert order(page) == wrong[: len(order(page))]
    first = page.locator("#grid .tile").first.locator(".share span:last-child").all_inner_texts()
    assert first == [f"{100 * p[wrong[0]]:.0f}%" for p in (true, ours)]
    assert page.locator(".figures dd").count() == 5
    page.get_by_role("button", name="The oracle's order").focus()
    page.keyboard.press("Enter")
    best = sorted(ids, key=lambda id: -true[id])
    page.wait_for_function("id => document.querySelector('#grid li').dataset.id == id", arg=best[0])


def test_everything_is_a_list_that_loads_where_it_is_looked_at(page, server):
    page.goto(f"{page.address}#view=all")
    page.locator("#grid .open").first.wait_for()
    assert page.locator("#grid li").first.get_attribute("aria-setsize") == "120"
    page.locator("#grid .open").first.focus()
    page.keyboard.press("ArrowRight")
    listed = [item["id"] for item in server.ask("GET", "/v1/items?limit=120").json["items"]]
    focused = "document.activeElement.closest('li').dataset.id"
    assert page.evaluate(focused) == listed[1]
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    at = listed.index(page.evaluate(focused))
    assert at > 20 and (at - 1) % 6 == 0
    assert page.evaluate("document.querySelectorAll('#grid li').length") < 90


HUNDRED_THOUSAND = """async () => {
  const frames = [];
  let most = 0;
  const step = document.documentElement.scrollHeight / 60;
  let last = performance.now();
  for (let n = 0; n < 60; n += 1) {
    scrollBy(0, n % 2 ? step * 2 : 400);
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    frames.push(now - last);
    last = now;
    most = Math.max(most, document.querySelectorAll('#main *').length);
  }
  return { frames: frames.sort((a, b) => a - b), most };
}"""


def test_a_hundred_thousand_pictures_scroll_with_few_nodes_and_short_frames(page):
    def answer(route):
        query = parse_qs(urlparse(route.request.url).query)
        start, limit = (int(query[name][0]) for name in ("start", "limit"))
        items = [
            {"id": f"p{n}", "title": f"Picture {n}", "artist": "A", "tags": [], "has_picture": True}
            for n in range(start, min(start + limit, 100_000))
        ]
        route.fulfill(json={"version": "fake", "total": 100_000, "items": items})

    drawn = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect width="1" height="1"/></svg>'
    page.route("**/v1/items?*", answer)
    page.route("**/picture", lambda route: route.fulfill(body=drawn, content_type="image/svg+xml"))
    page.goto(f"{page.address}#view=all")
    page.locator("#grid .open").first.wait_for()
    assert page.locator("#grid li").first.get_attribute("aria-setsize") == "100000"
    measured = page.evaluate(HUNDRED_THOUSAND)
    assert measured["most"] < 1500
    assert measured["frames"][30] < 50, "half of the frames are long"
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.locator("[data-id=p99999]").wait_for()
    assert order(page)[-1] == "p99999"
    assert page.locator("#grid .tile").count() < 90


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


def test_an_address_that_changes_as_a_person_arrives_is_what_remains(page, user):
    """The answer is read between the change of the address and the event that tells of it."""
    page.add_init_script("""
        const plain = window.fetch;
        window.fetch = async (path, options) => {
          const answer = await plain(path, options);
          if (path !== "/v1/recommend") return answer;
          const { ok, status, headers } = answer;
          const body = await answer.json();
          location.hash = "#view=all";
          return { ok, status, headers, json: async () => body };
        };
    """)
    page.goto(f"{page.address}#person={user}")
    page.locator("#views [aria-current=page][data-view=all]").wait_for()
    page.wait_for_load_state("networkidle")
    assert page.url == f"{page.address}#view=all"
    assert page.locator("#title").inner_text() == "Everything"
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
