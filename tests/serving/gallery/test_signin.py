"""A server with a token, in Chromium: the sign-in page, its cookie, requests without one."""

import pytest

from tests.serving.server.running import Server

OPENER = "recsys.serving.recommender:Recommender"
TOKEN = "a token of this test"


@pytest.fixture(scope="module")
def guarded(tiny_bundle, tmp_path_factory):
    """A server that expects a token."""
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESSERA_TOKEN", TOKEN)
        running = Server(tiny_bundle, folder / "log", opener=OPENER, request_seconds=60)
    with running:
        running.wait(seconds=120)
        yield running


def signed_in(server) -> str:
    answer = server.post("/v1/session", {"token": TOKEN})
    assert answer.status == 204, answer.body
    return answer.headers["set-cookie"].partition(";")[0]


def test_a_browser_without_a_session_is_led_to_the_sign_in_page_and_to_nothing_else(guarded):
    answer = guarded.ask("GET", "/")
    assert (answer.status, answer.headers["location"]) == (303, "/gallery/signin.html")
    assert guarded.ask("GET", "/gallery/signin.html").status == 200
    for path in ("/gallery/app.js", "/v1/users", "/v1/gallery", "/openapi.json", "/metrics"):
        assert guarded.ask("GET", path).status == 401, path
    assert guarded.ask("GET", "/v1/users", Authorization=f"Bearer {TOKEN}").status == 200


def test_a_session_reads_and_changes_from_its_own_origin_alone(guarded):
    cookie = signed_in(guarded)
    assert guarded.ask("GET", "/v1/users", Cookie=cookie).status == 200
    assert guarded.ask("GET", "/v1/gallery", Cookie=cookie).json["session"]
    event = {"events": [{"user": "u", "item": "i", "kind": "opened"}]}
    here = f"http://127.0.0.1:{guarded.port}"
    assert guarded.post("/v1/events", event, Cookie=cookie, Origin=here).status == 200
    for origin in ({}, {"Origin": "https://evil.example"}):
        answer = guarded.post("/v1/events", event, Cookie=cookie, **origin)
        assert answer.status == 403, answer.body
    assert guarded.ask("GET", "/v1/users", Cookie=cookie + "0").status == 401
    ended = guarded.ask("DELETE", "/v1/session", Cookie=cookie, Origin=here)
    assert "Max-Age=0" in ended.headers["set-cookie"]


def test_a_wrong_token_gets_no_cookie(guarded, server):
    answer = guarded.post("/v1/session", {"token": "wrong"})
    assert answer.status == 401 and "set-cookie" not in answer.headers
    assert server.post("/v1/session", {"token": "any"}).status == 404


def test_the_token_is_typed_once(page, guarded, serious_findings):
    page.address = f"http://127.0.0.1:{guarded.port}/"
    page.goto(page.address)
    page.wait_for_url("**/gallery/signin.html")
    assert not serious_findings(page)
    page.locator("#token").focus()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("not the token of this server").wait_for()
    page.locator("#token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("#dials label")
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert page.evaluate("document.cookie") == ""
    page.locator("#grid .like").first.click()
    page.get_by_text("Liked").nth(1).wait_for()
    page.reload()
    page.wait_for_selector("#dials label")
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url("**/gallery/signin.html")
    assert not page.context.cookies()
    page.goto(page.address)
    page.wait_for_url("**/gallery/signin.html")
    page.wait_for_load_state("networkidle")
    # Chromium logs every answer of 401 itself.
    assert all("401" in error for error in page.errors)
    page.errors.clear()
