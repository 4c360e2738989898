"""Outlines: ellipses, polygons and smooth curves, of which drawings are made.

A drawing is a list of (role, outline [N, 2]) in drawing order, in a square from -1 to 1 with y down.
The role names a colour of the painter's palette (style.py). Called by subjects.py and scenes.py.
"""

import math

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
    """Return the matrix [2, 2] of a turn."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
