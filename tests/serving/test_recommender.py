"""Recommender on the tiny bundle: lists, filters, diversity, new visitors, scores and explanations."""

import shutil

import numpy as np
import pytest
import torch

from recsys.bundle.scorer import Profile
from recsys.errors import UserError
from recsys.serving.recall import candidate_recall, exact_best, known_visitor
from recsys.serving.recommender import Recommender
from recsys.serving.requests import (
    Filters,
    RecommendRequest,
    ScoreRequest,
    UnknownIdError,
)


@pytest.fixture(scope="module")
def recommender(tiny_bundle):
    return Recommender.open(tiny_bundle)


def user_id(recommender, row):
    return recommender.bundle.vocabularies["user_id"].id_of(row)


def some_user(recommender):
    """A user with at least five likes."""
    users = recommender.bundle.users
    return next(row for row in range(1, users.num_rows) if len(users.history(row)) >= 5)


def ids_of(answer):
    return [item.id for item in answer.items]


def test_a_list_is_the_exact_best_of_all_items_where_all_are_candidates(recommender):
    row = some_user(recommender)
    answer = recommender.recommend(user=user_id(recommender, row), k=10, candidates=5000)
    exact = exact_best(recommender, known_visitor(recommender, row), 10)
    assert ids_of(answer) == [recommender.bundle.item_id(int(r)) for r in exact]
    assert [item.rank for item in answer.items] == list(range(1, 11))
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)
    assert answer.version == recommender.bundle.version
    assert answer.known_user


def test_scores_of_a_list_are_those_of_the_scorer_and_of_score(recommender):
    row = some_user(recommender)
    user = user_id(recommender, row)
    answer = recommender.recommend(user=user, k=5)
    scorer = recommender.scorer
    users = scorer.encode([Profile(user_row=row)])
    rows = torch.from_numpy(recommender.bundle.item_rows(ids_of(answer)))
    logits, weights = scorer.score(users, torch.zeros_like(rows), rows)
    assert [i.score for i in answer.items] == pytest.approx(
        torch.sigmoid(logits).tolist(), abs=1e-6
    )
    assert list(answer.items[0].weights.values()) == pytest.approx(weights[0].tolist(), abs=1e-6)
    scored = recommender.score(user, ids_of(answer))
    expected = [i.score for i in answer.items]
    assert [i.score for i in scored.items] == pytest.approx(expected, abs=1e-6)


def test_many_requests_at_once_are_answered_as_each_alone(recommender):
    requests = [
        RecommendRequest(user=user_id(recommender, some_user(recommender)), k=5),
        RecommendRequest(likes=[recommender.bundle.item_id(r) for r in (3, 9, 27)], k=7),
        RecommendRequest(k=6),
        RecommendRequest(user=user_id(recommender, 4), dials={"style": 2}, k=5),
        RecommendRequest(user="nobody knows", filters=Filters(exclude_items=["x"]), k=3),
    ]
    for together, request in zip(recommender.recommend_many(requests), requests, strict=True):
        alone = recommender.recommend_many([request])[0]
        assert ids_of(together) == ids_of(alone)
        expected = [item.score for item in alone.items]
        assert [item.score for item in together.items] == pytest.approx(expected, abs=1e-5)


def test_scores_of_many_requests_at_once_are_those_of_each_alone(recommender):
    items = [recommender.bundle.item_id(r) for r in (9, 3, 27)]
    requests = [
        ScoreRequest(user=user_id(recommender, 4), items=items),
        ScoreRequest(likes=items[:1], items=[*items, "no such"], dials={"style": 2}),
        ScoreRequest(items=items[1:]),
    ]
    for together, request in zip(recommender.score_many(requests), requests, strict=True):
        (alone,) = recommender.score_many([request])
        assert ids_of(together) == ids_of(alone) == request.items
        assert [item.known for item in together.items] == [
            item != "no such" for item in request.items
        ]
        for one, other in zip(together.items, alone.items, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-6)
            assert one.weights == pytest.approx(other.weights, abs=1e-6)


