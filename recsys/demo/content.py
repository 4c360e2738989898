"""What is drawn: subjects and scenes as outlines, without any painting.

A drawing is a list of (role, outline [N, 2]) in drawing order, in a square from -1 to 1 with y down.
The role names a colour of the painter's palette (style.py). Called by world.py.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

Shape = tuple[str, np.ndarray]
"""Palette role and outline [N, 2]."""


def ellipse(role: str, x: float, y: float, width: float, height: float, turn: float = 0.0) -> Shape:
    """An ellipse with half axes `width` and `height`, turned by `turn` degrees."""
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    points = np.stack([width * np.cos(angle), height * np.sin(angle)], axis=1)
    return role, points @ rotation(turn).T + (x, y)


def polygon(role: str, *points: tuple[float, float]) -> Shape:
    """Straight edges between corners, subdivided so that a hand can wobble along them."""
    corners = np.array(points, dtype=float)
    pieces = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        steps = max(2, int(np.hypot(*(end - start)) * 14))
        pieces.append(start + (end - start) * np.linspace(0, 1, steps, endpoint=False)[:, None])
    return role, np.concatenate(pieces)


def smooth(role: str, *points: tuple[float, float]) -> Shape:
    """A closed Catmull-Rom curve through the points."""
    knots = np.array(points, dtype=float)
    t = np.linspace(0, 1, 8, endpoint=False)[:, None]
    pieces = []
    for i in range(len(knots)):
        a, b, c, d = (knots[(i + k) % len(knots)] for k in (-1, 0, 1, 2))
        pieces.append(
            0.5
            * (
                2 * b
                + (c - a) * t
                + (2 * a - 5 * b + 4 * c - d) * t**2
                + (3 * b - a - 3 * c + d) * t**3
            )
        )
    return role, np.concatenate(pieces)


def rotation(degrees: float) -> np.ndarray:
    """Return the 2 x 2 matrix of a turn."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _eyes(x: float, y: float, gap: float, size: float = 0.05) -> list[Shape]:
    return [
        ellipse("dark", x - gap, y, size, size * 1.2),
        ellipse("dark", x + gap, y, size, size * 1.2),
    ]


def _cat() -> list[Shape]:
    return [
        smooth(
            "main", (0.5, 0.75), (0.85, 0.35), (0.8, -0.1), (0.68, 0.0), (0.7, 0.35), (0.35, 0.6)
        ),
        ellipse("main", 0, 0.42, 0.48, 0.5),
        polygon("main", (-0.48, -0.2), (-0.5, -0.85), (-0.1, -0.5)),
        polygon("main", (0.48, -0.2), (0.5, -0.85), (0.1, -0.5)),
        ellipse("main", 0, -0.25, 0.52, 0.42),
        ellipse("light", 0, 0.5, 0.25, 0.32),
        *_eyes(0, -0.28, 0.22, 0.07),
        polygon("accent", (-0.07, -0.12), (0.07, -0.12), (0, -0.03)),
    ]


def _owl() -> list[Shape]:
    return [
        ellipse("main", 0, 0.1, 0.58, 0.78),
        smooth("second", (-0.55, -0.1), (-0.8, 0.4), (-0.5, 0.75), (-0.35, 0.2)),
        smooth("second", (0.55, -0.1), (0.8, 0.4), (0.5, 0.75), (0.35, 0.2)),
        ellipse("light", 0, 0.35, 0.32, 0.45),
        polygon("main", (-0.5, -0.4), (-0.55, -0.9), (-0.15, -0.6)),
        polygon("main", (0.5, -0.4), (0.55, -0.9), (0.15, -0.6)),
        ellipse("light", -0.23, -0.3, 0.23, 0.23),
        ellipse("light", 0.23, -0.3, 0.23, 0.23),
        *_eyes(0, -0.3, 0.22, 0.1),
        polygon("accent", (-0.09, -0.15), (0.09, -0.15), (0, 0.06)),
    ]


