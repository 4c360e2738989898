"""The HTTP interface: its routes, its errors, its limits."""

import base64
import json
import socket
import time

import pytest

USERS = [f"u{n}" for n in range(20)]


def recommended(server, **keys):
    answer = server.post("/v1/recommend", {"k": 3, **keys})
    assert answer.status == 200, answer.body
    return [item["id"] for item in answer.json["items"]]


def like(server, user, item, **headers):
    event = {"user": user, "item": item, "kind": "liked"}
    return server.post("/v1/events", {"events": [event]}, **headers)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommend", {"user": "u1", "k": 2}),
        ("/v1/recommend", {"likes": ["i00001", "i00002"]}),
        ("/v1/score", {"user": "u1", "items": ["i00001"]}),
        ("/v1/similar", {"item": "i00001", "by": "style"}),
        ("/v1/search", {"words": "a red house"}),
        ("/v1/search", {"picture": base64.b64encode(b"a picture").decode()}),
        ("/v1/explain", {"user": "u1", "item": "i00001"}),
    ],
)
def test_every_question_is_answered_by_the_bundle(server, path, body):
    answer = server.post(path, body)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["version"] == "a"


def test_a_like_enters_the_history_of_every_worker_before_it_is_answered(server):
    assert recommended(server, user="reader")[0] == "i00999"
    assert like(server, "reader", "i00999").json == {"stored": 1, "known": 0}
    assert {recommended(server, user="reader")[0] for _ in range(20)} == {"i00998"}
    assert recommended(server, user="another")[0] == "i00999"


def test_events_sent_again_are_stored_once(server):
    assert like(server, "u", "i1", X_Request_ID="again-1").json == {"stored": 1, "known": 0}
    assert like(server, "u", "i1", X_Request_ID="again-1").json == {"stored": 0, "known": 1}
    events = [{"user": "u", "item": "i1", "kind": "shown", "id": name} for name in "xyx"]
    assert server.post("/v1/events", {"events": events}).json == {"stored": 2, "known": 1}


def test_an_added_item_is_known_to_every_worker(server):
    assert server.ask("GET", "/v1/items/new%2F1").status == 404
    answer = server.post("/v1/items", {"id": "new/1", "text": "a red house"})
    assert (answer.status, answer.json["id"], answer.json["is_new"]) == (201, "new/1", True)
    for _ in range(20):
        assert recommended(server, k=1) == ["new/1"]
        assert server.ask("GET", "/v1/items/new%2F1").status == 200
    again = server.post("/v1/items", {"id": "new/1", "text": "another"})
    assert again.status == 409
    assert "'new/1' given" in again.json["detail"]