def test_what_a_visitor_has_seen_is_left_out_unless_asked_for(recommender):
    row = some_user(recommender)
    history = {recommender.bundle.item_id(int(r)) for r in recommender.bundle.users.history(row)}
    user = user_id(recommender, row)
    assert not history & set(ids_of(recommender.recommend(user=user, k=100)))
    everything = recommender.recommend(user=user, k=200, candidates=5000, exclude_seen=False)
    assert history <= set(ids_of(everything))
    likes = [recommender.bundle.item_id(r) for r in (3, 9)]
    found = ids_of(recommender.recommend(likes=likes, k=200, candidates=5000))
    assert not set(likes) & set(found)
    assert len(found) == recommender.bundle.items.num_stored - 1 - len(likes)


def test_unknown_ids_are_treated_as_in_training_and_named(recommender):
    answer = recommender.recommend(user="nobody", likes=["no such", recommender.bundle.item_id(5)])
    assert not answer.known_user
    assert answer.unknown_likes == ["no such"]
    assert answer.history == 1
    scores = recommender.score("nobody", ["no such", recommender.bundle.item_id(5)])
    assert [item.known for item in scores.items] == [False, True]
    users = recommender.scorer.encode([Profile()])
    zero = torch.zeros(1, dtype=torch.int64)
    logit, _ = recommender.scorer.score(users, zero, zero)
    assert scores.items[0].score == pytest.approx(float(torch.sigmoid(logit)), abs=1e-6)


def test_likes_change_the_list_and_order_of_the_same_visitor(recommender):
    one = ids_of(recommender.recommend(likes=[recommender.bundle.item_id(r) for r in (1, 2, 3)]))
    other = ids_of(recommender.recommend(likes=[recommender.bundle.item_id(r) for r in (90, 80)]))
    assert one != other


def test_later_likes_of_a_user_join_the_history(tiny_bundle):
    recommender = Recommender.open(tiny_bundle)
    row = some_user(recommender)
    user = user_id(recommender, row)
    before = recommender.recommend(user=user, k=100)
    liked = before.items[0].id
    recommender.later_likes = lambda asked: [(liked, 2e9)] if asked == user else []
    after = recommender.recommend(user=user, k=100)
    assert liked not in ids_of(after)
    assert after.history == before.history + 1
    of_model = recommender.recommend(user=user, k=100, exclude_seen=False)
    by_likes = before.items[0].score
    assert {i.id: i.score for i in of_model.items}[liked] != by_likes, "the model reads the like"


def test_an_unknown_visitor_gets_popular_and_fresh_items(recommender):
    answer = recommender.recommend(k=12)
    assert len(answer.items) == 12
    fresh = [item for item in answer.items if "fresh" in item.routes]
    popular = [item for item in answer.items if "popular" in item.routes]
    assert len(fresh) >= 3
    assert popular


def test_filters_hold_for_every_item_and_unknown_columns_are_named(recommender):
    bundle = recommender.bundle
    artist = bundle.catalogue.card(1)["artist"]
    answer = recommender.recommend(k=50, filters={"include": {"artist": [artist]}}, explain=True)
    assert answer.items
    assert {item.artist for item in answer.items} == {artist}
    every = [r for r in range(1, len(bundle.items)) if bundle.catalogue.card(r)["artist"] == artist]
    assert len(answer.items) == len(every)
    without = recommender.recommend(
        k=200, candidates=5000, filters={"exclude": {"artist": [artist]}}
    )
    assert artist not in {item.artist for item in without.items}
    assert len(without.items) == bundle.items.num_stored - 1 - len(every)
    tag = bundle.catalogue.card(1)["tags"][0]
    tagged = recommender.recommend(k=50, filters={"include": {"tags": [tag]}})
    cards = [recommender.card(item.id) for item in tagged.items]
    assert cards
    assert all(tag in card.tags for card in cards)
    assert not recommender.recommend(filters={"include": {"tags": ["of nobody"]}}).items
    with pytest.raises(UserError, match="'colour'; this bundle filters by artist"):
        recommender.recommend(filters={"include": {"colour": ["red"]}})


