"""A thousand malformed requests: each is refused with a sentence, and the server is as it was."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.processes import family_of
from tests.serving.server.running import Answer, raw_request

PATHS = [f"/v1/{name}" for name in "recommend score similar search explain events items".split()]
FIELDS = (
    "user likes features dials k candidates filters items item by words picture events id".split()
)

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=50), st.just("\0")
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=10), inner, max_size=5)
    ),
    max_leaves=20,
)
bodies = st.one_of(
    # Known fields with any values; NaN and Infinity are written as Python writes them.
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=6).map(json.dumps).map(str.encode),
    values.map(json.dumps).map(str.encode),
    st.binary(max_size=200),
    st.integers(1, 100_000).map(lambda depth: b'{"features":' + b"[" * depth),
    st.integers(201, 20_000).map(lambda n: json.dumps({"likes": ["i1"] * n}).encode()),
    st.integers(5001, 20_000).map(lambda n: json.dumps({"items": ["i1"] * n}).encode()),
    st.integers(1, 3).map(lambda n: b" " * (n << 20)),
)
tricks = st.sampled_from([
    "/v1/items/../../etc/passwd",
    "/v1/items/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "/v1/items/%00",
    "/v1/items/" + "x" * 2000,
    "/v1/items/%ff%fe",
    "//v1//recommend",
    "/v1/recommend/../version/x",
    "/gallery/../../../etc/passwd",
    "/%",
    "/v1/items/\u00e9",
])


def memory_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    total = 0
    for each in family_of(pid):
        status = Path(f"/proc/{each}/status").read_text()
        total += 1024 * int(status.split("VmRSS:")[1].split()[0])
    return total


def check_refused(answer: Answer) -> None:
    assert answer.status < 500, answer.body
    if answer.status >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.json["detail"]) > 10
        assert len(answer.body) < 10_000, "what was given is shown by its start only"


def picture(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


NO_PICTURES = {
    "text": b"no picture",
    "cut off": picture(8, 8)[:40],
    "bomb": picture(20_000, 20_000),
    "broken": b"GIF89a" + b"\xff" * 100,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
}


def uploads_of(content: bytes) -> list[tuple[str, dict]]:
    """A path and a body of every request that may have a picture."""
    upload = base64.b64encode(content).decode()
    return [
        ("/v1/search", {"picture": upload}),
        ("/v1/recommend", {"pictures": [upload]}),
        ("/v1/items", {"id": "a new one", "picture": upload}),
    ]


uploads = st.sampled_from([
    (path, json.dumps(body).encode())
    for content in NO_PICTURES.values()
    for path, body in uploads_of(content)
])


def check_all(server, num_requests: int) -> None:
    seen: dict[int, int] = {}

    @settings(max_examples=num_requests, database=None, deadline=None)
    @given(st.one_of(*[st.tuples(st.sampled_from(PATHS), bodies)] * 3, uploads), st.none() | tricks)
    def ask(request, trick):
        if trick is not None:
            answer = raw_request(server.port, "GET", trick)
        else:
            answer = server.post(*request)
        check_refused(answer)
        seen[answer.status] = seen.get(answer.status, 0) + 1

    for number in range(100):  # what is allocated once is allocated now
        server.post("/v1/recommend", {"k": number})
    with ThreadPoolExecutor(8) as pool:  # by every worker
        whole = json.dumps({"picture": base64.b64encode(picture(64, 64)).decode()}).encode()
        list(pool.map(lambda body: server.post("/v1/search", body), [whole] * 16))
    server.post("/v1/search", b" " * (20 << 20))
    before = memory_bytes(server.process.pid)
    ask()
    after = memory_bytes(server.process.pid)
    assert after - before < 64 << 20, f"{before:,} bytes before, {after:,} after"
    assert server.post("/v1/recommend", {}).status == 200
    assert not server.lines("worker ended"), "no worker died of it"
    assert seen.get(422, 0) > num_requests // 10
    assert sum(n for status, n in seen.items() if status >= 400) > num_requests // 2


def test_malformed_requests_are_refused_with_a_sentence(server):
    check_all(server, 150)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["server", "tiny_server"])
def test_a_thousand_malformed_requests_are_refused_with_a_sentence(kind, request):
    check_all(request.getfixturevalue(kind), 1000)


@pytest.mark.parametrize("content", NO_PICTURES.values(), ids=list(NO_PICTURES))
def test_uploads_that_are_no_pictures_are_refused(tiny_server, content):
    for path, body in uploads_of(content):
        answer = tiny_server.post(path, body)
        assert answer.status == 422, answer.body
        check_refused(answer)
    assert not tiny_server.lines("worker ended")
