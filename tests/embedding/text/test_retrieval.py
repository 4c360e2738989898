"""Retrieval metrics by hand and by every order of ties; tasks of held-out entities."""

import numpy as np
import pytest

from embedding.text.pairs import Pairs
from embedding.text.retrieval import (
    LEAST_QUERIES,
    mean_reciprocal_rank,
    places,
    recall_at,
    retrieval_tasks,
    retrieve,
)
from tests.reference.retrieval import recall_and_mrr


def test_metrics_by_hand():
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.3, 0.1], [0.5, 0.4, 0.1]])
    nothing = np.zeros((3, 3), dtype=bool)
    better, equal = places(scores, np.array([0, 1, 2]), nothing)
    # Ranks: 1; 1 or 2 alike; 3.
    assert better.tolist() == [0, 0, 2] and equal.tolist() == [1, 2, 1]
    assert recall_at(1, better, equal) == pytest.approx((1 + 0.5 + 0) / 3)
    assert recall_at(2, better, equal) == pytest.approx((1 + 1 + 0) / 3)
    assert mean_reciprocal_rank(better, equal) == pytest.approx((1 + 0.75 + 1 / 3) / 3)


def test_an_ignored_candidate_is_neither_right_nor_wrong():
    ignored = np.array([[False, True, False]])
    better, equal = places(np.array([[0.5, 0.9, 0.5]]), np.array([0]), ignored)
    assert better.tolist() == [0] and equal.tolist() == [2]


@pytest.mark.parametrize("seed", range(20))
def test_metrics_agree_with_every_order_of_the_ties(seed):
    rng = np.random.default_rng(seed)
    num_candidates = int(rng.integers(2, 7))
    scores = rng.integers(0, 3, size=(5, num_candidates)) / 4
    targets = rng.integers(0, num_candidates, size=5)
    ignored = rng.random((5, num_candidates)) < 0.2
    ignored[np.arange(5), targets] = False
    apart = [set(np.flatnonzero(row)) for row in ignored]
    better, equal = places(scores, targets, ignored)
    for k in (1, 2, 4):
        recall, mrr = recall_and_mrr(scores.tolist(), targets.tolist(), apart, k)
        assert recall_at(k, better, equal) == pytest.approx(recall)
        assert mean_reciprocal_rank(better, equal) == pytest.approx(mrr)


def test_a_task_takes_an_entitys_first_pair_and_knows_its_other_ones():
    pairs = Pairs(
        anchor=["いち", "壱", "に", "1", "1", "2"],
        positive=["one", "one", "two", "first", "unit", "unit"],
        perspective=["multilingual"] * 3 + ["relation"] * 3,
        entity=["1", "1", "2", "1", "1", "2"],
        language=["", "", "", "", "", ""],
    )
    names, relations = retrieval_tasks(pairs, most_queries=10)
    assert names.queries == ["いち", "に"] and names.candidates == ["one", "two"]
    assert names.targets.tolist() == [0, 1] and not names.ignored.any()
    assert relations.queries == ["1", "2"] and relations.candidates == ["first", "unit"]
    # "unit" belongs to entity 1 as well.
    assert relations.ignored.tolist() == [[False, True], [False, False]]


def test_small_languages_are_examined_together_and_queries_have_a_limit():
    count = LEAST_QUERIES + 1
    pairs = Pairs(
        anchor=[f"a{i}" for i in range(2 * count + 4)],
        positive=[f"p{i}" for i in range(2 * count + 4)],
        perspective=["multilingual"] * (2 * count + 4),
        entity=[str(i) for i in range(2 * count + 4)],
        language=["ja"] * count + ["zh"] * count + ["fr", "de", "fr", "de"],
    )
    tasks = retrieval_tasks(pairs, most_queries=count - 1)
    shown = [(task.language, len(task.queries)) for task in tasks]
    assert shown == [("ja", count - 1), ("zh", count - 1), ("others", 4)]
    assert retrieval_tasks(pairs, most_queries=0) == []


def test_every_text_is_encoded_once_in_each_role_and_results_carry_their_counts():
    pairs = Pairs(["x", "y"], ["y", "z"], ["relation"] * 2, ["1", "2"], ["", ""])
    asked = []

    def encode(texts, are_queries):
        asked.append((are_queries, texts))
        vectors = {"x": [1, 0, 0], "y": [0, 1, 0], "z": [0, 1, 0]}
        return np.array([vectors[text] for text in texts], dtype=np.float32)

    (result,) = retrieve(encode, retrieval_tasks(pairs, 10))
    assert asked == [(True, ["x", "y"]), (False, ["y", "z"])]
    # x is as far from y as from z; y meets itself and z alike.
    assert (result.num_queries, result.num_candidates) == (2, 2)
    assert result.recall_at_1 == pytest.approx(0.5) and result.mrr == pytest.approx(0.75)
