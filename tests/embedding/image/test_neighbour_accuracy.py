"""Nearest-neighbour accuracy: by hand, and against a slow loop."""

import numpy as np

from embedding.image import neighbour_accuracy
from embedding.image.neighbour_accuracy import nearest_neighbour_accuracy


def slow(vectors, same, apart):
    hits, count = 0, 0
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in range(len(unit)):
        others = [
            j for j in range(len(unit)) if j != i and (apart[i] is None or apart[j] != apart[i])
        ]
        if same[i] is None or not any(same[j] == same[i] for j in others):
            continue
        count += 1
        hits += same[max(others, key=lambda j: unit[i] @ unit[j])] == same[i]
    return hits / count, count


def test_accuracy_equals_the_slow_loop_over_pieces(rng, monkeypatch):
    vectors = rng.normal(size=(90, 6)).astype(np.float32)
    same = [None if i % 11 == 0 else str(i % 4) for i in range(90)]
    apart = [None if i % 7 == 0 else str(i % 9) for i in range(90)]
    monkeypatch.setattr(neighbour_accuracy, "_PIECE", 17)
    found = nearest_neighbour_accuracy(vectors, same, apart)
    assert (found.share, found.count) == slow(vectors, same, apart)


def test_accuracy_by_hand():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    found = nearest_neighbour_accuracy(vectors, ["a", "a", "b", "b"], [None] * 4)
    assert (found.share, found.count) == (1.0, 4)
    # Barred from its nearest neighbour by an equal content, every picture finds the other hand.
    found = nearest_neighbour_accuracy(vectors, ["a", "a", "b", "b"], ["x", "x", "y", "y"])
    assert np.isnan(found.share) and found.count == 0


def test_only_the_asked_pictures_count():
    vectors = np.array([[1, 0], [0.9, 0.1], [0, 1], [0.5, 0.6]])
    asked = np.array([True, False, False, True])
    found = nearest_neighbour_accuracy(vectors, ["a", "a", "b", "a"], [None] * 4, asked)
    assert (found.share, found.count) == (0.5, 2)
