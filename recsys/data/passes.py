"""Passes over several splits: their rows together, by their times, or one split after the other.

In: splits of prepared data, and ranges of others. Out: datasets and loaders in the place of those of one
split. Called by recsys/run/assembly.py. Shapes: N rows of a split.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.batch import Batch
from recsys.data.dataset import Dataset, as_array, jagged_index, read_columns
from recsys.data.lanes import BLOCK_ROWS, as_arrow
from recsys.data.loader import Loader
from recsys.data.replay import SplitRange
from recsys.schema import HISTORIES, FeatureSpec, Manifest, end_column, history_of

_PIECE_ROWS = 8 * BLOCK_ROWS
"""Rows in time order that are held at a time; each such piece reads the split once."""

_ROOM = 1 << 40
"""Places of a history: the number of its range stands above them."""


class PooledSplits(Dataset):
    """Rows of several splits, or of ranges of them, one after the other in the place of one split."""

    is_one_split = False

    def __init__(
        self,
        prepared: Path,
        manifest: Manifest,
        *,
        splits: Sequence[str],
        features: Sequence[str],
        replayed: Sequence[SplitRange] = (),
        **kinds: bool,
    ):
        """Open the splits' files.

        Args:
            splits: that are read whole; at least one.
            replayed: ranges of any splits, whose rows follow theirs.
            kinds: `with_times` and `is_trained_on` of Dataset.
        """
        sizes = [(name, manifest.splits[name].num_rows) for name in splits]
        ranges = [SplitRange(split=name, start=0, stop=size) for name, size in sizes]
        self._ranges = [*ranges, *replayed]
        if any(one.split == "train" for one in self._ranges):
            # Rows of train always have their sample weights: those of all splits do.
            kinds = {**kinds, "is_trained_on": True}
        super().__init__(prepared, manifest, split=splits[0], features=features, **kinds)
        self._datasets = [
            Dataset(prepared, manifest, split=one.split, features=features, **kinds)
            for one in self._ranges
        ]
        self._ends = np.cumsum([one.num_rows for one in self._ranges])
        self.num_rows = int(self._ends[-1])

    def check_files(self, part: int = 0, num_parts: int = 1) -> None:
        """Compare the rows of the files of every range with the manifest, as a Dataset does."""
        for dataset, own in zip(self._datasets, self._ranges, strict=True):
            dataset.check_rows(own.start, own.stop, part, num_parts)

    def read(self, start: int, stop: int) -> pa.Table:
        """Return rows [start, stop) of the ranges end to end."""
        tables = []
        for number, (dataset, own) in enumerate(zip(self._datasets, self._ranges, strict=True)):
            end = int(self._ends[number])
            low, high = max(start, end - own.num_rows), min(stop, end)
            if low < high:
                to_file = own.stop - end
                rows = dataset.read(low + to_file, high + to_file)
                tables.append(_with_range(rows, number))
        return pa.concat_tables(tables)

    def history_ids(
        self, feature: FeatureSpec, user_row_B: np.ndarray, history_end_B: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the item rows of a history feature end to end, and how many each row has [B].

        Splits may have sequences of their own; here they stand end to end.

        Args:
            history_end_B: of rows of `read`, with the number of their range.
        """
        range_B, end_B = np.divmod(np.asarray(history_end_B), _ROOM)
        range_B, end_B = (np.broadcast_to(v, user_row_B.shape) for v in (range_B, end_B))
        sequence = history_of(feature.name)
        histories = [dataset.histories(sequence) for dataset in self._datasets]
        bases = np.cumsum([0, *(len(values) for values, _ in histories)])
        starts_B = np.zeros(len(user_row_B), dtype=np.int64)
        for number in np.unique(range_B):
            at = np.flatnonzero(range_B == number)
            starts_B[at] = bases[number] + histories[number][1][user_row_B[at]]
        ends_B = starts_B + end_B
        firsts_B = np.maximum(starts_B, ends_B - self.longest_history(feature))
        index, lengths_B = jagged_index(firsts_B, ends_B)
        items = np.zeros(len(index), dtype=histories[0][0].dtype)
        for number, (values, _) in enumerate(histories):
            is_here = (index >= bases[number]) & (index < bases[number + 1])
            items[is_here] = np.asarray(values).take(index[is_here] - bases[number])
        return items, lengths_B


def _with_range(rows: pa.Table, number: int) -> pa.Table:
    """Return the rows with the number of their range in the ends of their histories, if there are any."""
    for name in set(map(end_column, HISTORIES)).intersection(rows.column_names):
        ends = as_array(rows.column(name).combine_chunks()).astype(np.int64)
        at = rows.column_names.index(name)
        rows = rows.set_column(at, name, as_arrow(ends + number * _ROOM))
    return rows


class TimeOrdered(Dataset):
    """A split in the order of its rows' times; rows of one time keep the stored order.

    The files are in random order. Every row's place in time is held, 8 bytes, and a piece of the rows
    themselves, for which the row groups that hold some of it are read.
    """

    _piece: tuple[int, pa.Table] | None = None
    """Number and rows of the piece that is held."""

    @functools.cached_property
    def _order(self) -> NDArray[np.int64]:
        """Stored rows by time [N]."""
        pieces = read_columns(self.prepared, self.manifest, self.split, ["timestamp"])
        times = [as_array(piece.column(0).combine_chunks()) for piece in pieces]
        return np.argsort(np.concatenate(times), kind="stable")

    def read(self, start: int, stop: int) -> pa.Table:
        """Return rows [start, stop) of the split in time order."""
        parts = []
        for number in range(start // _PIECE_ROWS, -(-stop // _PIECE_ROWS)):
            first = number * _PIECE_ROWS
            low, high = max(start - first, 0), min(stop - first, _PIECE_ROWS)
            parts.append(self._piece_of(number).slice(low, high - low))
        return pa.concat_tables(parts)

    def _piece_of(self, number: int) -> pa.Table:
        held = self._piece
        if held is None or held[0] != number:
            first = number * _PIECE_ROWS
            held = (number, self._read_rows(self._order[first : first + _PIECE_ROWS]))
            self._piece = held
        return held[1]

    def _read_rows(self, rows: NDArray[np.int64]) -> pa.Table:
        """Return stored rows by their numbers [N], in this order."""
        in_file = np.sort(rows)
        tables = []
        for begin in range(0, self.num_rows, BLOCK_ROWS):
            end = min(begin + BLOCK_ROWS, self.num_rows)
            low, high = np.searchsorted(in_file, [begin, end])
            if low < high:
                block = super().read(begin, end)
                tables.append(block.take(as_arrow(in_file[low:high] - begin)))
        return pa.concat_tables(tables).take(as_arrow(np.searchsorted(in_file, rows)))


class LoaderSequence:
    """Loaders of several splits, one after the other in a pass."""

    def __init__(self, loaders: Sequence[Loader]):
        """Take loaders of at least one step each."""
        self.loaders = loaders
        ends = np.cumsum([loader.steps_per_epoch for loader in self.loaders]).tolist()
        self.steps_per_epoch: int = ends[-1]
        self.starts: list[int] = [0, *ends[:-1]]
        """First step of every loader."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of a pass from `start_step` on."""
        for loader, start in zip(self.loaders, self.starts, strict=True):
            if start_step < start + loader.steps_per_epoch:
                yield from loader.batches(epoch, max(0, start_step - start))
