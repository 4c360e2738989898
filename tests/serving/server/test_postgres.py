"""Servers of two hosts that share a PostgreSQL database."""

import time

import pytest

from tests.serving.postgres import postgres

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="module")
def database():
    with postgres() as url:
        yield url


def test_likes_and_items_of_one_host_are_in_the_answers_of_another_within_a_second(
    started, database
):
    one, other = started(events=database), started(events=database)
    events = [{"user": "u", "item": f"i{n:05d}", "kind": "liked"} for n in (999, 998)]
    assert one.post("/v1/events", {"events": events}).json == {"stored": 2, "known": 0}
    assert one.post("/v1/items", {"id": "new", "text": "t"}).status == 201
    for server, seconds in ((one, 0.0), (other, 1.0)):
        time.sleep(seconds)
        answer = server.post("/v1/recommend", {"user": "u", "k": 2}).json
        assert [item["id"] for item in answer["items"]] == ["new", "i00997"]
    again = other.post("/v1/events", {"events": [{**events[0], "id": "mine"}]})
    assert again.json == {"stored": 1, "known": 0}
    assert one.post("/v1/events", {"events": [{**events[1], "id": "mine"}]}).json["known"] == 1
    assert other.post("/v1/items", {"id": "new", "text": "t"}).status == 409


@pytest.mark.slow
def test_a_database_that_stops_is_a_503_for_events_and_nothing_for_recommendations(started):
    with postgres() as url:
        server = started(events=url)
        event = {"user": "u", "item": "i00999", "kind": "liked"}
        assert server.post("/v1/events", {"events": [event]}).status == 200
    answer = server.post("/v1/events", {"events": [event]})
    assert answer.status == 503
    assert "nothing was stored" in answer.json["detail"]
    answer = server.post("/v1/recommend", {"user": "u", "k": 1})
    assert answer.json["items"][0]["id"] == "i00998", "what is known stays known"
    assert server.ask("GET", "/readyz").status == 200