def _fish() -> list[Shape]:
    return [
        polygon("second", (0.45, 0), (0.95, -0.45), (0.85, 0), (0.95, 0.45)),
        smooth("second", (-0.1, -0.35), (0.2, -0.75), (0.4, -0.3)),
        smooth(
            "main", (-0.85, 0), (-0.4, -0.42), (0.2, -0.38), (0.6, 0), (0.2, 0.38), (-0.4, 0.42)
        ),
        ellipse("light", -0.1, 0.05, 0.1, 0.3),
        ellipse("light", 0.2, 0.02, 0.08, 0.24),
        ellipse("light", -0.55, -0.1, 0.12, 0.12),
        ellipse("dark", -0.55, -0.1, 0.06, 0.06),
    ]


def _whale() -> list[Shape]:
    return [
        smooth("main", (0.5, 0.1), (0.75, -0.35), (0.95, -0.5), (0.9, -0.2), (0.75, 0.2)),
        smooth(
            "main",
            (-0.9, 0.15),
            (-0.7, -0.3),
            (-0.1, -0.42),
            (0.5, -0.1),
            (0.8, 0.25),
            (0.2, 0.55),
            (-0.6, 0.5),
        ),
        smooth("light", (-0.85, 0.25), (-0.3, 0.3), (0.2, 0.45), (-0.2, 0.55), (-0.65, 0.48)),
        smooth("second", (-0.2, 0.35), (0.1, 0.75), (0.15, 0.35)),
        ellipse("dark", -0.6, 0.05, 0.06, 0.06),
        smooth(
            "accent",
            (-0.35, -0.45),
            (-0.65, -0.85),
            (-0.4, -0.7),
            (-0.3, -0.95),
            (-0.2, -0.7),
            (0.05, -0.85),
        ),
    ]


def _fox() -> list[Shape]:
    return [
        smooth("main", (0.2, 0.7), (0.7, 0.55), (0.95, 0.0), (0.8, -0.1), (0.65, 0.3), (0.2, 0.4)),
        ellipse("light", 0.88, 0.0, 0.12, 0.16, 20),
        ellipse("main", 0, 0.5, 0.4, 0.42),
        polygon("main", (-0.6, -0.2), (-0.55, -0.95), (-0.1, -0.45)),
        polygon("main", (0.6, -0.2), (0.55, -0.95), (0.1, -0.45)),
        polygon("main", (-0.65, -0.3), (0, -0.6), (0.65, -0.3), (0, 0.35)),
        polygon("light", (-0.6, -0.25), (-0.15, -0.1), (0, 0.33)),
        polygon("light", (0.6, -0.25), (0.15, -0.1), (0, 0.33)),
        *_eyes(0, -0.22, 0.22, 0.06),
        ellipse("dark", 0, 0.3, 0.07, 0.06),
    ]


def _rabbit() -> list[Shape]:
    return [
        ellipse("main", -0.22, -0.6, 0.13, 0.4, -8),
        ellipse("main", 0.22, -0.6, 0.13, 0.4, 8),
        ellipse("accent", -0.22, -0.6, 0.06, 0.28, -8),
        ellipse("accent", 0.22, -0.6, 0.06, 0.28, 8),
        ellipse("light", 0.5, 0.65, 0.18, 0.18),
        ellipse("main", 0, 0.5, 0.45, 0.42),
        ellipse("main", 0, -0.05, 0.38, 0.34),
        *_eyes(0, -0.08, 0.18, 0.06),
        ellipse("accent", 0, 0.07, 0.06, 0.04),
        ellipse("light", 0, 0.55, 0.22, 0.26),
    ]


