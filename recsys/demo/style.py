"""Painting styles of the drawn world: palette, line, shading and ground of every artist.

In: outlines. Out: pixels. Called by world.py. The subject of a picture is not known here.
"""

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from recsys.demo.outlines import Shape

OVERSAMPLING = 2
ROLES = (
    "sky",
    "night",
    "glow",
    "cloud",
    "far",
    "ground",
    "main",
    "second",
    "accent",
    "light",
    "dark",
)


@dataclass(frozen=True, kw_only=True)
class Hand:
    """One painter."""

    name: str
    palette: tuple[str, ...]
    """Hex colours in the order of ROLES."""
    shading: str
    """`flat`, `gradient`, `hatch`, `dots`, `wash`, `blocks` or `strokes`."""
    line: float
    """Width of outlines in pixels of the finished picture; 0: none."""
    line_colour: str = "#222222"
    wobble: float = 0.0
    """How unsteady the hand is, in parts of the picture's half side."""
    grain: float = 0.0
    """Strength of the ground's texture, 0 to 1."""
    ground: str = "paper"
    """`paper` (fine grain), `canvas` (weave), `screen` (horizontal lines)."""


HANDS = (
    Hand(
        name="Ayame", shading="wash", line=0.0, wobble=0.012, grain=0.10, ground="paper",
        palette=("#f5ead9", "#5a6f94", "#f7d992", "#fffaf0", "#bcd3d3", "#a9c39a", "#e29578", "#83b5c9",
                 "#d1495b", "#fff6e9", "#3d405b"),
    ),
    Hand(
        name="Brandt", shading="flat", line=1.6, line_colour="#111111", grain=0.0,
        palette=("#ffd23f", "#1b2a6b", "#ffffff", "#ffffff", "#3bceac", "#0ead69", "#ee4266", "#540d6e",
                 "#ff8c42", "#fff8e7", "#111111"),
    ),
    Hand(
        name="Corvin", shading="hatch", line=0.9, line_colour="#2b2118", wobble=0.010, grain=0.12,
        palette=("#efe4cf", "#6b5b4b", "#fbf3df", "#f8efdc", "#d3c2a3", "#c0ab86", "#a98a63", "#8b7355",
                 "#6e5238", "#f6ecd8", "#3a2a1d"),
    ),
    Hand(
        name="Delphi", shading="gradient", line=0.0, grain=0.0,
        palette=("#2b1055", "#120a2a", "#fff1a8", "#b57bff", "#5b2a9d", "#d62f8b", "#ff6ec7", "#39d0ff",
                 "#f9f871", "#ffe3fb", "#150a33"),
    ),
    Hand(
        name="Eskil", shading="blocks", line=0.0, grain=0.04, ground="canvas",
        palette=("#c9d6df", "#2f4858", "#f6ae2d", "#f2f5f7", "#86a5b5", "#55828b", "#f26419", "#33658a",
                 "#758e4f", "#eef3f2", "#1f2f3a"),
    ),
    Hand(
        name="Fumiko", shading="flat", line=0.7, line_colour="#7a5c58", wobble=0.006, grain=0.06,
        palette=("#fde2e4", "#9a8fb8", "#fff1b6", "#ffffff", "#d8c9e8", "#bee1c6", "#f7a6b4", "#a2d2ff",
                 "#ffc58f", "#fffdf9", "#6d597a"),
    ),
    Hand(
        name="Grigor", shading="strokes", line=0.0, wobble=0.02, grain=0.14, ground="canvas",
        palette=("#7fb2d9", "#1d3461", "#ffe08a", "#e8f1f5", "#4f86b0", "#5c8a3a", "#e8871e", "#2f6690",
                 "#c8352b", "#fbe6b2", "#232946"),
    ),
    Hand(
        name="Hoku", shading="dots", line=1.2, line_colour="#1a1a40", grain=0.0,
        palette=("#bfe3f2", "#27306b", "#fff27a", "#ffffff", "#7ec4e0", "#70c1a0", "#ff5d5d", "#2d7dd2",
                 "#ffb400", "#fffef2", "#1a1a40"),
    ),
    Hand(
        name="Ilse", shading="hatch", line=0.8, line_colour="#0f1720", grain=0.0,
        palette=("#ffffff", "#3a4652", "#f2f2f2", "#ffffff", "#cfd8df", "#aab7c2", "#dfe5ea", "#b4c0ca",
                 "#7d8b98", "#ffffff", "#0f1720"),
    ),
    Hand(
        name="Juno", shading="gradient", line=1.0, line_colour="#4a2c1a", wobble=0.004, grain=0.05,
        palette=("#ffe8c2", "#6b4226", "#fff3b0", "#fff7e6", "#f4b183", "#c98f4e", "#d9622b", "#9c5221",
                 "#f2a541", "#fff1d6", "#4a2c1a"),
    ),
    Hand(
        name="Kestrel", shading="blocks", line=0.0, grain=0.10, ground="screen",
        palette=("#0b3d3a", "#031a1a", "#d7ff9e", "#2f7f6f", "#14665c", "#0a8f73", "#7cf29c", "#1fb5a8",
                 "#f4ff61", "#d8fff0", "#021414"),
    ),
    Hand(
        name="Lumen", shading="dots", line=0.0, wobble=0.004, grain=0.08, ground="paper",
        palette=("#f3d9c8", "#4b3f72", "#ffe9a3", "#fff7f0", "#c9a5a0", "#8fae8b", "#6c4f9c", "#d17a8b",
                 "#2a9d8f", "#fff4ea", "#3b2f55"),
    ),
)  # fmt: skip


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float32)


