"""Lanes: the shuffled reading order of a split, of which each rank keeps its places.

In: a Dataset and ranges of its rows. Out: slices of blocks in memory. Called by the
loader. Shapes: F features, N rows of a block.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys.data.dataset import Dataset, as_array

BLOCK_ROWS = 131_072
"""Rows a lane shuffles at a time: what a rank holds in memory per lane."""


class Block:
    """Rows in memory, as a batch takes them: slices of arrays, no work for each column and row."""

    def __init__(self, rows: pa.Table, scalar_features: Sequence[str], order: np.ndarray | None):
        """Take N rows; `order`: which to keep, in this order [N]; None: all as they are."""

        def ordered(name: str) -> np.ndarray:
            values = as_array(rows.column(name).combine_chunks())
            return values if order is None else values.take(order)

        ids = [ordered(name) for name in scalar_features]
        num_rows = rows.num_rows if order is None else len(order)
        self.ids_FN = np.stack(ids) if ids else np.zeros((0, num_rows), dtype=np.int64)
        """Features with one id a row, in the order of `scalar_features`."""
        self.columns: dict[str, np.ndarray] = {}
        """The other columns with one value a row."""
        self.lists: dict[str, pa.Array] = {}
        for name in rows.column_names:
            if pa.types.is_list(rows.schema.field(name).type):
                lists = rows.column(name).combine_chunks()
                self.lists[name] = lists if order is None else lists.take(as_arrow(order))
            elif name not in scalar_features:
                self.columns[name] = ordered(name)


Part = tuple[Block, int, int]
"""Rows [start, stop) of a block."""


@dataclass(frozen=True, kw_only=True)
class LaneRange:
    """A lane: rows [start, stop) of the split, of which every global batch takes the next `width`."""

    lane: int
    start: int
    stop: int
    width: int


class Lane:
    """A lane's rows in blocks and, with `rng`, in shuffled order; of every slice the places [low, high).

    Only these places of a block are kept: several ranks that share a lane each read it whole, and
    together hold it once.
    """

    def __init__(
        self,
        dataset: Dataset,
        lane_range: LaneRange,
        rng: np.random.Generator | None,
        *,
        low: int,
        high: int,
        scalar_features: Sequence[str],
        readers: ThreadPoolExecutor | None,
    ):
        self.dataset = dataset
        self.width = lane_range.width
        self.low = low
        self.high = high
        self.scalar_features = scalar_features
        self.readers = readers
        stop = lane_range.stop
        blocks = [(b, min(b + BLOCK_ROWS, stop)) for b in range(lane_range.start, stop, BLOCK_ROWS)]
        order = np.arange(len(blocks)) if rng is None else rng.permutation(len(blocks))
        self.blocks = [blocks[i] for i in order]
        # A seed per block, so that skipping a block does not change the order of the next.
        self.seeds = [None if rng is None else int(rng.integers(1 << 62)) for _ in blocks]
        self.begins = np.cumsum([0, *(b - a for a, b in self.blocks)])
        """Where each block begins in the lane's order, and where the last one ends."""
        # The same, counting kept rows alone.
        slices, places = np.divmod(self.begins, self.width)
        self.positions = slices * (high - low) + np.clip(places - low, 0, high - low)
        self.held: tuple[int, Block] | None = None
        self.ahead: tuple[int, Future[Block]] | None = None

    def take(self, step: int) -> list[Part]:
        """Return the kept rows of a step's slice as parts of blocks; fewer at the lane's end."""
        low, high = step * (self.high - self.low), (step + 1) * (self.high - self.low)
        parts = []
        for index in range(self._holding(low), len(self.blocks)):
            begin, end = int(self.positions[index]), int(self.positions[index + 1])
            if begin >= high:
                break
            if end > low:
                parts.append((self._block(index), max(low, begin) - begin, min(high, end) - begin))
        return parts

    def read_ahead(self, step: int) -> None:
        """Begin to read the block that holds the first row of a step's slice."""
        self._begin(self._holding(step * (self.high - self.low)))

    def _holding(self, position: int) -> int:
        return max(0, int(np.searchsorted(self.positions, position, side="right")) - 1)

    def _block(self, index: int) -> Block:
        if self.held is None or self.held[0] != index:
            if self.ahead is not None and self.ahead[0] == index:
                block = self.ahead[1].result()
            else:
                block = self._read(index)
            self.held = (index, block)
            self._begin(index + 1)
        return self.held[1]

    def _begin(self, index: int) -> None:
        if self.readers is not None and index < len(self.blocks):
            self.ahead = (index, self.readers.submit(self._read, index))

    def _read(self, index: int) -> Block:
        rows = self.dataset.read(*self.blocks[index])
        seed = self.seeds[index]
        order = None if seed is None else np.random.default_rng(seed).permutation(rows.num_rows)
        if self.high - self.low < self.width:
            order = np.arange(rows.num_rows) if order is None else order
            places = (self.begins[index] + np.arange(rows.num_rows)) % self.width
            order = order[(places >= self.low) & (places < self.high)]
        return Block(rows, self.scalar_features, order)


def as_arrow(order_N: np.ndarray) -> pa.Array:
    """Return int64 numbers [N] as an Arrow array; `pa.array` would import pandas, see `as_array`."""
    return pa.Array.from_buffers(pa.int64(), len(order_N), [None, pa.py_buffer(order_N)])
