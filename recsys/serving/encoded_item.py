"""Encoded item: an added item as one bundle reads it, and its bytes in a store.

    8 bytes   length of the header
    header    JSON: version of the bundle, the card, names, types and shapes of the arrays
    arrays    end to end

Made by additions.py; needs no torch. Shapes: E modality width, V rows of a feature.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedItem:
    """An added item as one bundle reads it."""

    version: str
    """Bundle that encoded it; another one encodes the NewItem anew."""
    card: dict[str, Any]
    """Columns of the catalogue: item_id, title, artist, tags, text."""
    vectors: dict[str, NDArray[np.float32]]
    """Vector [E] by modality."""
    features: dict[str, NDArray]
    """Rows [V], or number [1], by item feature."""
    weights: dict[str, NDArray] = field(default_factory=dict)
    """Weights of the rows of weighted lists [V], by item feature."""

    def to_bytes(self) -> bytes:
        """Return the item as bytes for a store."""
        arrays: dict[str, NDArray] = {f"vectors/{n}": v for n, v in self.vectors.items()}
        arrays |= {f"features/{n}": v for n, v in self.features.items()}
        arrays |= {f"weights/{n}": v for n, v in self.weights.items()}
        header = json.dumps({
            "version": self.version,
            "card": self.card,
            "arrays": [[name, a.dtype.str, list(a.shape)] for name, a in arrays.items()],
        }).encode()
        parts = [len(header).to_bytes(8, "little"), header, *(a.tobytes() for a in arrays.values())]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, content: bytes) -> "EncodedItem":
        """Return the item that `to_bytes` wrote.

        Raises:
            UserError: the content is no such item, or is cut off.
        """
        try:
            place = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:place])
            arrays: dict[str, NDArray] = {}
            for name, dtype, shape in header["arrays"]:
                arrays[name] = np.frombuffer(content, dtype, math.prod(shape), place).reshape(shape)
                place += arrays[name].nbytes
            return cls(
                version=header["version"],
                card=header["card"],
                vectors=_below(arrays, "vectors/"),
                features=_below(arrays, "features/"),
                weights=_below(arrays, "weights/"),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"stored item: {len(content):,} bytes that are no item") from error


def _below(arrays: dict[str, NDArray], prefix: str) -> dict[str, NDArray]:
    """Return the arrays [...] whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
