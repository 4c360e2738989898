"""Subjects of the drawn world: animals, as outlines."""

from collections.abc import Callable

from recsys.demo.outlines import Shape, ellipse, polygon, smooth


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


ANIMALS: dict[str, Callable[[], list[Shape]]] = {
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
}
