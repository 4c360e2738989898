"""Image extractor: picture files of the catalogue to semantic and style vectors.

Input: names of picture files and an ImageEncoder. Called by embedding/features/pipeline.py.
Shapes: N pictures, S side.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from embedding.features.extractor import batched
from embedding.features.reuse import row_hashes
from embedding.image.config import ImageConfig
from embedding.image.pictures import load_pictures


class ImageExtractor:
    """Semantic and style vectors of pictures, in one pass."""

    column = "image"
    row_hash = "XXH3-128 of the picture's name, size and time of change"

    def __init__(self, encoder: Any, config: ImageConfig, *, image_root: Path, num_threads: int):
        """Args: encoder: an ImageEncoder; num_threads: that decode pictures."""
        self.encoder = encoder
        self.config = config
        self.image_root = image_root.resolve()
        self.num_threads = num_threads
        blank = encoder.encode(np.zeros((1, config.size, config.size, 3), dtype=np.uint8))
        self.dims = {name: blank[name].shape[1] for name in ("semantic", "style")}

    def hashes(self, values: list[str | None]) -> np.ndarray:
        """Return ROW [N]: the hash of each file's name, size and time of change.

        Not the content: reading every picture to find that nothing changed would cost as much as
        decoding does. A picture that is copied without its time is encoded again.
        """
        pieces = [values[start : start + 256] for start in range(0, len(values), 256)]
        with ThreadPoolExecutor(self.num_threads) as pool:
            found = pool.map(lambda names: [self._state(name) for name in names], pieces)
            return row_hashes(state for states in found for state in states)

    def _state(self, name: str | None) -> bytes | None:
        if name is None:
            return None
        try:
            stat = os.stat(os.path.join(self.image_root, name))
        except (OSError, ValueError):
            return f"{name}\0absent".encode()
        return f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()

    def batches(self, values: list[str]) -> list[np.ndarray]:
        """Return int [B] positions, `batch_size` at a time, in order."""
        return list(batched(np.arange(len(values)), self.config.batch_size))

    def load(self, values: list[str]) -> tuple[np.ndarray, list[str | None]]:
        """Return (uint8 [N, S, S, 3] of the usable pictures, a reason or None for each value)."""
        pixels, reasons = load_pictures(
            None, self.image_root, values, self.config.size, self.config.framing
        )
        good = [index for index, reason in enumerate(reasons) if reason is None]
        return (pixels if len(good) == len(reasons) else pixels[good]), reasons

    def encode(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Return {name: float32 [N, D]} of uint8 pictures [N, S, S, 3]."""
        return {name: vectors.numpy() for name, vectors in self.encoder.encode(inputs).items()}