def _turtle() -> list[Shape]:
    return [
        ellipse("second", -0.75, 0.1, 0.22, 0.2),
        ellipse("second", -0.4, 0.5, 0.15, 0.2),
        ellipse("second", 0.45, 0.5, 0.15, 0.2),
        polygon("second", (0.6, 0.3), (0.95, 0.42), (0.6, 0.45)),
        smooth(
            "main", (-0.6, 0.35), (-0.5, -0.25), (0, -0.55), (0.5, -0.25), (0.65, 0.35), (0, 0.45)
        ),
        polygon("accent", (-0.15, -0.35), (0.15, -0.35), (0.25, -0.05), (0, 0.15), (-0.25, -0.05)),
        polygon("accent", (-0.45, -0.05), (-0.3, -0.05), (-0.2, 0.2), (-0.45, 0.25)),
        polygon("accent", (0.45, -0.05), (0.3, -0.05), (0.2, 0.2), (0.45, 0.25)),
        ellipse("dark", -0.82, 0.05, 0.05, 0.05),
    ]


def _butterfly() -> list[Shape]:
    wings = []
    for side in (-1, 1):
        wings += [
            smooth(
                "main", (0, -0.05), (side * 0.35, -0.75), (side * 0.9, -0.65), (side * 0.75, 0.0)
            ),
            smooth("second", (0, 0.05), (side * 0.65, 0.1), (side * 0.65, 0.65), (side * 0.2, 0.6)),
            ellipse("accent", side * 0.58, -0.42, 0.15, 0.15),
            ellipse("light", side * 0.4, 0.35, 0.11, 0.11),
        ]
    return [*wings, ellipse("dark", 0, 0.05, 0.08, 0.5)]


def _bird() -> list[Shape]:
    return [
        polygon("second", (0.45, 0.15), (0.98, 0.0), (0.95, 0.3)),
        smooth(
            "main",
            (-0.75, -0.35),
            (-0.45, -0.6),
            (-0.15, -0.35),
            (0.6, 0.1),
            (0.3, 0.5),
            (-0.3, 0.45),
            (-0.6, 0.0),
        ),
        smooth("second", (-0.15, -0.05), (0.55, -0.55), (0.45, 0.25), (0.1, 0.3)),
        polygon("accent", (-0.7, -0.42), (-0.98, -0.3), (-0.68, -0.22)),
        ellipse("dark", -0.48, -0.38, 0.055, 0.055),
        polygon("dark", (-0.08, 0.45), (0.0, 0.45), (-0.03, 0.8), (-0.09, 0.8)),
        polygon("dark", (0.14, 0.45), (0.22, 0.45), (0.2, 0.8), (0.13, 0.8)),
    ]


def _snail() -> list[Shape]:
    return [
        smooth(
            "second",
            (-0.85, 0.6),
            (-0.8, 0.1),
            (-0.6, 0.1),
            (-0.5, 0.45),
            (0.6, 0.5),
            (0.9, 0.72),
            (-0.5, 0.75),
        ),
        ellipse("main", 0.15, 0.1, 0.5, 0.5),
        ellipse("accent", 0.15, 0.1, 0.34, 0.34),
        ellipse("main", 0.15, 0.1, 0.2, 0.2),
        ellipse("accent", 0.15, 0.1, 0.08, 0.08),
        polygon("second", (-0.8, 0.15), (-0.95, -0.25), (-0.88, -0.27), (-0.72, 0.12)),
        polygon("second", (-0.68, 0.12), (-0.62, -0.27), (-0.55, -0.25), (-0.6, 0.12)),
    ]


def _boat() -> list[Shape]:
    return [
        polygon("dark", (-0.04, -0.9), (0.04, -0.9), (0.04, 0.35), (-0.04, 0.35)),
        polygon("light", (0.08, -0.85), (0.75, 0.2), (0.08, 0.2)),
        polygon("accent", (-0.08, -0.65), (-0.6, 0.2), (-0.08, 0.2)),
        polygon("main", (-0.9, 0.32), (0.9, 0.32), (0.6, 0.8), (-0.6, 0.8)),
        polygon("second", (-0.85, 0.42), (0.85, 0.42), (0.8, 0.52), (-0.8, 0.52)),
    ]