def test_diversity_trades_score_for_variety(recommender):
    user = user_id(recommender, some_user(recommender))
    plain = recommender.recommend(user=user, k=10)
    varied = recommender.recommend(user=user, k=10, diversity=0.7)
    assert np.mean([i.score for i in varied.items]) < np.mean([i.score for i in plain.items])

    def similarity(answer):
        rows = torch.from_numpy(recommender.bundle.item_rows(ids_of(answer)))
        vectors = [recommender.bundle.items.modality(n, rows)[0] for n in ("semantic", "style")]
        unit = [torch.nn.functional.normalize(v, dim=1) for v in vectors]
        return float(sum((u @ u.T).mean() for u in unit))

    assert similarity(varied) < similarity(plain)


def test_a_dial_of_zero_removes_a_modality_and_one_changes_nothing(recommender):
    user = user_id(recommender, some_user(recommender))
    plain = recommender.recommend(user=user, k=5)
    assert recommender.recommend(user=user, k=5, dials={"style": 1}) == plain
    without = recommender.recommend(user=user, k=5, dials={"style": 0})
    assert all(item.weights["style"] == 0 for item in without.items)
    louder = recommender.recommend(user=user, k=5, dials={"style": 5})
    assert all(sum(item.weights.values()) == pytest.approx(1) for item in louder.items)
    with pytest.raises(UserError, match="'smell' given; this bundle has dials for ids, semantic"):
        recommender.recommend(user=user, dials={"smell": 1})


def test_features_of_a_request_are_encoded_and_unknown_ones_named(recommender):
    plain = recommender.recommend(k=5, diversity=0)
    country = recommender.bundle.vocabularies["country"].id_of(1)
    placed = recommender.recommend(k=5, diversity=0, features={"country": country})
    assert [i.score for i in placed.items] != [i.score for i in plain.items]
    with pytest.raises(
        UserError, match="'height' given; a visitor of this bundle has the features"
    ):
        recommender.recommend(features={"height": 3})


def test_the_terms_of_an_explanation_add_up_and_the_nearest_likes_are_the_nearest(recommender):
    row = some_user(recommender)
    user = user_id(recommender, row)
    item = recommender.recommend(user=user, k=1).items[0]
    found = recommender.explain(user, item.id)
    assert found.score == pytest.approx(item.score, abs=1e-6)
    assert sum(found.terms.values()) == pytest.approx(found.logit, abs=1e-4)
    assert set(found.terms) == {
        "first_order",
        *(f"match:{name}" for name in ("ids", "semantic", "style", "text")),
        "second_order",
        "deep",
    }
    # The direct term as retrieval vectors give it, by a way of their own.
    users = recommender.scorer.encode([Profile(user_row=row)])
    item_row = torch.from_numpy(recommender.bundle.item_rows([item.id]))
    retrieval = recommender.scorer.retrieval(users)[0]
    direct = retrieval @ recommender.bundle.items.take("retrieval", item_row)[0]
    own = sum(v for name, v in found.terms.items() if name not in ("deep", "first_order"))
    first = recommender.bundle.items.take("first_order", item_row)[0]
    assert own + float(first) == pytest.approx(float(direct), abs=2e-3)
    for name, likes in found.nearest_likes.items():
        history = recommender.bundle.users.history(row)
        vectors, _ = recommender.bundle.items.modality(name, torch.from_numpy(history))
        vector, _ = recommender.bundle.items.modality(name, item_row)
        cosines = torch.nn.functional.cosine_similarity(vectors, vector)
        assert likes[0].similarity == pytest.approx(float(cosines.max()), abs=1e-5)
        assert likes[0].id == recommender.bundle.item_id(int(history[cosines.argmax()]))
    with pytest.raises(UnknownIdError, match="no item of this id"):
        recommender.explain(user, "no such")


def title_free(recommender, reason):
    """The sentence without the titles that it quotes."""
    text = reason.text
    for like in reason.likes:
        title = recommender.card(like).title
        assert title in text
        text = text.replace(title, "")
    return text


