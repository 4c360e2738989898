"""HEAD: every page and route that GET answers is answered with the same headers and no body."""

import http.client
import time

import pytest

PATHS = [
    "/",
    "/gallery/app.js",
    "/openapi.json",
    "/livez",
    "/readyz",
    "/v1/version",
    "/v1/items/i00001",
    "/v1/users?limit=3",
    "/v1/nothing",
    "/metrics",
]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_answered_as_get_without_a_body(tiny_server, path):
    connection = http.client.HTTPConnection("127.0.0.1", tiny_server.port, timeout=30)
    try:
        found = {}
        for method in ("GET", "HEAD", "GET"):  # on one connection: no byte of a body is left over
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
            headers = {name.lower(): value for name, value in response.getheaders()}
            found[method] = response.status, headers, body
    finally:
        connection.close()
    (status, headers, body), (head_status, head_headers, head_body) = found["GET"], found["HEAD"]
    assert (head_status, head_body) == (status, b"")
    assert status == (404 if "nothing" in path else 200)
    assert set(head_headers) == set(headers)
    assert head_headers["content-type"] == headers["content-type"]
    if path not in ("/metrics", "/v1/nothing"):  # these count, or name the request
        assert int(head_headers["content-length"]) == len(body) > 0


def test_head_of_a_question_is_refused_as_get_is(tiny_server):
    for method in ("GET", "HEAD"):
        answer = tiny_server.ask(method, "/v1/recommend")
        assert answer.status == 405

    def heads():
        lines = tiny_server.lines("request")
        return [k["path"] for k in lines if k["method"] == "HEAD" and k["status"] == 405]

    deadline = time.monotonic() + 30  # a request's line follows its answer
    while not heads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert heads() == ["/v1/recommend"]