def _house() -> list[Shape]:
    return [
        polygon("second", (0.35, -0.8), (0.55, -0.8), (0.55, -0.2), (0.35, -0.2)),
        polygon("main", (-0.65, -0.1), (0.65, -0.1), (0.65, 0.8), (-0.65, 0.8)),
        polygon("accent", (-0.85, -0.05), (0, -0.8), (0.85, -0.05)),
        polygon("dark", (-0.15, 0.3), (0.15, 0.3), (0.15, 0.8), (-0.15, 0.8)),
        polygon("light", (-0.5, 0.1), (-0.25, 0.1), (-0.25, 0.38), (-0.5, 0.38)),
        polygon("light", (0.25, 0.1), (0.5, 0.1), (0.5, 0.38), (0.25, 0.38)),
    ]


def _lighthouse() -> list[Shape]:
    return [
        polygon("light", (0.2, -0.62), (0.98, -0.9), (0.98, -0.35)),
        polygon("main", (-0.25, -0.4), (0.25, -0.4), (0.38, 0.85), (-0.38, 0.85)),
        polygon("accent", (-0.285, -0.1), (0.285, -0.1), (0.31, 0.15), (-0.31, 0.15)),
        polygon("accent", (-0.335, 0.4), (0.335, 0.4), (0.36, 0.65), (-0.36, 0.65)),
        polygon("dark", (-0.32, -0.48), (0.32, -0.48), (0.32, -0.38), (-0.32, -0.38)),
        polygon("light", (-0.18, -0.75), (0.18, -0.75), (0.18, -0.48), (-0.18, -0.48)),
        polygon("accent", (-0.25, -0.75), (0, -1.0), (0.25, -0.75)),
    ]


def _balloon() -> list[Shape]:
    return [
        polygon("dark", (-0.25, 0.2), (-0.2, 0.2), (-0.1, 0.65), (-0.15, 0.65)),
        polygon("dark", (0.25, 0.2), (0.2, 0.2), (0.1, 0.65), (0.15, 0.65)),
        smooth(
            "main",
            (0, -0.95),
            (0.6, -0.7),
            (0.65, -0.2),
            (0.25, 0.3),
            (-0.25, 0.3),
            (-0.65, -0.2),
            (-0.6, -0.7),
        ),
        smooth(
            "accent",
            (0, -0.95),
            (0.28, -0.6),
            (0.28, -0.1),
            (0.1, 0.3),
            (-0.1, 0.3),
            (-0.28, -0.1),
            (-0.28, -0.6),
        ),
        polygon("second", (-0.2, 0.62), (0.2, 0.62), (0.15, 0.92), (-0.15, 0.92)),
    ]


def _rocket() -> list[Shape]:
    return [
        smooth("accent", (-0.18, 0.55), (-0.12, 0.85), (0, 1.0), (0.12, 0.85), (0.18, 0.55)),
        polygon("second", (-0.28, 0.1), (-0.65, 0.65), (-0.25, 0.55)),
        polygon("second", (0.28, 0.1), (0.65, 0.65), (0.25, 0.55)),
        smooth(
            "main",
            (0, -0.98),
            (0.3, -0.4),
            (0.3, 0.3),
            (0.2, 0.62),
            (-0.2, 0.62),
            (-0.3, 0.3),
            (-0.3, -0.4),
        ),
        ellipse("light", 0, -0.25, 0.17, 0.17),
        ellipse("dark", 0, -0.25, 0.1, 0.1),
    ]


def _tree() -> list[Shape]:
    return [
        polygon("dark", (-0.12, 0.2), (0.12, 0.2), (0.2, 0.95), (-0.2, 0.95)),
        ellipse("main", -0.35, -0.05, 0.42, 0.38),
        ellipse("main", 0.38, -0.05, 0.42, 0.38),
        ellipse("main", 0, -0.45, 0.5, 0.45),
        ellipse("accent", -0.3, -0.1, 0.08, 0.08),
        ellipse("accent", 0.15, -0.45, 0.08, 0.08),
        ellipse("accent", 0.42, 0.02, 0.08, 0.08),
        ellipse("accent", -0.12, -0.62, 0.07, 0.07),
    ]


