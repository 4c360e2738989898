"""Types of requests: what is taken, and the refusal of what is not."""

import base64
import json

import pytest
from pydantic import TypeAdapter, ValidationError

from recsys.serving.requests import (
    MAX_LIKES,
    NewItem,
    Recommendations,
    RecommendedItem,
    RecommendRequest,
    SearchRequest,
)


def test_integers_are_taken_as_ids_and_truth_values_are_not():
    assert RecommendRequest(user=42, likes=[7, "8"]).likes == ["7", "8"]
    with pytest.raises(ValidationError, match="valid string"):
        RecommendRequest(user=True)


@pytest.mark.parametrize(
    "given",
    [
        {"k": 0},
        {"k": 501},
        {"candidates": 5001},
        {"dials": {"style": float("nan")}},
        {"dials": {"style": -1}},
        {"dials": {"style": 11}},
        {"diversity": 1.5},
        {"likes": ["1"] * (MAX_LIKES + 1)},
        {"users": "1"},
        {"filters": {"include": {"tags": []}}},
        {"features": {"age": float("inf")}},
    ],
)
def test_a_request_beyond_its_bounds_is_refused(given):
    with pytest.raises(ValidationError):
        RecommendRequest(**given)


def test_a_picture_is_base64_in_json_and_bytes_in_python():
    text = json.dumps({"picture": base64.b64encode(b"\x89PNG").decode()})
    assert SearchRequest.model_validate_json(text).picture == b"\x89PNG"
    assert SearchRequest(picture=b"\x89PNG").picture == b"\x89PNG"
    with pytest.raises(ValidationError):
        SearchRequest.model_validate_json('{"picture": "no base64!"}')


def test_a_search_has_words_or_a_picture_and_a_new_item_has_content():
    with pytest.raises(ValidationError, match="either words or a picture"):
        SearchRequest()
    with pytest.raises(ValidationError, match="either words or a picture"):
        SearchRequest(words="cat", picture=b"x")
    with pytest.raises(ValidationError, match="to recommend it by"):
        NewItem(id="a", title="Only a title")


def test_every_field_of_a_request_is_described_in_its_schema():
    for model in (RecommendRequest, SearchRequest, NewItem):
        for name, field in model.model_json_schema()["properties"].items():
            assert field.get("description"), name


def test_an_answer_is_written_as_json():
    item = RecommendedItem(1, "a", 0.5, {"style": 1.0}, None, "B", ["model"])
    answer = Recommendations("v", [item], known_user=False, history=0, unknown_likes=["x"])
    written = json.loads(TypeAdapter(Recommendations).dump_json(answer))
    assert written["items"][0]["weights"] == {"style": 1.0}
    assert written["unknown_likes"] == ["x"]