def test_an_answer_carries_the_id_of_its_request(server):
    answer = server.post("/v1/recommend", {}, X_Request_ID="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    refused = server.post("/v1/recommend", {"k": -1}, X_Request_ID="mine-2")
    assert refused.json["request_id"] == "mine-2"
    for not_one in ("with space", "x" * 200, "\u00e9"):
        answer = server.post("/v1/recommend", {}, X_Request_ID=not_one)
        assert len(answer.headers["x-request-id"]) == 32
    (line,) = [k for k in server.lines("request") if k["request_id"] == "mine-1"]
    assert (line["status"], line["path"], line["version"]) == (200, "/v1/recommend", "a")


@pytest.mark.parametrize(
    ("path", "body", "status", "detail"),
    [
        ("/v1/recommend", {"k": 0}, 422, "k: 0 given; Input should be greater than or equal to 1"),
        ("/v1/recommend", {"kk": 1}, 422, "kk: 1 given; Extra inputs are not permitted"),
        ("/v1/recommend", {"likes": ["i1"] * 201}, 422, "likes: a list of 201 given"),
        ("/v1/recommend", {"dials": {"style": 11}}, 422, "dials.style: 11"),
        ("/v1/recommend", b'{"diversity": NaN}', 422, "diversity: NaN given"),
        ("/v1/recommend", b'{"k": 3', 400, "Invalid JSON"),
        ("/v1/recommend", b"", 400, "Invalid JSON"),
        ("/v1/recommend", b"[]", 422, "a list of 0 given"),
        ("/v1/recommend", b"[" * 100_000, 400, "recursion limit"),
        ("/v1/recommend", {"features": {"a": {"b": {"c": 1}}}}, 422, "features.a"),
        ("/v1/score", {"items": []}, 422, "items"),
        ("/v1/search", {}, 422, "expected either words or a picture"),
        ("/v1/search", {"picture": "not base64!"}, 422, "picture"),
        ("/v1/similar", {"item": "unknown"}, 404, "'unknown' given"),
        ("/v1/similar", {"item": "i00001", "by": "taste"}, 422, "by='taste': expected one of"),
        ("/v1/events", {"events": []}, 422, "events"),
        (
            "/v1/events",
            {"events": [{"user": "a\0", "item": "i", "kind": "liked"}]},
            422,
            "null character",
        ),
        ("/v1/events", {"events": [{"user": "a", "item": "i", "kind": "eaten"}]}, 422, "'shown'"),
        (
            "/v1/events",
            {"events": [{"user": "a", "item": "i", "kind": "liked", "time": 1.8e12}]},
            422,
            "4102444800",
        ),
        ("/v1/items", {"id": "n"}, 422, "expected a picture, a text, features or vectors"),
        ("/v1/nothing", {}, 404, "POST /v1/nothing"),
        ("/v1/version", {}, 405, "Method Not Allowed"),
    ],
)
def test_bad_input_is_refused_with_what_was_given_and_expected(server, path, body, status, detail):
    answer = server.post(path, body)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json
    assert problem["status"] == status
    assert detail in problem["detail"]


def test_a_body_of_another_type_is_refused(server):
    answer = server.post("/v1/recommend", b"{}", Content_Type="text/plain")
    assert answer.status == 415
    assert "expected application/json" in answer.json["detail"]


def test_a_body_is_bounded_and_a_picture_may_be_larger(server):
    words = json.dumps({"item": "i" * (1 << 20)}).encode()
    answer = server.post("/v1/similar", words)
    assert answer.status == 413
    assert "expected at most 1,048,576" in answer.json["detail"]
    picture = base64.b64encode(b"\0" * (1 << 20)).decode()
    assert server.post("/v1/search", {"picture": picture}).status == 200
    answer = server.post("/v1/search", b" " * (29 << 20))
    assert answer.status == 413


def raw(server, sent: bytes, *, seconds: float = 20) -> bytes:
    """Send bytes, and return all that comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def test_what_is_no_http_is_refused_as_a_problem(server):
    received = raw(server, b"this is not HTTP\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in received


def test_requests_of_one_connection_are_answered_whole_and_in_order(server):
    """Sent at once: one of HEAD, one that asks before it sends its body, one that is the last."""
    body = b'{"user": "u1", "k": 1}'
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    received = raw(
        server,
        b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        + head
        + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
        + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    first, *others = received.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"200") and first.endswith(b"\r\n\r\n")
    if others[0].startswith(b"100"):
        assert others.pop(0) == b"100 Continue\r\n\r\n"
    assert [answer[:3] for answer in others] == [b"200", b"200"]
    assert others[0].endswith(b"}") and b'"rank":1' in others[0]
    assert others[1].endswith(b'{"status":"alive"}')


def test_endless_headers_are_refused(server):
    received = raw(server, b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 20_000)
    assert received.startswith(b"HTTP/1.1 431")


def test_a_chunked_body_is_bounded_too(server):
    head = b"POST /v1/similar HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n" % (1 << 19) + b" " * (1 << 19) + b"\r\n"
    end = b"0\r\n\r\nGET /livez HTTP/1.1\r\nConnection: close\r\n\r\n"
    received = raw(server, head + 3 * chunk + end)
    assert b"HTTP/1.1 200" in received, "the connection can be used further"
    assert received.startswith(b"HTTP/1.1 413")


def test_a_fault_is_logged_and_not_shown(server):
    answer = server.post("/v1/recommend", {"user": "fault"}, X_Request_ID="faulty")
    assert answer.status == 500
    assert answer.json["request_id"] == "faulty"
    assert b"ordered fault" not in answer.body
    assert "an ordered fault" in server.said()


def test_the_document_of_the_interface_names_every_route_and_type(server):
    document = server.ask("GET", "/openapi.json").json
    asked = {
        path: of["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        for path, of in document["paths"].items()
        if "post" in of
    }
    assert {path: ref.rpartition("/")[2] for path, ref in asked.items()} == {
        "/v1/recommend": "RecommendRequest",
        "/v1/score": "ScoreRequest",
        "/v1/similar": "SimilarRequest",
        "/v1/search": "SearchRequest",
        "/v1/explain": "ExplainRequest",
        "/v1/events": "EventsRequest",
        "/v1/items": "NewItem",
        "/v1/comparison/lists": "ListsRequest",
        "/v1/comparison/choices": "ChoiceRequest",
        "/v1/session": "SignIn",
    }
    answered = document["paths"]["/v1/recommend"]["post"]["responses"]["200"]
    assert answered["content"]["application/json"]["schema"]["$ref"].endswith("/Recommendations")
    assert "Items answered." in json.dumps(document["components"]["schemas"]["RecommendRequest"])


def test_health_version_and_metrics_are_told(server):
    assert server.ask("GET", "/livez").json == {"status": "alive"}
    assert server.ask("GET", "/readyz").json == {"status": "ready"}
    version = server.ask("GET", "/v1/version").json
    assert (version["version"], version["workers"], version["refused"]) == ("a", 2, {})
    text = server.ask("GET", "/metrics").body.decode()
    assert 'tessera_requests_total{route="/livez",status="200"}' in text
    assert "tessera_workers 2.0" in text
    assert 'tessera_bundle_info{version="a"} 1.0' in text


def test_a_token_is_asked_for_where_one_is_set(started, monkeypatch):
    monkeypatch.setenv("TESSERA_TOKEN", "secret")
    server = started()
    assert server.post("/v1/recommend", {}).status == 401
    assert server.post("/v1/recommend", {}, Authorization="Bearer wrong").status == 401
    assert server.post("/v1/recommend", {}, Authorization="Bearer secret").status == 200
    assert server.ask("GET", "/metrics").status == 401
    assert server.ask("GET", "/readyz").status == 200


def test_slow_clients_are_answered_408(started):
    server = started(body_seconds=0.3)
    received = raw(server, b"GET /livez HTTP/1.1\r\nHost: ")
    assert received.startswith(b"HTTP/1.1 408")
    head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    received = raw(server, head + b"Content-Length: 10\r\n\r\n{")
    assert received.startswith(b"HTTP/1.1 408")
    assert raw(server, b"") == b"", "a silent connection is closed"


def test_requests_that_come_while_a_worker_computes_are_answered_together(started):
    server = started()
    waiting = [_sent(server, {"user": "slow"})]
    time.sleep(0.1)
    waiting += [_sent(server, {"user": user, "k": 3}) for user in USERS[:3]]
    for connection in waiting:
        assert connection.makefile("rb").read().split()[1] == b"200"
    text = server.ask("GET", "/metrics").body.decode()
    batches = dict(line.split() for line in text.splitlines() if line[0] != "#")
    assert float(batches["tessera_batch_requests_sum"]) == 4
    assert float(batches["tessera_batch_requests_count"]) == 2


def test_a_batch_that_cannot_grow_goes_to_a_worker_that_computes(started):
    server = started()
    waiting = [_sent(server, {"user": "slow"})]
    time.sleep(0.1)
    waiting += [
        _sent(server, {"user": "u1"}),
        _sent(server, {"item": "i00001", "by": "style"}, "similar"),
    ]
    time.sleep(0.1)
    assert "tessera_queue_requests 1.0" in server.ask("GET", "/metrics").body.decode()
    for connection in waiting:
        assert connection.makefile("rb").read().split()[1] == b"200"


def _sent(server, body, route="recommend"):
    """A connection over which a question has gone."""
    content = json.dumps(body).encode()
    head = f"POST /v1/{route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(
        head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    )
    return connection


def test_a_full_queue_and_a_late_answer_are_503(started):
    server = started(max_queue=1, request_seconds=0.8)
    open_ones = []
    for _ in range(4):  # one is computed, one waits at the worker, one in the queue
        open_ones.append(_sent(server, {"user": "slow"}))
        time.sleep(0.05)
    received = [connection.makefile("rb").read() for connection in open_ones]
    statuses = [answer.split()[1] for answer in received]
    assert statuses == [b"200", b"503", b"503", b"503"]
    assert b"Retry-After" in received[3] or b"retry-after" in received[3]
    assert b"requests wait already" in received[3]
    assert b"no answer within 0.8 s" in received[2]