def _mushroom() -> list[Shape]:
    return [
        smooth("light", (-0.2, 0.0), (-0.28, 0.85), (0.28, 0.85), (0.2, 0.0)),
        smooth(
            "main", (-0.85, 0.15), (-0.6, -0.55), (0, -0.85), (0.6, -0.55), (0.85, 0.15), (0, 0.28)
        ),
        ellipse("light", -0.4, -0.25, 0.14, 0.12),
        ellipse("light", 0.15, -0.5, 0.16, 0.13),
        ellipse("light", 0.45, -0.05, 0.12, 0.1),
        ellipse("light", -0.05, -0.02, 0.1, 0.08),
    ]


def _flower() -> list[Shape]:
    petals = [
        ellipse("main", 0.42 * math.cos(a), -0.3 + 0.42 * math.sin(a), 0.28, 0.2, math.degrees(a))
        for a in np.linspace(0, 2 * math.pi, 7, endpoint=False)
    ]
    return [
        polygon("second", (-0.05, 0), (0.05, 0), (0.07, 0.98), (-0.07, 0.98)),
        smooth("second", (0, 0.75), (0.3, 0.4), (0.65, 0.35), (0.45, 0.68)),
        smooth("second", (0, 0.85), (-0.3, 0.55), (-0.6, 0.5), (-0.4, 0.8)),
        *petals,
        ellipse("accent", 0, -0.3, 0.24, 0.24),
    ]


def _cactus() -> list[Shape]:
    return [
        smooth(
            "main",
            (-0.75, -0.25),
            (-0.6, -0.35),
            (-0.5, -0.2),
            (-0.48, 0.15),
            (-0.2, 0.2),
            (-0.2, 0.42),
            (-0.65, 0.38),
            (-0.75, 0.1),
        ),
        smooth(
            "main",
            (0.75, -0.45),
            (0.6, -0.55),
            (0.5, -0.4),
            (0.48, 0.0),
            (0.2, 0.05),
            (0.2, 0.27),
            (0.65, 0.22),
            (0.75, -0.1),
        ),
        smooth("main", (0, -0.9), (0.24, -0.7), (0.24, 0.9), (-0.24, 0.9), (-0.24, -0.7)),
        ellipse("accent", 0, -0.9, 0.16, 0.12),
        ellipse("accent", -0.65, -0.35, 0.1, 0.08),
        polygon("second", (-0.05, -0.6), (0.0, -0.6), (0.0, 0.8), (-0.05, 0.8)),
    ]


def _castle() -> list[Shape]:
    towers: list[Shape] = []
    for x in (-0.65, 0.65):
        towers += [
            polygon("main", (x - 0.2, -0.35), (x + 0.2, -0.35), (x + 0.2, 0.85), (x - 0.2, 0.85)),
            polygon("accent", (x - 0.27, -0.33), (x, -0.85), (x + 0.27, -0.33)),
            polygon("dark", (x - 0.06, -0.1), (x + 0.06, -0.1), (x + 0.06, 0.12), (x - 0.06, 0.12)),
        ]
    wall = polygon(
        "second", (-0.5, 0.1), (-0.3, 0.1), (-0.3, 0.0), (-0.1, 0.0), (-0.1, 0.1), (0.1, 0.1),
        (0.1, 0.0), (0.3, 0.0), (0.3, 0.1), (0.5, 0.1), (0.5, 0.85), (-0.5, 0.85),
    )  # fmt: skip
    gate = smooth("dark", (-0.18, 0.85), (-0.18, 0.5), (0, 0.32), (0.18, 0.5), (0.18, 0.85))
    return [wall, gate, *towers]


