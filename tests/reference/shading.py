"""Shading of the drawn world written down plainly: a colour for every pixel of the box around a shape."""

import numpy as np
from PIL import Image

from recsys.demo.style import Painter


class PlainPainter(Painter):
    """The painter of recsys/demo/style.py, which shades channel by channel and keeps what repeats."""

    def _fill(self, colour: np.ndarray, mask: np.ndarray, box: tuple[slice, slice]) -> None:
        self.canvas[box][mask] = self._surface(colour, mask, box)[mask]

    def _surface(
        self, colour: np.ndarray, mask: np.ndarray, box: tuple[slice, slice]
    ) -> np.ndarray:
        """Return the colour of every pixel of `box` [h, w, 3]."""
        axis = np.arange(self.side, dtype=np.float32)
        y, x = (part[box] for part in np.meshgrid(axis, axis, indexing="ij"))
        noise = self.noise[box]
        rows = np.flatnonzero(mask.any(axis=1))
        top, height = box[0].start + rows[0], max(rows[-1] + 1 - rows[0], 1)
        down = (y - top) / height
        shade = self.hand.shading
        flat = np.broadcast_to(colour, (*mask.shape, 3))
        if shade == "gradient":
            return colour + (22 - 58 * down)[:, :, None]
        if shade == "wash":
            small = Image.fromarray((mask * 255).astype(np.uint8)).reduce(8)
            inner = np.asarray(small.resize(mask.shape[::-1], Image.Resampling.BILINEAR))
            rim = (inner < 200) & mask
            return colour + (16 * noise - 20 * rim)[:, :, None]
        if shade == "hatch":
            lines = (x + y) % 7 < 1.6
            deep = (x - y) % 7 < 1.6
            dark = (lines & (down > 0.35)) | (deep & (down > 0.7))
            return np.where(dark[:, :, None], colour * 0.62, flat)
        if shade == "dots":
            pitch = 8.0
            radius = 0.5 + 2.9 * down
            shifted = x + (y // pitch % 2) * (pitch / 2)
            distance = np.hypot(shifted % pitch - pitch / 2, y % pitch - pitch / 2)
            return np.where((distance < radius)[:, :, None], colour * 0.74, flat + 6)
        if shade == "blocks":
            lit = (x * 0.6 + y - top) < 0.55 * height + 0.3 * self.side
            return np.where(lit[:, :, None], flat + 14, colour * 0.78)
        if shade == "strokes":
            bend = 6 * noise
            stroke = np.sin((x * 0.5 + y + bend) * 0.55) * np.sin(x * 0.11 + bend)
            return colour + (26 * stroke + 14 * noise)[:, :, None]
        return flat