def test_a_reason_names_liked_items_and_what_is_true_of_them(recommender):
    likes = [recommender.bundle.item_id(r) for r in (3, 9, 27, 40, 50)]
    answer = recommender.recommend(likes=likes, k=20, explain=True)
    named = [item.reason for item in answer.items if item.reason.likes]
    assert named, "something near is recommended"
    for item in answer.items:
        reason = item.reason
        assert reason.text
        assert set(reason.likes) <= set(likes)
        if reason.likes:
            assert not any(character.isdigit() for character in title_free(recommender, reason))
            assert reason.weight == item.weights[reason.by]
            near = recommender.similar(item.id, by=reason.by, k=200)
            found = {other.id: other.similarity for other in near.items}
            expected = [found[like] for like in reason.likes]
            assert reason.similarities == pytest.approx(expected, abs=1e-5)
            assert expected == sorted(expected, reverse=True)


def test_similar_items_are_the_nearest_by_cosine(recommender):
    bundle = recommender.bundle
    answer = recommender.similar(bundle.item_id(7), by="style", k=5)
    rows = torch.arange(1, bundle.items.num_stored)
    vectors, _ = bundle.items.modality("style", rows)
    cosines = torch.nn.functional.cosine_similarity(vectors, vectors[6:7])
    cosines[6] = -2
    assert ids_of(answer) == [bundle.item_id(int(r) + 1) for r in cosines.topk(5).indices]
    with pytest.raises(UserError, match="by='smell': this bundle compares by"):
        recommender.similar(bundle.item_id(7), by="smell")
    with pytest.raises(UnknownIdError):
        recommender.similar("no such")


def test_similar_items_by_the_model_are_those_it_offers_to_the_same_users(recommender):
    bundle, row = recommender.bundle, 7
    rows = torch.arange(bundle.items.num_stored)
    vectors = bundle.items.take("retrieval", rows)[:, :-1]
    cosines = torch.nn.functional.cosine_similarity(vectors, vectors[row][None])
    cosines[[0, row]] = -2
    answer = recommender.similar(bundle.item_id(row), by="model", k=7)
    assert ids_of(answer) == [bundle.item_id(int(r)) for r in cosines.topk(7).indices]
    assert answer.items[0].similarity == pytest.approx(float(cosines.max()), abs=1e-5)
    nearest = bundle.item_id(int(cosines.argmax()))
    artist = bundle.catalogue.card(int(cosines.argmax()))["artist"]
    filters = {"include": {"artist": [artist]}, "exclude_items": [nearest]}
    filtered = recommender.similar(bundle.item_id(row), by="model", k=500, filters=filters)
    assert nearest not in ids_of(filtered)
    assert {item.artist for item in filtered.items} == {artist}
    everything = recommender.similar(bundle.item_id(row), by="model", k=500)
    assert len(everything.items) == bundle.items.num_stored - 2
    # Users agree on items that are near, and not on those that are far.
    scored = [everything.items[0].id, everything.items[-1].id, bundle.item_id(row)]
    users = [bundle.vocabularies["user_id"].id_of(u) for u in range(1, bundle.users.num_rows)]
    scores = np.array([[i.score for i in recommender.score(u, scored).items] for u in users])
    near, far, _ = np.corrcoef(scores.T)[2]
    assert near > far


def test_candidates_hold_nearly_all_of_the_best_items(recommender):
    rows = range(1, recommender.bundle.users.num_rows)
    assert candidate_recall(recommender, rows, k=10, num_candidates=60) > 0.9


def test_a_request_out_of_bounds_says_what_was_given(recommender):
    with pytest.raises(UserError, match="k='0': Input should be greater than or equal to 1"):
        recommender.recommend(k=0)
    with pytest.raises(UserError, match="Extra inputs are not permitted"):
        recommender.recommend(colour="red")


def test_a_missing_file_of_routes_is_named(tiny_bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    (copy / "routes" / "popular.npy").write_bytes(b"broken")
    with pytest.raises(UserError, match="popular.npy"):
        Recommender.open(copy)


def test_score_answers_in_the_order_asked(recommender):
    items = [recommender.bundle.item_id(r) for r in (9, 3, 9)]
    (found,) = recommender.score_many([ScoreRequest(items=items)])
    assert [item.id for item in found.items] == items
    assert found.items[0].score == found.items[2].score
