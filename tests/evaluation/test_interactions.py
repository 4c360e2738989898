"""Distribution of interactions over items or users, against numpy on all of them."""

from collections import Counter

import numpy as np
import pytest

from recsys.evaluation.interactions import Interactions


@pytest.mark.parametrize("num_owners", [1, 2, 9, 10, 31, 1000])
def test_median_and_head_are_those_of_all_items(rng, num_owners):
    counts = rng.integers(0, 6, num_owners) ** 3
    counts[0] = 4
    found, there = Interactions.of(Counter(counts.tolist())), counts[counts > 0]
    assert found.median == np.median(there)
    head = np.sort(there)[::-1][: max(1, there.size // 10)]
    assert found.share_of_tenth == pytest.approx(head.sum() / there.sum(), rel=1e-12)
    assert found.num_without == num_owners - there.size
    assert np.repeat(found.counts_C, found.owners_C).tolist() == np.sort(there).tolist()


def test_without_interactions_there_is_no_median():
    found = Interactions.of({0: 5})
    assert found.num_without == 5 and not found.counts_C.size
    assert np.isnan(found.median) and np.isnan(found.share_of_tenth)
