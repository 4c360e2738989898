"""Text extractor: texts of the catalogue to text vectors.

Input: texts and a TextEncoder. Called by embedding/features/pipeline.py. Shapes: N texts, D width.
"""

from typing import Any

import numpy as np

from embedding.features.reuse import row_hashes


class TextExtractor:
    """Text vectors of items."""

    column = "text"
    row_hash = "XXH3-128 of the text"
    num_threads = 1
    """A tokenizer is for one thread at a time."""

    def __init__(self, encoder: Any):
        """Args: encoder: a TextEncoder."""
        self.encoder = encoder
        self.dims = {"text": len(encoder.mean)}

    def hashes(self, values: list[str | None]) -> np.ndarray:
        """Return ROW [N]: the hash of each text; 0 for an empty one."""
        return row_hashes(text.encode() if text else None for text in values)

    def batches(self, values: list[str]) -> list[np.ndarray]:
        """Return int [B] positions of texts of similar length in tokens, the longest first."""
        return self.encoder.batches(values)

    def load(self, values: list[str]) -> tuple[Any, list[str | None]]:
        """Return (token ids and mask of the network, None for each text): every text is usable."""
        return self.encoder.tokens(values), [None] * len(values)

    def encode(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return {"text": float32 [N, D]} of one batch of tokens."""
        return {"text": self.encoder.scaled(self.encoder.vectors(inputs))}
