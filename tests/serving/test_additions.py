"""Added items: encoded by the bundle's own encoders, recommended at once, kept in the event store."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from recsys.errors import UserError
from recsys.serving.encoded_item import EncodedItem
from recsys.serving.recommender import Recommender
from recsys.serving.requests import NewItem, RecommendRequest


def picture_of(workspace, recommender, row):
    """The file of an item's picture."""
    from recsys.schema import read_manifest

    root = read_manifest(workspace).image_root
    return open(f"{root}/{recommender.bundle.catalogue.card(row)['image']}", "rb").read()


@pytest.fixture
def recommender(tiny_bundle):
    return Recommender.open(tiny_bundle)


def test_an_added_copy_of_a_picture_is_its_nearest_neighbour(recommender, tiny_workspace):
    bundle = recommender.bundle
    content = picture_of(tiny_workspace, recommender, 7)
    text = bundle.catalogue.card(7)["text"]
    card = recommender.add_item("new", picture=content, text=text, title="New", artist="Somebody")
    assert card.is_new
    assert card.modalities == bundle.items.modalities
    for by in bundle.items.modalities:
        near = recommender.similar(bundle.item_id(7), by=by, k=3).items
        assert "new" in {item.id for item in near if item.similarity > 0.999}
    assert "new" in {i.id for i in recommender.search(picture=content, k=2).items}
    assert "new" in {i.id for i in recommender.search(words=text, k=50).items}


def test_an_added_item_is_recommended_scored_explained_and_filtered(recommender, tiny_workspace):
    bundle = recommender.bundle
    likes = [bundle.item_id(7)]
    content = picture_of(tiny_workspace, recommender, 7)
    before = recommender.recommend(likes=likes, k=200, candidates=5000, filters={})
    recommender.recommend(filters={"include": {"artist": ["Somebody"]}})
    recommender.add_item("new", picture=content, artist="Somebody", tags=["odd"])
    after = recommender.recommend(likes=likes, k=200, candidates=5000)
    assert len(after.items) == len(before.items) + 1
    found = next(item for item in after.items if item.id == "new")
    assert "fresh" in found.routes
    assert found.artist == "Somebody"
    assert recommender.score(None, ["new"], likes=likes).items[0].score == pytest.approx(
        found.score
    )
    few = recommender.recommend(likes=likes, k=5, candidates=20)
    assert len(few.items) == 5
    for filters in ({"artist": ["Somebody"]}, {"tags": ["odd"]}):
        only = recommender.recommend(likes=likes, filters={"include": filters})
        assert [item.id for item in only.items] == ["new"]
    of_stranger = {item.id: item.routes for item in recommender.recommend(k=200).items}
    assert "fresh" in of_stranger["new"]
    assert recommender.explain(None, "new", likes=likes).nearest_likes["style"][0].id == likes[0]
    liked = recommender.recommend(likes=["new"], k=5)
    assert liked.unknown_likes == []
    assert "new" not in [item.id for item in liked.items]


def test_an_encoded_item_survives_as_bytes(recommender, tiny_workspace):
    item = NewItem(id="new", picture=picture_of(tiny_workspace, recommender, 3), tags=["a", "b"])
    encoded = recommender.encode_item(item)
    again = EncodedItem.from_bytes(encoded.to_bytes())
    assert again.card == encoded.card
    assert set(again.vectors) == set(encoded.vectors) == {"semantic", "style"}
    for name, vector in encoded.vectors.items():
        np.testing.assert_array_equal(again.vectors[name], vector)
    for content in (b"", b"nothing", encoded.to_bytes()[:-5]):
        with pytest.raises(UserError, match="bytes that are no item"):
            EncodedItem.from_bytes(content)


def test_added_items_are_kept_in_the_event_store(tiny_bundle, tiny_workspace, tmp_path):
    events = tmp_path / "events.db"
    one = Recommender.open(tiny_bundle, events=events)
    one.add_item("new", picture=picture_of(tiny_workspace, one, 7), title="Kept")
    other = Recommender.open(tiny_bundle, events=events)
    assert other.card("new").title == "Kept"
    row = one.bundle.item_rows(["new"])
    for name in one.bundle.items.modalities:
        vector, _ = one.bundle.items.modality(name, torch.from_numpy(row))
        again, _ = other.bundle.items.modality(name, torch.from_numpy(row))
        assert torch.equal(vector, again)
    assert other.recommend(likes=["new"], k=5) == one.recommend(likes=["new"], k=5)


def test_what_cannot_be_added_is_refused_with_the_reason(recommender):
    known = recommender.bundle.item_id(3)
    with pytest.raises(UserError, match="this bundle has an item of this id"):
        recommender.add_item(known, text="a text")
    with pytest.raises(UserError, match="picture: .*broken"):
        recommender.add_item("new", picture=b"no picture at all")
    with pytest.raises(UserError, match="'smell' given; an item of this bundle has the features"):
        recommender.add_item("new", text="a text", features={"smell": "strong"})
    with pytest.raises(UserError, match="to recommend it by"):
        recommender.add_item("new", title="Only a title")
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    with pytest.raises(UserError, match="too_large"):
        recommender.add_item("new", picture=bomb.getvalue())


def test_an_uploaded_picture_is_a_liked_item_of_its_vectors_and_an_unknown_id(
    recommender, tiny_workspace
):
    content = picture_of(tiny_workspace, recommender, 7)
    asked = {"k": 200, "candidates": 5000, "explain": True}
    item = recommender.bundle.item_id(7)
    before = len(recommender.bundle.items)
    pictured = recommender.recommend(pictures=[content], **asked)
    assert item in [found.id for found in pictured.items], "a picture is no item that was seen"
    assert pictured.history == 1 and pictured.unknown_likes == []
    recommender.add_item("new", picture=content, title="Mine")
    not_new = {"exclude_items": ["new"]}
    liked = recommender.recommend(likes=["new"], filters=not_new, **asked)
    again = recommender.recommend(pictures=[content], filters=not_new, **asked)
    assert len(recommender.bundle.items) == before + 1
    assert [(i.id, i.score, i.weights) for i in again.items] == [
        (i.id, i.score, i.weights) for i in liked.items
    ]
    reasons = [(a.reason, b.reason) for a, b in zip(again.items, liked.items, strict=True)]
    assert any(of_liked.likes for _, of_liked in reasons)
    for of_picture, of_liked in reasons:
        assert of_picture.text == of_liked.text.replace('"Mine"', "a picture of yours")
        assert of_picture.likes == of_picture.similarities == []


def test_pictures_of_requests_that_are_answered_together_stay_apart(recommender, tiny_workspace):
    files = [picture_of(tiny_workspace, recommender, row) for row in (3, 7, 11)]
    requests = [
        RecommendRequest(pictures=pictures, k=20, candidates=5000)
        for pictures in (files[:1], [], files[1:])
    ]
    together = recommender.recommend_many(requests)
    alone = [recommender.recommend_many([request])[0] for request in requests]
    assert [a.history for a in together] == [1, 0, 2]
    for one, other in zip(together, alone, strict=True):
        assert [item.id for item in one.items] == [item.id for item in other.items]


def test_a_model_without_vectors_of_histories_reads_the_items_nearest_to_a_picture(
    recommender, tiny_workspace
):
    content = picture_of(tiny_workspace, recommender, 7)
    pictures = recommender._pictures
    pictures._read = set()
    with pictures.rows_of([RecommendRequest(pictures=[content])]) as (rows,):
        assert 7 in rows and all(0 < row < len(recommender.bundle.items) for row in rows)
