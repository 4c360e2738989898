"""The server of a real bundle: every route, newer likes, new items."""

import base64
import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def world(tiny_workspace):
    raw = tiny_workspace / "raw"
    log = pq.read_table(raw / "interactions.parquet").to_pylist()
    items = pq.read_table(raw / "items.parquet").to_pylist()
    return log, items


def ids(answer) -> list[str]:
    assert answer.status == 200, answer.body
    return [item["id"] for item in answer.json["items"]]


def drawing() -> str:
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def test_a_user_a_visitor_and_words_are_answered(tiny_server, tiny_bundle, world):
    log, items = world
    user, some = log[0]["user_id"], [item["item_id"] for item in items[:5]]
    answer = tiny_server.post("/v1/recommend", {"user": user, "k": 5, "explain": True})
    assert len(ids(answer)) == 5
    assert answer.json["version"] == tiny_bundle.name
    assert answer.json["known_user"]
    assert len(ids(tiny_server.post("/v1/recommend", {"likes": some, "k": 5}))) == 5
    assert ids(tiny_server.post("/v1/search", {"words": items[0]["words"], "k": 5}))
    assert ids(tiny_server.post("/v1/search", {"picture": drawing(), "k": 5}))
    assert ids(tiny_server.post("/v1/recommend", {"pictures": [drawing()], "k": 5}))


def test_the_item_that_an_uploaded_picture_counts_as_may_be_recommended(
    tiny_server, tiny_workspace, world
):
    """Unlike an item that is named as liked, it is not seen."""
    item = world[1][3]["item_id"]
    file = tiny_workspace / "raw" / world[1][3]["image"]
    upload = base64.b64encode(file.read_bytes()).decode()
    assert ids(tiny_server.post("/v1/search", {"picture": upload, "k": 1})) == [item]
    answer = tiny_server.post("/v1/recommend", {"pictures": [upload], "k": 200})
    assert item in ids(answer)
    assert answer.json["history"] >= 1
    assert item not in ids(tiny_server.post("/v1/recommend", {"likes": [item], "k": 200}))


def test_scores_similar_items_explanations_and_cards_are_answered(tiny_server, world):
    log, items = world
    user, some = log[0]["user_id"], [item["item_id"] for item in items[:50]]
    assert ids(tiny_server.post("/v1/score", {"user": user, "items": some})) == some
    for by in ("semantic", "style", "text"):
        assert ids(tiny_server.post("/v1/similar", {"item": some[0], "by": by, "k": 5}))
    explained = tiny_server.post("/v1/explain", {"user": user, "item": some[0]})
    assert explained.status == 200, explained.body
    card = tiny_server.ask("GET", f"/v1/items/{some[0]}")
    assert card.json["title"] == items[0]["title"]


def test_a_posted_like_is_part_of_the_history_and_is_not_recommended_again(tiny_server, world):
    log, items = world
    user = "a visitor with an id"
    before = tiny_server.post("/v1/recommend", {"user": user, "k": 50})
    liked = ids(before)[0]
    events = {"events": [{"user": user, "item": liked, "kind": "liked"}]}
    assert tiny_server.post("/v1/events", events).status == 200
    for _ in range(5):
        after = tiny_server.post("/v1/recommend", {"user": user, "k": 50})
        assert liked not in ids(after)
        assert after.json["history"] == before.json["history"] + 1


def test_a_new_item_is_found_recommended_and_scored_at_once(tiny_server, world):
    log, items = world
    words = "a thing that no other item has"
    new = {"id": "brand new", "picture": drawing(), "text": words, "title": "New"}
    added = tiny_server.post("/v1/items", new)
    assert added.status == 201, added.body
    assert added.json["is_new"]
    for _ in range(5):
        assert tiny_server.ask("GET", "/v1/items/brand%20new").json["title"] == "New"
        assert "brand new" in ids(tiny_server.post("/v1/search", {"picture": drawing(), "k": 3}))
        assert "brand new" in ids(tiny_server.post("/v1/recommend", {"k": 500}))
    assert tiny_server.post("/v1/items", new).status == 409


def test_unknown_ids_are_answered_as_in_training_or_refused_by_name(tiny_server):
    assert tiny_server.post("/v1/recommend", {"user": "nobody", "k": 3}).status == 200
    scored = tiny_server.post("/v1/score", {"user": "nobody", "items": ["nothing"]})
    assert scored.json["items"][0]["known"] is False
    answer = tiny_server.post("/v1/similar", {"item": "nothing"})
    assert answer.status == 404
    assert "nothing" in answer.json["detail"]
    answer = tiny_server.post("/v1/recommend", {"dials": {"taste": 2.0}})
    assert answer.status == 422, answer.body
