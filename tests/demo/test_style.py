"""Painting styles of the drawn world (recsys/demo/style.py)."""

import numpy as np
import pytest

from recsys.demo.style import HANDS, Painter
from recsys.demo.world import SCENES, SUBJECTS, compose
from tests.reference.shading import PlainPainter


@pytest.mark.parametrize("hand", HANDS, ids=lambda hand: hand.name)
def test_every_pixel_is_that_of_the_plain_shading(hand):
    subject, scene = list(SUBJECTS)[1], list(SCENES)[2]
    pictures = []
    for painter in (Painter, PlainPainter):
        rng = np.random.default_rng(7)
        pictures.append(np.asarray(painter(hand, 48, rng).paint(compose(subject, scene, rng))))
    assert np.array_equal(*pictures)
    assert len(np.unique(pictures[0].reshape(-1, 3), axis=0)) > 10
