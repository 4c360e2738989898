"""Exported embedding tables: rows of int8 with scale and offset, of fp16 or fp32, memory-mapped.

    tables/<name>.values.npy        uint8, float16 or float32 [N, D]
    tables/<name>.scales.npy        float32 [N, 2]: scale and offset of a row of uint8
    tables/<name>.first_order.npy   float32 [N]: first-order weights, where the model has them
    tables/<name>.ids.npy           int32 [I]: row of every id of the vocabulary, where the table has a
                                    fixed capacity; absent: id i has row i

TableWriter takes blocks of rows in order, so that a table larger than memory can be exported.
Shapes: N rows of a table, D width, I rows of its vocabulary, V ids of all rows asked for, B rows asked
for.
"""

from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.array_headers import one_header_at_a_time
from recsys.bundle.spec import EXPORT_AGAIN
from recsys.files import new_array, read_array

ID_MAP = ".ids.npy"
"""End of the name of a table's id map."""
_DTYPES = {"int8": np.uint8, "fp16": np.float16, "fp32": np.float32}


def mapped(path: Path) -> torch.Tensor:
    """Return a .npy file as a tensor whose pages are read when they are used.

    Raises:
        DamagedFileError: it is missing or broken; the message names it.
    """
    values = read_array(path, EXPORT_AGAIN, mmap=True)
    if not values.size:  # an empty file cannot be mapped
        return torch.from_numpy(np.zeros(values.shape, values.dtype))
    # Copy on write, since torch takes no array that is read-only; nobody writes to it.
    with one_header_at_a_time():
        return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


class QuantisedTable:
    """One table, read."""

    def __init__(self, folder: Path, name: str):
        """Map the files of a table below `tables/`.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self.values_ND = mapped(folder / f"{name}.values.npy")
        self.scales_N2: torch.Tensor | None = None
        if self.values_ND.dtype == torch.uint8:
            self.scales_N2 = mapped(folder / f"{name}.scales.npy")
        file = folder / f"{name}.first_order.npy"
        self.first_order_N = mapped(file) if file.is_file() else None
        file = folder / f"{name}{ID_MAP}"
        self._id_map_I = mapped(file) if file.is_file() else None

    @property
    def num_rows(self) -> int:
        """Rows of the vocabulary I, unknown row 0 included."""
        return (self.values_ND if self._id_map_I is None else self._id_map_I).shape[0]

    @property
    def dim(self) -> int:
        """Width D without the first-order weight."""
        return self.values_ND.shape[1]

    def rows(self, rows_V: torch.Tensor) -> torch.Tensor:
        """Return the vectors of ids as float32 [V, D].

        Args:
            rows_V: rows of the vocabulary, int64 [V].
        """
        return self._own_rows(self._places(rows_V))

    def _places(self, rows_V: torch.Tensor) -> torch.Tensor:
        """Return the rows of the table that ids have, int64 [V]."""
        if self._id_map_I is None:
            return rows_V
        return self._id_map_I.index_select(0, rows_V).long()

    def _own_rows(self, rows_V: torch.Tensor) -> torch.Tensor:
        """Return rows of the table as float32 [V, D]."""
        values_VD = self.values_ND.index_select(0, rows_V).float()
        if self.scales_N2 is not None:
            scales_V2 = self.scales_N2.index_select(0, rows_V)
            values_VD = torch.addcmul(scales_V2[:, 1:], values_VD, scales_V2[:, :1])
        return values_VD

    def pool(
        self,
        rows_V: torch.Tensor,
        lengths_B: torch.Tensor | None,
        weights_V: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (vectors [B, D], first-order weights [B]) of rows end to end.

        Args:
            lengths_B: ids of each list, whose mean is taken (an empty one is zero); None: every row
                has one id, and V is B.
            weights_V: of a weighted mean; a list whose weights are all 0 is zero. None: all are 1.
        """
        rows_V = self._places(rows_V)
        values_VD = self._own_rows(rows_V)
        if self.first_order_N is None:
            first_V = values_VD.new_zeros(rows_V.shape[0])
        else:
            first_V = self.first_order_N.index_select(0, rows_V)
        if lengths_B is None:
            return values_VD, first_V
        num_rows = lengths_B.shape[0]
        row_V = torch.repeat_interleave(lengths_B)
        divisor_B = lengths_B.clamp_min(1).float()
        if weights_V is not None:
            values_VD, first_V = values_VD * weights_V[:, None], first_V * weights_V
            divisor_B = torch.zeros(num_rows).index_add_(0, row_V, weights_V)
            divisor_B = divisor_B.masked_fill(divisor_B == 0, 1.0)
        sums_BD = values_VD.new_zeros(num_rows, self.dim).index_add_(0, row_V, values_VD)
        first_B = values_VD.new_zeros(num_rows).index_add_(0, row_V, first_V)
        return sums_BD / divisor_B[:, None], first_B / divisor_B


class TableWriter:
    """One table, written block by block; a context manager."""

    def __init__(self, folder: Path, name: str, *, num_rows: int, precision: str):
        """Nothing is written before the first block.

        Args:
            folder: `tables/` of a bundle in the making.
            precision: `int8`, `fp16` or `fp32`.
        """
        self._stem = folder / name
        self._num_rows = num_rows
        self._precision = precision
        self._next = 0
        self._arrays: dict[str, np.memmap] = {}

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for array in self._arrays.values():
            array.flush()
        if kind is None:
            assert self._next == self._num_rows, "every row is written once"

    def write(self, values_BD: NDArray[np.float32], first_order_B: NDArray | None) -> None:
        """Append rows [B, D] and their first-order weights [B]; None where the model has none."""
        block = slice(self._next, self._next + len(values_BD))
        if self._precision == "int8":
            quantised_BD, scales_B2 = quantise(values_BD)
            self._array("values", np.uint8, values_BD.shape[1:])[block] = quantised_BD
            self._array("scales", np.float32, (2,))[block] = scales_B2
        else:
            dtype = _DTYPES[self._precision]
            self._array("values", dtype, values_BD.shape[1:])[block] = values_BD.astype(dtype)
        if first_order_B is not None:
            self._array("first_order", np.float32, ())[block] = first_order_B
        self._next = block.stop

    def _array(self, part: str, dtype: type, shape: tuple[int, ...]) -> np.memmap:
        if part not in self._arrays:
            path = self._stem.with_name(f"{self._stem.name}.{part}.npy")
            self._arrays[part] = new_array(path, dtype, (self._num_rows, *shape))
        return self._arrays[part]


def quantise(
    values_BD: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return rows [B, D] as numbers 0 .. 255, and scale and offset of each row [B, 2].

    A value is offset + scale * number, off by at most half the scale: 1/510 of its row's range.
    """
    low_B = (
        values_BD.min(axis=1, initial=np.inf) if values_BD.shape[1] else np.zeros(len(values_BD))
    )
    high_B = values_BD.max(axis=1, initial=-np.inf) if values_BD.shape[1] else low_B
    scale_B = (high_B - low_B).astype(np.float32) / np.float32(255)
    divisor_B = np.where(scale_B > 0, scale_B, 1)
    numbers_BD = np.rint((values_BD - low_B[:, None]) / divisor_B[:, None])
    scales_B2 = np.stack([scale_B, low_B], axis=1).astype(np.float32)
    return np.clip(numbers_BD, 0, 255).astype(np.uint8), scales_B2