def _smooth_noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Cloudy noise in -1..1, [side, side]."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    picture = Image.fromarray(coarse, mode="F").resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(picture)


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Coordinates of a canvas, and the patterns that they alone decide, each [side, side]."""

    x: np.ndarray
    y: np.ndarray
    falling: np.ndarray
    """Whether a pixel is on a hatching line from top right to bottom left."""
    rising: np.ndarray
    """The same from top left to bottom right."""
    from_dot: np.ndarray
    """Distance to the middle of the nearest dot of a screen."""
    diagonal: np.ndarray
    """Position across the edge between light and shadow of a block."""
    weave: np.ndarray
    """Height of a canvas's threads, -1 to 1."""


@functools.lru_cache(maxsize=2)
def _grid(side: int) -> _Grid:
    axis = np.arange(side, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    pitch = 8.0
    shifted = x + (y // pitch % 2) * (pitch / 2)
    return _Grid(
        x=x,
        y=y,
        falling=(x + y) % 7 < 1.6,
        rising=(x - y) % 7 < 1.6,
        from_dot=np.hypot(shifted % pitch - pitch / 2, y % pitch - pitch / 2),
        diagonal=x * 0.6 + y,
        weave=np.sin(x * 1.57) * 0.5 + np.sin(y * 1.57) * 0.5,
    )


def _put(
    pixels: np.ndarray, mask: np.ndarray, colour: np.ndarray, lighter: float | np.ndarray = 0.0
) -> None:
    """Give the pixels [h, w, 3] of `mask` [h, w] a colour [3].

    Args:
        lighter: added to the colour, by pixel: [h, w], or [h, 1] where a row has one value.
    """
    # Channel by channel: numpy's loops over three values at a time take several times as long.
    for channel in range(3):
        value = colour[channel] + lighter
        np.copyto(pixels[:, :, channel], value, where=mask, casting="same_kind")


class Painter:
    """One hand at work on one canvas."""

    def __init__(self, hand: Hand, size: int, rng: np.random.Generator):
        """Args: size: side of the finished picture in pixels."""
        self.hand = hand
        self.rng = rng
        self.size = size
        self.side = size * OVERSAMPLING
        self.colours = dict(zip(ROLES, map(_rgb, hand.palette), strict=True))
        # Every picture is lit a little differently; the palette stays recognisable.
        self.tint = rng.normal(0, 4.0, 3).astype(np.float32)
        self.grid = _grid(self.side)
        self.noise = _smooth_noise(rng, self.side, 9)
        self.strokes = self._strokes() if hand.shading == "strokes" else self.noise
        self.canvas = np.empty((self.side, self.side, 3), dtype=np.float32)
        everything = np.ones((self.side, self.side), dtype=bool)
        whole = (slice(0, self.side), slice(0, self.side))
        self._fill(self.colours["sky"], everything, whole)

    def paint(self, shapes: list[Shape]) -> Image.Image:
        """Paint the shapes one over another and return the finished RGB picture."""
        for role, outline in shapes:
            self._shape(role, outline)
        self._texture()
        pixels = np.empty((self.side, self.side, 3), dtype=np.uint8)
        for channel in range(3):
            tinted = self.canvas[:, :, channel] + self.tint[channel]
            pixels[:, :, channel] = np.clip(tinted, 0, 255)
        picture = Image.fromarray(pixels)
        return picture.resize((self.size, self.size), Image.Resampling.BOX)

    def _shape(self, role: str, outline: np.ndarray) -> None:
        points = outline
        if self.hand.wobble:
            # Unsteady but closed: a few low waves along the outline.
            angle = np.linspace(0, 2 * np.pi, len(points), endpoint=False)[:, None]
            wave = sum(np.sin(k * angle + self.rng.uniform(0, 6.28, 2)) / k for k in (2, 3, 5, 9))
            points = points + self.hand.wobble * wave
        pixels = (points + 1) * (self.side / 2)
        # Only the box around the shape is worked on.
        margin = 2 + round(self.hand.line * OVERSAMPLING)
        left, top = np.clip(np.floor(pixels.min(axis=0)).astype(int) - margin, 0, self.side)
        right, bottom = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + margin, 0, self.side)
        if left >= right or top >= bottom:
            return
        box = (slice(top, bottom), slice(left, right))
        outline_xy = [tuple(p) for p in (pixels - (left, top)).tolist()]
        shape_image = Image.new("1", (right - left, bottom - top))
        ImageDraw.Draw(shape_image).polygon(outline_xy, fill=1)
        mask = np.asarray(shape_image)
        if mask.any():
            self._fill(self.colours[role], mask, box)
        if self.hand.line:
            line_image = Image.new("L", (right - left, bottom - top))
            width = max(1, round(self.hand.line * OVERSAMPLING))
            closed = [*outline_xy, outline_xy[0]]
            ImageDraw.Draw(line_image).line(closed, fill=255, width=width, joint="curve")
            _put(self.canvas[box], np.asarray(line_image) > 0, _rgb(self.hand.line_colour))

    def _strokes(self) -> np.ndarray:
        """Return how much lighter the strokes of a brush make each pixel [side, side]."""
        x, y, noise = self.grid.x, self.grid.y, self.noise
        bend = 6 * noise
        stroke = np.sin((x * 0.5 + y + bend) * 0.55) * np.sin(x * 0.11 + bend)
        return 26 * stroke + 14 * noise

    def _fill(self, colour: np.ndarray, mask: np.ndarray, box: tuple[slice, slice]) -> None:
        """Paint the shape `mask` [h, w] of `box` as this hand shades it."""
        pixels, grid = self.canvas[box], self.grid
        rows = np.flatnonzero(mask.any(axis=1))
        top, height = box[0].start + rows[0], max(rows[-1] + 1 - rows[0], 1)
        down_H1 = (grid.y[box][:, :1] - top) / height
        shade = self.hand.shading
        if shade == "gradient":
            _put(pixels, mask, colour, 22 - 58 * down_H1)
        elif shade == "wash":
            small = Image.fromarray((mask * 255).astype(np.uint8)).reduce(8)
            inner = np.asarray(small.resize(mask.shape[::-1], Image.Resampling.BILINEAR))
            rim = (inner < 200) & mask
            _put(pixels, mask, colour, 16 * self.noise[box] - 20 * rim)
        elif shade == "strokes":
            _put(pixels, mask, colour, self.strokes[box])
        elif shade == "hatch":
            dark = (grid.falling[box] & (down_H1 > 0.35)) | (grid.rising[box] & (down_H1 > 0.7))
            _put(pixels, mask, colour)
            _put(pixels, mask & dark, colour * 0.62)
        elif shade == "dots":
            _put(pixels, mask, colour + 6)
            _put(pixels, mask & (grid.from_dot[box] < 0.5 + 2.9 * down_H1), colour * 0.74)
        elif shade == "blocks":
            lit = grid.diagonal[box] - top < 0.55 * height + 0.3 * self.side
            _put(pixels, mask, colour * 0.78)
            _put(pixels, mask & lit, colour + 14)
        else:
            _put(pixels, mask, colour)

    def _texture(self) -> None:
        """Lay the ground's grain over the finished picture."""
        strength = self.hand.grain * 120
        if not strength:
            return
        grain: np.ndarray
        if self.hand.ground == "canvas":
            grain = strength * 0.5 * self.grid.weave
        elif self.hand.ground == "screen":
            grain = -(strength * (self.grid.y % 6 < 2))
        else:
            grain = self.rng.normal(0, strength, (self.side, self.side)).astype(np.float32)
        for channel in range(3):
            self.canvas[:, :, channel] += grain
