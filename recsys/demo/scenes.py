"""Scenes of the drawn world, and the composition of a subject before a scene.

Called by world.py.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from recsys.demo.animals import ANIMALS
from recsys.demo.outlines import Shape, ellipse, polygon, rotation, smooth
from recsys.demo.things import THINGS

SUBJECTS = {**ANIMALS, **THINGS}
"""Every subject by name; the order is part of the drawn world."""


def _hills(role: str, level: float, bumps: Sequence[float] | np.ndarray) -> Shape:
    x = np.linspace(-1.1, 1.1, len(bumps))
    top = [(float(a), level + b) for a, b in zip(x, bumps, strict=True)]
    _, curve = smooth(role, (-1.6, 1.5), (-1.5, level), *top, (1.5, level), (1.6, 1.5))
    return role, curve


def _meadow(rng: np.random.Generator) -> list[Shape]:
    x = rng.uniform(-0.7, 0.7)
    return [
        ellipse("glow", x, -0.62, 0.2, 0.2),
        ellipse("cloud", -x, -0.6, 0.3, 0.1),
        ellipse("cloud", -x + 0.18, -0.67, 0.2, 0.11),
        _hills("far", 0.15, rng.uniform(-0.18, 0.12, 5)),
        _hills("ground", 0.5, rng.uniform(-0.08, 0.08, 5)),
    ]


def _sea(rng: np.random.Generator) -> list[Shape]:
    waves = []
    for level, role in ((0.25, "far"), (0.5, "ground"), (0.75, "far")):
        phase = rng.uniform(0, 6)
        bumps = [0.06 * math.sin(phase + 1.9 * i) for i in range(9)]
        waves.append(_hills(role, level, bumps))
    return [ellipse("glow", rng.uniform(-0.6, 0.6), -0.3, 0.28, 0.28), *waves]


def _night(rng: np.random.Generator) -> list[Shape]:
    stars = [
        polygon(
            "glow",
            *[
                (x + r * math.cos(a), y + r * math.sin(a))
                for r, a in zip([0.07, 0.025] * 4, np.arange(8) * math.pi / 4, strict=True)
            ],
        )
        for x, y in rng.uniform((-0.95, -0.95), (0.95, 0.1), (9, 2))
    ]
    x = rng.uniform(-0.7, 0.7)
    return [
        polygon("night", (-1.2, -1.2), (1.2, -1.2), (1.2, 1.2), (-1.2, 1.2)),
        *stars,
        ellipse("glow", x, -0.6, 0.22, 0.22),
        ellipse("night", x + 0.1, -0.65, 0.19, 0.19),
        _hills("ground", 0.65, rng.uniform(-0.1, 0.1, 5)),
    ]


def _mountains(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    for x in rng.permutation([-0.75, 0.0, 0.75]):
        top = rng.uniform(-0.75, -0.35)
        x = float(x)
        shapes += [
            polygon("far", (x - 0.75, 0.7), (x, top), (x + 0.75, 0.7)),
            polygon(
                "cloud",
                (x - 0.2, top + 0.28),
                (x, top),
                (x + 0.2, top + 0.28),
                (x + 0.07, top + 0.2),
                (x - 0.06, top + 0.3),
            ),
        ]
    return [*shapes, _hills("ground", 0.6, rng.uniform(-0.05, 0.05, 5))]


def _city(rng: np.random.Generator) -> list[Shape]:
    shapes: list[Shape] = []
    for x in np.linspace(-0.95, 0.95, 6):
        top, half = float(rng.uniform(-0.6, 0.05)), float(rng.uniform(0.14, 0.2))
        shapes.append(
            polygon("far", (x - half, top), (x + half, top), (x + half, 0.8), (x - half, 0.8))
        )
        for row in range(3):
            y = top + 0.12 + 0.2 * row
            shapes.append(
                polygon(
                    "glow", (x - 0.07, y), (x + 0.07, y), (x + 0.07, y + 0.08), (x - 0.07, y + 0.08)
                )
            )
    return [*shapes, polygon("ground", (-1.2, 0.7), (1.2, 0.7), (1.2, 1.2), (-1.2, 1.2))]


def _rain(rng: np.random.Generator) -> list[Shape]:
    drops = [
        polygon("far", (x, y), (x + 0.025, y), (x - 0.04, y + 0.2), (x - 0.06, y + 0.2))
        for x, y in rng.uniform((-1, -0.6), (1, 0.7), (26, 2))
    ]
    clouds = [
        ellipse("cloud", x, -0.85 + 0.08 * (i % 2), 0.35, 0.2)
        for i, x in enumerate(np.linspace(-0.9, 0.9, 5))
    ]
    return [
        *drops,
        *clouds,
        _hills("ground", 0.62, [0.0] * 5),
        ellipse("far", rng.uniform(-0.5, 0.5), 0.82, 0.4, 0.07),
    ]


SCENES: dict[str, Callable[[np.random.Generator], list[Shape]]] = {
    "meadow": _meadow,
    "sea": _sea,
    "night": _night,
    "mountains": _mountains,
    "city": _city,
    "rain": _rain,
}


def compose(subject: str, scene: str, rng: np.random.Generator) -> list[Shape]:
    """Return the shapes of a picture: scene behind, subject before it in a drawn pose.

    The pose (side it faces, size, place, tilt) comes from `rng`.
    """
    behind = SCENES[scene](rng)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    size = rng.uniform(0.58, 0.72)
    place = np.array([rng.uniform(-0.18, 0.18), rng.uniform(0.05, 0.2)])
    turn = rotation(rng.uniform(-9, 9))
    before = [
        (role, (outline * (flip * size, size)) @ turn.T + place)
        for role, outline in SUBJECTS[subject]()
    ]
    return behind + before