def _train() -> list[Shape]:
    wheels = [ellipse("dark", x, 0.62, 0.17, 0.17) for x in (-0.55, -0.1, 0.5)]
    hubs = [ellipse("light", x, 0.62, 0.07, 0.07) for x in (-0.55, -0.1, 0.5)]
    return [
        ellipse("light", -0.5, -0.8, 0.2, 0.13),
        ellipse("light", -0.2, -0.92, 0.14, 0.09),
        polygon("dark", (-0.68, -0.55), (-0.42, -0.55), (-0.47, -0.1), (-0.63, -0.1)),
        polygon("main", (-0.85, -0.1), (0.2, -0.1), (0.2, 0.5), (-0.85, 0.5)),
        polygon("second", (0.15, -0.6), (0.85, -0.6), (0.85, 0.5), (0.15, 0.5)),
        polygon("light", (0.3, -0.42), (0.7, -0.42), (0.7, -0.02), (0.3, -0.02)),
        polygon("accent", (0.05, -0.72), (0.95, -0.72), (0.95, -0.58), (0.05, -0.58)),
        *wheels,
        *hubs,
    ]


def _teapot() -> list[Shape]:
    return [
        smooth(
            "second",
            (0.5, -0.15),
            (0.95, -0.25),
            (0.95, 0.35),
            (0.5, 0.4),
            (0.5, 0.28),
            (0.8, 0.2),
            (0.8, -0.08),
            (0.5, 0.0),
        ),
        smooth("second", (-0.5, 0.35), (-0.75, 0.1), (-0.98, -0.35), (-0.78, -0.3), (-0.5, 0.05)),
        ellipse("main", 0, 0.2, 0.6, 0.52),
        ellipse("accent", 0, -0.28, 0.4, 0.12),
        ellipse("accent", 0, -0.45, 0.09, 0.09),
        ellipse("light", 0, 0.25, 0.22, 0.22),
        polygon("second", (-0.35, 0.65), (0.35, 0.65), (0.4, 0.78), (-0.4, 0.78)),
    ]


def _umbrella() -> list[Shape]:
    return [
        polygon("dark", (-0.04, -0.3), (0.04, -0.3), (0.04, 0.75), (-0.04, 0.75)),
        smooth(
            "dark", (0.04, 0.7), (0.0, 0.92), (0.22, 0.95), (0.3, 0.72), (0.22, 0.72), (0.15, 0.85)
        ),
        smooth(
            "main",
            (-0.9, 0.05),
            (-0.65, -0.55),
            (0, -0.85),
            (0.65, -0.55),
            (0.9, 0.05),
            (0.45, -0.08),
            (0, 0.05),
            (-0.45, -0.08),
        ),
        smooth(
            "accent",
            (-0.3, -0.02),
            (-0.25, -0.5),
            (0, -0.85),
            (0.25, -0.5),
            (0.3, -0.02),
            (0, 0.05),
        ),
    ]


def _lantern() -> list[Shape]:
    return [
        polygon("dark", (-0.02, -1.0), (0.02, -1.0), (0.02, -0.6), (-0.02, -0.6)),
        ellipse("main", 0, 0.0, 0.55, 0.6),
        ellipse("accent", 0, 0.0, 0.3, 0.58),
        ellipse("light", 0, 0.0, 0.12, 0.5),
        polygon("dark", (-0.3, -0.65), (0.3, -0.65), (0.25, -0.5), (-0.25, -0.5)),
        polygon("dark", (-0.25, 0.5), (0.25, 0.5), (0.3, 0.65), (-0.3, 0.65)),
        polygon("accent", (-0.05, 0.65), (0.05, 0.65), (0.08, 1.0), (-0.08, 1.0)),
    ]


SUBJECTS: dict[str, Callable[[], list[Shape]]] = {
    "cat": _cat,
    "owl": _owl,
    "fish": _fish,
    "whale": _whale,
    "fox": _fox,
    "rabbit": _rabbit,
    "turtle": _turtle,
    "butterfly": _butterfly,
    "bird": _bird,
    "snail": _snail,
    "boat": _boat,
    "house": _house,
    "lighthouse": _lighthouse,
    "balloon": _balloon,
    "rocket": _rocket,
    "tree": _tree,
    "mushroom": _mushroom,
    "flower": _flower,
    "cactus": _cactus,
    "castle": _castle,
    "train": _train,
    "teapot": _teapot,
    "umbrella": _umbrella,
    "lantern": _lantern,
}


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
