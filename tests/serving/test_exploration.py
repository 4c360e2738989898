"""Exploration: probabilities of places by hand, draws by their formula, and the default of servers."""

import asyncio
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recsys.errors import UserError
from recsys.serving.exploration import Explorer, epsilon_greedy
from recsys.serving.recommender import Recommender
from recsys.serving.requests import Explore, RecommendRequest
from recsys.serving.server.app import recommend
from recsys.serving.server.config import ExploreConfig


@pytest.fixture(scope="module")
def recommender(tiny_bundle):
    return Recommender.open(tiny_bundle)


@pytest.fixture(scope="module")
def user(recommender):
    return recommender.bundle.vocabularies["user_id"].id_of(3)


def listed(recommender, user, **more):
    answer = recommender.recommend(user=user, k=10, candidates=5000, **more)
    return [item.id for item in answer.items], [item.propensity for item in answer.items]


def test_lists_come_with_the_probability_that_they_were_drawn():
    # Three candidates, the best two listed: every list's probability by hand, epsilon = 0.3.
    expected = {
        (0, 1): (0.7 + 0.1) * (0.7 + 0.15), (0, 2): (0.7 + 0.1) * 0.15,
        (1, 0): 0.1 * (0.7 + 0.15), (1, 2): 0.1 * 0.15,
        (2, 0): 0.1 * (0.7 + 0.15), (2, 1): 0.1 * 0.15,
    }  # fmt: skip
    rng, found = np.random.default_rng(0), Counter()
    for _ in range(20_000):
        places, chances = epsilon_greedy(np.array([0, 1]), 3, 0.3, rng)
        key = tuple(places.tolist())
        assert chances.prod() == pytest.approx(expected[key])
        found[key] += 1
    for key, chance in expected.items():
        assert found[key] / 20_000 == pytest.approx(chance, abs=0.012)


def test_epsilon_of_zero_lists_the_best_and_of_one_anything():
    rng, best = np.random.default_rng(0), np.arange(5)
    places, chances = epsilon_greedy(best, 9, 0.0, rng)
    assert places.tolist() == best.tolist() and chances.tolist() == [1.0] * 5
    places, chances = epsilon_greedy(best, 9, 1.0, rng)
    assert len(set(places.tolist())) == 5
    assert chances.tolist() == pytest.approx([1 / 9, 1 / 8, 1 / 7, 1 / 6, 1 / 5])
    assert len(epsilon_greedy(best[:0], 0, 0.5, rng)[0]) == 0


def test_a_list_that_does_not_explore_has_no_propensities(recommender, user):
    plain = listed(recommender, user)
    assert plain[1] == [None] * 10
    assert listed(recommender, user, explore={}) == plain
    assert listed(recommender, user, explore={"epsilon": 0.0, "thompson": 0.0}) == plain


def test_the_same_seed_gives_the_same_list_and_another_one_another(recommender, user):
    for explore in ({"epsilon": 0.5}, {"thompson": 2.0}):
        first = listed(recommender, user, explore=explore, seed=1)
        assert listed(recommender, user, explore=explore, seed=1) == first
        assert listed(recommender, user, explore=explore, seed=2)[0] != first[0]
        assert len(set(first[0])) == 10
        known = [p is not None for p in first[1]]
        assert all(known) if "epsilon" in explore else not any(known)


def test_scores_of_an_explored_list_are_those_of_the_model(recommender, user):
    plain = recommender.score(user, listed(recommender, user)[0])
    explored = recommender.recommend(user=user, k=10, explore={"thompson": 3.0}, seed=4)
    scores = recommender.score(user, [item.id for item in explored.items])
    assert [i.score for i in explored.items] == pytest.approx(
        [i.score for i in scores.items], abs=1e-6
    )
    assert sorted((i.score for i in explored.items), reverse=True)[0] <= plain.items[0].score + 1e-6


def test_a_draw_moves_logits_by_the_posterior_of_weights_and_items(recommender, user):
    bundle, rng = recommender.bundle, np.random.default_rng(8)
    rows = np.array([2, 7, 40])
    users, _ = recommender._users([recommender._visitor_of(RecommendRequest(user=user))])
    user_R = recommender.router.user_vectors(users, None)[0]
    explorer = Explorer(bundle)
    draws = np.array([explorer.drawn(np.zeros(3), rows, user_R, 0.5, rng) for _ in range(20_000)])
    # Covariance by hand: a^2 (x S x' + diag of the items' own variances).
    factor = np.load(bundle.folder / "explore" / "factor.npy").astype(np.float64)
    x = (bundle.items.take("retrieval", torch.from_numpy(rows)) * user_R).numpy()
    counts = bundle.items.train_count.take(torch.from_numpy(rows)).numpy()
    curvature = np.load(bundle.folder / "explore" / "curvature.npy")[0]
    expected = x @ factor @ factor.T @ x.T + np.diag(1 / (1 + counts * curvature))
    assert np.cov(draws.T) == pytest.approx(0.25 * expected, abs=0.01)
    assert draws.mean(axis=0) == pytest.approx(np.zeros(3), abs=0.02)


def test_items_with_fewer_rows_are_less_certain(recommender):
    items = recommender.bundle.items
    counts = items.train_count.fixed.numpy()[1:]
    few, many = 1 + int(counts.argmin()), 1 + int(counts.argmax())
    explorer, rng = Explorer(recommender.bundle), np.random.default_rng(0)
    nobody = torch.zeros(recommender.bundle.spec.widths.retrieval)
    draws = np.array([
        explorer.drawn(np.zeros(2), np.array([few, many]), nobody, 1.0, rng) for _ in range(2000)
    ])
    assert draws[:, 0].std() > 1.2 * draws[:, 1].std()


def test_a_bundle_without_a_posterior_says_how_it_gets_one(tiny_bundle, tmp_path, user):
    folder = shutil.copytree(tiny_bundle, tmp_path / tiny_bundle.name)
    shutil.rmtree(folder / "explore")
    spec = (folder / "bundle.json").read_text()
    for name in ("factor", "curvature"):
        size = (tiny_bundle / "explore" / f"{name}.npy").stat().st_size
        assert f'"explore/{name}.npy": {size}' in spec
        spec = spec.replace(f'"explore/{name}.npy": {size},', "")
    (folder / "bundle.json").write_text(spec)
    recommender = Recommender.open(folder)
    assert len(recommender.recommend(user=user, explore={"epsilon": 0.1}).items) == 20
    with pytest.raises(UserError, match=r"explore.thompson=1: .*launch/export.py.*posterior_rows"):
        recommender.recommend(user=user, explore={"thompson": 1})


@pytest.mark.parametrize("explore", [{"epsilon": 1.1}, {"thompson": -1}, {"epsilons": 0.1}])
def test_exploration_out_of_bounds_is_refused(recommender, explore):
    with pytest.raises(UserError, match="explore"):
        recommender.recommend(explore=explore)


def test_a_server_explores_where_a_request_does_not_say_how():
    asked = []

    async def answer(http, method, body):
        asked.append(body.explore)

    front = SimpleNamespace(
        explore=ExploreConfig(epsilon=0.2).default,
        hidden=SimpleNamespace(exclude=lambda body: body),
        answer=answer,
    )
    http = SimpleNamespace(app=SimpleNamespace(state=SimpleNamespace(front=front)))
    for body in (RecommendRequest(), RecommendRequest(explore={"thompson": 1})):
        asyncio.run(recommend(http, body))
    assert asked == [Explore(epsilon=0.2), Explore(thompson=1)]
    assert ExploreConfig().default is None
