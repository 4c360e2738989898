"""Sign-in of browsers: the cookie, its end, and requests of other sites."""

import pytest

from recsys.serving.server.session import COOKIE, SESSION_SECONDS, Sessions, is_from_here


def headers(sessions: Sessions, now: float) -> dict[bytes, bytes]:
    cookie = sessions.cookie(now, is_secure=False).partition(";")[0]
    return {b"cookie": f"other=1; {cookie}".encode()}


def test_a_session_is_valid_until_its_end_and_under_its_token_alone():
    sessions = Sessions("secret")
    asked = headers(sessions, 1000.0)
    assert sessions.is_valid(asked, 1000.0 + SESSION_SECONDS - 1)
    assert not sessions.is_valid(asked, 1000.0 + SESSION_SECONDS)
    assert not Sessions("another").is_valid(asked, 1000.0)


@pytest.mark.parametrize("value", ["", "x", "99999999999.", "99999999999.0000", "99999999999"])
def test_a_cookie_that_the_server_did_not_make_is_no_session(value):
    assert not Sessions("secret").is_valid({b"cookie": f"{COOKIE}={value}".encode()}, 0.0)
    assert not Sessions("secret").is_valid({}, 0.0)


def test_a_session_that_is_made_longer_is_no_session():
    asked = headers(Sessions("secret"), 1000.0)
    longer = asked[b"cookie"].replace(b"=6", b"=9", 1)
    assert longer != asked[b"cookie"] and not Sessions("secret").is_valid({b"cookie": longer}, 0.0)


def test_a_change_has_to_come_from_the_origin_that_it_is_sent_to():
    here = {b"host": b"example.org:8000", b"origin": b"http://example.org:8000"}
    elsewhere = here | {b"origin": b"https://evil.example"}
    assert is_from_here("POST", here)
    assert not is_from_here("POST", elsewhere)
    assert not is_from_here("POST", {b"host": b"example.org:8000"})
    assert is_from_here("GET", elsewhere)


def test_the_cookie_is_kept_from_scripts_and_other_sites():
    assert "; HttpOnly; SameSite=Strict" in Sessions("s").cookie(0.0, is_secure=False)
    assert Sessions("s").cookie(0.0, is_secure=True).endswith("; Secure")
