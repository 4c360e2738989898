"""Maximal marginal relevance, against its definition."""

import numpy as np

from recsys.serving.diversity import marginal_relevance, similarities


def by_definition(scores, similarity, k, diversity):
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen = []
    while len(chosen) < k:
        rest = [c for c in range(len(scores)) if c not in chosen]
        chosen.append(
            max(
                rest,
                key=lambda c: (
                    (1 - diversity) * relevance[c]
                    - diversity * max((similarity[c, s] for s in chosen), default=0.0)
                ),
            )
        )
    return chosen


def test_the_list_follows_the_definition(rng):
    scores = rng.standard_normal(30)
    similarity = similarities([rng.standard_normal((30, 4)), rng.standard_normal((30, 6))])
    for diversity in (0.0, 0.2, 0.5, 1.0):
        found = marginal_relevance(scores, similarity, k=12, diversity=diversity)
        assert found.tolist() == by_definition(scores, similarity, 12, diversity)


def test_no_diversity_orders_by_score_and_some_parts_twins(rng):
    scores = np.array([3.0, 2.9, 1.0])
    similarity = similarities([np.array([[1.0, 0], [1, 0], [0, 1]])])
    assert marginal_relevance(scores, similarity, k=2, diversity=0.0).tolist() == [0, 1]
    assert marginal_relevance(scores, similarity, k=2, diversity=0.5).tolist() == [0, 2]


def test_a_list_is_as_long_as_its_candidates_at_most():
    none = np.zeros((0, 0), np.float32)
    assert marginal_relevance(np.zeros(0), none, k=5, diversity=0.3).tolist() == []
    one = np.ones((1, 1), np.float32)
    assert marginal_relevance(np.zeros(1), one, k=5, diversity=0.3).tolist() == [0]


def test_a_candidate_without_a_vector_is_similar_to_nothing():
    similarity = similarities([np.array([[0.0, 0], [1, 0]])])
    assert similarity.tolist() == [[0, 0], [0, 1]]
