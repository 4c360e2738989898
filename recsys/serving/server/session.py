"""Sign-in of browsers: a session cookie in the place of the token, which a browser cannot send by itself.

In: the server's token, once. Out: a cookie HttpOnly, SameSite=Strict, whose value is a time and its
HMAC-SHA256 under the token: the server keeps nothing, and another token ends every session. Called by
border.py.

Forgery across sites: another site's page sends no such cookie (SameSite=Strict) and no JSON (a request of
another Content-Type is refused); beside that, a request that changes something comes from this origin.
"""

import hashlib
import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

COOKIE = "tessera_session"
SESSION_SECONDS = 7 * 24 * 3600
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Sessions:
    """Sessions of one token."""

    def __init__(self, token: str):
        self._token = token.encode()

    def is_token(self, given: bytes) -> bool:
        """Return whether a text is the token, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(given, self._token)

    def cookie(self, now: float, *, is_secure: bool) -> str:
        """Return the header Set-Cookie of a new session.

        Args:
            now: seconds since 1970.
            is_secure: whether the browser came by HTTPS, and is to send the cookie so alone.
        """
        until = str(int(now) + SESSION_SECONDS)
        return _header(f"{until}.{self._mac(until)}", SESSION_SECONDS, is_secure)

    def is_valid(self, headers: Mapping[bytes, bytes], now: float) -> bool:
        """Return whether a request has the cookie of a session that has not ended."""
        try:
            cookies = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1"))
        except CookieError:
            return False
        if COOKIE not in cookies:
            return False
        until, _, mac = cookies[COOKIE].value.partition(".")
        is_ours = hmac.compare_digest(mac.encode(), self._mac(until).encode())
        return is_ours and int(until) > now

    def _mac(self, until: str) -> str:
        return hmac.new(self._token, f"session until {until}".encode(), hashlib.sha256).hexdigest()


def ended_cookie() -> str:
    """Return the header Set-Cookie that ends a session in its browser."""
    return _header("", 0, is_secure=False)


def is_from_here(method: str, headers: Mapping[bytes, bytes]) -> bool:
    """Return whether a request changes nothing, or its Origin is the host that it was sent to."""
    if method in SAFE_METHODS:
        return True
    origin = headers.get(b"origin", b"").decode("latin-1")
    return origin.partition("://")[2] == headers.get(b"host", b"").decode("latin-1")


def _header(value: str, seconds: int, is_secure: bool) -> str:
    text = f"{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict"
    return text + "; Secure" if is_secure else text
