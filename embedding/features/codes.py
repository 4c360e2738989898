"""Stored rows of a feature table: fp16 numbers, or codes of a product quantiser (Jegou et al. 2011).

    16 bits: float16 [N, E]
    2 or 4:  uint8 [N, S], S = E * bits / 8: a vector, turned into the basis of its table, is cut into S
             parts of 8 / bits numbers, and each part becomes the number of its nearest codeword of 256

A row of zero bytes is a row of zeros in both, an item without a vector: codeword 0 of every part is zero
and no vector's. The basis spreads the variance evenly over the parts (the parametric solution of Ge et
al. 2013), without which parts of no content would take as many bits as the others.

    codebooks/basis.npy       float32 [E, Z], orthonormal columns; Z = S * 8 / bits is E, or a little more
    codebooks/codewords.npy   float32 [S, 256, Z / S]

Called by embedding/features/, by prepare for own vectors, and by bundles; reading needs numpy alone.
Shapes: N rows, E vector width, Z width of a turned vector, S parts, C bytes or numbers of a stored row.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.files import read_array, write_array

CODEBOOKS = "codebooks"
"""Folder of a table's basis and codewords."""
BITS = (16, 4, 2)
"""Bits of a number that forms of stored vectors have."""
CODEWORDS = 256
_FAR = 1e9
"""Numbers in the place of codeword 0, which no vector may take; fp16 ends at 65,504."""


@dataclass(frozen=True)
class Codebooks:
    """A product quantiser of vectors of one width."""

    basis_EZ: NDArray[np.float32]
    codewords_SKD: NDArray[np.float32]

    @property
    def num_parts(self) -> int:
        """Parts S of a vector, a byte each."""
        return len(self.codewords_SKD)

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return 8 // self.codewords_SKD.shape[2]

    @property
    def digest(self) -> str:
        """Hash of basis and codewords."""
        content = self.basis_EZ.tobytes() + self.codewords_SKD.tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write codebooks/ below the folder of a table."""
        (folder / CODEBOOKS).mkdir(exist_ok=True)
        write_array(folder / CODEBOOKS / "basis.npy", self.basis_EZ)
        write_array(folder / CODEBOOKS / "codewords.npy", self.codewords_SKD)

    @staticmethod
    def read(folder: Path, remedy: str) -> "Codebooks":
        """Read codebooks/ below the folder of a table.

        Raises:
            DamagedFileError: a file is missing or broken; says `remedy`.
        """
        names = ("basis.npy", "codewords.npy")
        return Codebooks(*(read_array(folder / CODEBOOKS / name, remedy) for name in names))

    def encode(self, vectors_NE: NDArray) -> NDArray[np.uint8]:
        """Return the codes uint8 [N, S] of vectors [N, E]; only a row of zeros has zero bytes alone."""
        import faiss  # only where vectors are made, not where they are read

        num_parts, _, part_dim = self.codewords_SKD.shape
        quantiser = faiss.ProductQuantizer(num_parts * part_dim, num_parts, 8)
        words_SKD = self.codewords_SKD.copy()
        words_SKD[:, 0] = _FAR
        faiss.copy_array_to_vector(words_SKD.ravel(), quantiser.centroids)
        turned_NZ = vectors_NE.astype(np.float32) @ self.basis_EZ
        codes_NS = quantiser.compute_codes(np.ascontiguousarray(turned_NZ))
        codes_NS[~vectors_NE.any(axis=1)] = 0
        return codes_NS

    def turned(self, codes_NS: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return turned vectors [N, Z] of codes [N, S]."""
        parts_NSD = self.codewords_SKD[np.arange(self.num_parts), codes_NS]
        return parts_NSD.reshape(len(codes_NS), self.basis_EZ.shape[1])

    def decode(self, codes_NS: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Return the vectors float16 [N, E] of codes [N, S]."""
        return (self.turned(codes_NS) @ self.basis_EZ.T).astype(np.float16)


@dataclass(frozen=True)
class RowForm:
    """The form in which vectors of one width are stored: encodes and decodes rows."""

    dim: int
    """Width E of a vector."""
    codebooks: Codebooks | None = None
    """None: fp16."""

    @property
    def dtype(self) -> np.dtype:
        """Type of a stored row's elements."""
        return np.dtype(np.uint8 if self.codebooks else np.float16)

    @property
    def width(self) -> int:
        """Elements C of a stored row."""
        return self.codebooks.num_parts if self.codebooks else self.dim

    @property
    def num_bytes(self) -> int:
        """Bytes of a stored row."""
        return self.width * self.dtype.itemsize

    def zeros(self, num_rows: int) -> NDArray:
        """Return stored rows [N, C] of items without a vector."""
        return np.zeros((num_rows, self.width), dtype=self.dtype)

    def encode(self, vectors_NE: NDArray) -> NDArray:
        """Return vectors [N, E] as they are stored, [N, C]: codes of their fp16 numbers.

        Raises:
            UserError: a vector to be coded is not finite; fp16 is checked when it is written.
        """
        half_NE = np.ascontiguousarray(vectors_NE, dtype=np.float16)
        if not self.codebooks:
            return half_NE
        if not np.isfinite(half_NE).all():
            raise UserError(
                "a vector of inf or nan, too large for float16 or from broken weights; train its encoder "
                "anew (retrain=true)"
            )
        return self.codebooks.encode(half_NE)

    def decode(self, stored_NC: NDArray) -> NDArray[np.float16]:
        """Return the vectors float16 [N, E] of stored rows [N, C]; of fp16 the same array."""
        return self.codebooks.decode(stored_NC) if self.codebooks else stored_NC

    def taken_from(self, stored_NC: NDArray) -> NDArray:
        """Return rows [N, C] of this form; given are rows of it, which stay as they are, or fp16."""
        return stored_NC if stored_NC.dtype == self.dtype else self.encode(stored_NC)
