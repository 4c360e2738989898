"""Dataset: one split of prepared data, and the ids of its users, items and histories.

In: prepared/ and its manifest. Out: rows as Arrow tables, and ids gathered from
memory-mapped arrays by index arithmetic; nothing here loops over rows in Python. Called by the loader
and evaluation. Shapes: B rows asked for.
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.chain import is_window
from recsys.errors import UserError
from recsys.files import PREPARE_AGAIN, read_array, reading
from recsys.schema import (
    DenseSpec,
    FeatureSpec,
    Manifest,
    end_column,
    history_of,
    weights_column,
)

_FOOTERS = 32
"""Footers of files that a data set keeps; the least lately read one is forgotten."""


class Dataset:
    """One split of prepared data, with the side arrays that its features read."""

    is_one_split = True
    """Whether all rows read the histories of one split."""

    def __init__(
        self,
        prepared: Path,
        manifest: Manifest,
        *,
        split: str,
        features: Sequence[str],
        with_times: bool = False,
        is_trained_on: bool = False,
    ):
        """Choose the columns; a file is opened when it is read.

        Args:
            features: names of the features to deliver, in the order of the batch's keys; dense ones
                among them in the order of its columns.
            with_times: read the time of every row too, if the log has times.
            is_trained_on: whether rows have their sample weights; those of split train always have.

        Raises:
            UserError: unknown feature.
        """
        self.manifest = manifest
        self.prepared = prepared
        self.split = split
        self.spec = manifest.splits[split]
        by_name = {f.name: f for f in manifest.features}
        dense_by_name = {f.name: f for f in manifest.dense}
        known = by_name | dense_by_name
        unknown = [name for name in features if name not in known]
        if unknown:
            raise UserError(
                f"features {', '.join(unknown)}: not in the manifest, which has {', '.join(known)}"
            )
        self.features = [by_name[name] for name in features if name in by_name]
        self.dense = [dense_by_name[name] for name in features if name in dense_by_name]
        self.num_rows = self.spec.num_rows
        self.columns = ["row_id", "label"]
        self.columns += ["user_row"] * bool(manifest.num_user_rows)
        self.columns += ["item_row"] * bool(manifest.num_item_rows)
        # Evaluation weighs all rows alike.
        is_weighted = manifest.has_weights and (is_trained_on or split == "train")
        self.columns += ["sample_weight"] * is_weighted
        has_times = self.spec.timestamp_min is not None
        self.columns += ["timestamp"] * (with_times and has_times)
        self.columns += [end_column(name) for name in self.histories_read]
        self.columns += [f.name for f in self.features if f.source == "interaction"]
        self.columns += [
            weights_column(f.name)
            for f in self.features
            if f.source == "interaction" and f.is_weighted
        ]
        self.columns += [f.name for f in self.dense if f.source == "interaction"]
        self._arrays: dict[str, np.ndarray] = {}
        self._file_starts = np.cumsum([0, *self.spec.file_rows])
        """First row of each file [K + 1], the end of the split included."""
        # A footer takes up to a megabyte, a large log has thousands of files.
        self._footers = functools.lru_cache(maxsize=_FOOTERS)(self._row_groups)

    @property
    def histories_read(self) -> list[str]:
        """Stored sequences that the features read, each once."""
        read = (history_of(f.name) for f in self.features if f.source == "history")
        return list(dict.fromkeys(read))

    def check_files(self, part: int = 0, num_parts: int = 1) -> None:
        """Compare the rows of the split's files with the manifest; none stays open.

        Args:
            part, num_parts: of the files, in the manifest's order, only these are looked at.

        Raises:
            UserError: a file is missing, broken or of another number of rows.
        """
        self.check_rows(0, self.spec.num_rows, part, num_parts)

    def check_rows(self, start: int, stop: int, part: int = 0, num_parts: int = 1) -> None:
        """Compare the files that hold some of the rows [start, stop), as `check_files` does all of them.

        Files without rows are looked at too.
        """
        starts = self._file_starts
        for number in range(part, len(self.spec.files), num_parts):
            first, end = int(starts[number]), int(starts[number + 1])
            if max(first, start) < min(end, stop) or first == end:
                self._row_groups(number)

    def _row_groups(self, number: int) -> tuple[pq.FileMetaData, np.ndarray]:
        """Return a file's footer, and the first row of each row group and the file's end [G + 1]."""
        path, num_rows = self.prepared / self.spec.files[number], self.spec.file_rows[number]
        with reading(path, PREPARE_AGAIN), pq.ParquetFile(path, memory_map=True) as file:
            footer = file.metadata
        if footer.num_rows != num_rows:
            raise UserError(
                f"{path}: has {footer.num_rows:,} rows, the manifest says {num_rows:,}; "
                f"run launch/prepare.py again"
            )
        rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        return footer, np.cumsum([0, *rows])

    def read(self, start: int, stop: int) -> pa.Table:
        """Return rows [start, stop) of the split, as far as it has them, from their row groups alone."""
        starts = self._file_starts
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = min(int(np.searchsorted(starts, stop, side="left")), len(self.spec.files))
        return pa.concat_tables([
            self._read_file(number, max(start - int(starts[number]), 0), stop - int(starts[number]))
            for number in range(first, last)
            if self.spec.file_rows[number]
        ])

    def _read_file(self, number: int, start: int, stop: int) -> pa.Table:
        """Return rows [start, stop) of one file, as far as it has them."""
        footer, starts = self._footers(number)
        stop = min(stop, int(starts[-1]))
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, stop, side="left"))
        path = self.prepared / self.spec.files[number]
        # A reader of its own for each call: threads read at the same time.
        with (
            reading(path, PREPARE_AGAIN),
            pq.ParquetFile(path, memory_map=True, metadata=footer) as file,
        ):
            rows = file.read_row_groups(range(first, last), columns=self.columns, use_threads=False)
        return rows.slice(start - int(starts[first]), stop - start)

    def array(self, name: str, length: int | None = None) -> np.ndarray:
        """Return a memory-mapped side array [length] such as `items/genres.values`.

        Raises:
            UserError: the file is missing, or does not have `length` entries.
        """
        if name not in self._arrays:
            path = self.prepared / f"{name}.npy"
            array = read_array(path, PREPARE_AGAIN, mmap=True)
            if length is not None and len(array) != length:
                raise UserError(
                    f"{path}: has {len(array):,} entries, expected {length:,}; run "
                    f"launch/prepare.py again"
                )
            self._arrays[name] = array
        return self._arrays[name]

    def histories(self, sequence: str = "history") -> tuple[np.ndarray, np.ndarray]:
        """Return the users' sequences that the split's rows read: item rows end to end, and offsets.

        A user's are values[offsets[row] : offsets[row + 1]]; offsets have [U + 1] entries, U being the
        rows of users when the split was made: later users have no row in it.
        """
        history = self.manifest.history
        assert history is not None, "asked for only where there is a history"
        states = (state for state in self.manifest.chain if self.split in state.splits)
        made = next(states, None)
        num_users = made.table_rows["user_id"] if made else self.manifest.num_user_rows
        folder, num_offsets = history.folder(self.split, sequence), num_users + 1
        return self.array(f"{folder}/values"), self.array(f"{folder}/offsets", num_offsets)

    def history_ids(
        self, feature: FeatureSpec, user_row_B: np.ndarray, history_end_B: np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the item rows of a history feature end to end, and how many each row has [B].

        Args:
            history_end_B: leading entries of the user's sequence that each row may see [B].
        """
        longest = self.longest_history(feature)
        sequences, offsets = self.histories(history_of(feature.name))
        starts = np.asarray(offsets[user_row_B])
        ends = starts + history_end_B
        return jagged(sequences, np.maximum(starts, ends - longest), ends)

    def longest_history(self, feature: FeatureSpec) -> int:
        """Return the most items of a history feature that a row has."""
        spec = self.manifest.history
        assert spec is not None, "a history feature comes with a history"
        return spec.lengths[feature.name]

    def side_ids(self, feature: FeatureSpec, rows_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of a user or item feature end to end, and how many each row has [B].

        Args:
            rows_B: rows of the users, or of the items, whose feature it is [B].
        """
        ones = np.ones(len(rows_B), dtype=np.int32)
        if feature.name == f"{feature.source}_id":
            return rows_B, ones
        name = f"{feature.source}s/{feature.name}"
        num_rows = self.num_side_rows(feature.source)
        if not feature.is_list:
            return np.asarray(self.array(f"{name}.values", num_rows)[rows_B]), ones
        values = self.array(f"{name}.values")
        offsets = self.array(f"{name}.offsets", num_rows + 1)
        return jagged(values, np.asarray(offsets[rows_B]), np.asarray(offsets[rows_B + 1]))

    def side_weights(self, feature: FeatureSpec, rows_B: np.ndarray) -> np.ndarray:
        """Return the weights [V] of what `side_ids` returns, of a feature of weighted lists."""
        name = f"{feature.source}s/{feature.name}"
        offsets = self.array(f"{name}.offsets")
        starts, ends = np.asarray(offsets[rows_B]), np.asarray(offsets[rows_B + 1])
        return jagged(self.array(f"{name}.weights"), starts, ends)[0]

    def side_numbers(self, feature: DenseSpec, rows_B: np.ndarray) -> np.ndarray:
        """Return the scaled numbers [B] of a user or item feature, NaN where one is missing.

        Args:
            rows_B: rows of the users, or of the items, whose feature it is [B].
        """
        num_rows = self.num_side_rows(feature.source)
        return np.asarray(self.array(f"{feature.source}s/{feature.name}.values", num_rows)[rows_B])

    def train_count(self, side: str, own: slice = slice(None)) -> np.ndarray | None:
        """Return earlier interactions by user or item row [rows of the side]; None where it has no ids.

        Those of the training split and of the windows before this split: what a model that scores the
        split may know. Drawn negatives are none (`Manifest.is_interaction`).

        Args:
            side: `user` or `item`.
            own: range of the rows that are returned; all of them by default.
        """
        num_rows = self.num_side_rows(side)
        if not num_rows:
            return None
        counts = self.array(f"{side}s/train_count", num_rows)
        return self._before(side, counts, own, is_drawn=False)

    def drawn_count(self) -> np.ndarray | None:
        """Return earlier drawn negatives by item row [num_item_rows]; None without items."""
        num_rows = self.manifest.num_item_rows
        if not num_rows:
            return None
        if (self.prepared / "items" / "drawn_count.npy").is_file():
            counts = self.array("items/drawn_count", num_rows)
            return self._before("item", counts, slice(None), is_drawn=True)
        # Data prepared before the array existed.
        splits = ["train"] if self.manifest.rows_drawn else []
        return self._count("item", splits, slice(None), is_drawn=True)

    def num_side_rows(self, side: str) -> int:
        """Return the rows of users or items, unknown row included; 0 where there are no ids of them."""
        return self.manifest.num_user_rows if side == "user" else self.manifest.num_item_rows

    def _before(self, side: str, counts: np.ndarray, own: slice, *, is_drawn: bool) -> np.ndarray:
        """Return a range of counts without this window and those after it.

        Args:
            counts: of the training split and of all windows, by user or item row.
        """
        names = self.manifest.splits_in_time
        later = [name for name in names[names.index(self.split) :] if is_window(name)]
        return (
            counts[own] - self._count(side, later, own, is_drawn=is_drawn) if later else counts[own]
        )

    def _count(self, side: str, splits: Sequence[str], own: slice, *, is_drawn: bool) -> np.ndarray:
        """Return the rows of splits by user or item row of a range: drawn ones, or all others."""
        start, stop, _ = own.indices(self.num_side_rows(side))
        counts = np.zeros(stop - start, dtype=np.int64)
        columns = ["row_id", f"{side}_row"]
        for name in splits:
            for group in read_columns(self.prepared, self.manifest, name, columns):
                row_id_N, row_N = (group.column(column).to_numpy() for column in columns)
                is_counted_N = self.manifest.is_interaction(row_id_N) != is_drawn
                is_counted_N &= (row_N >= start) & (row_N < stop)
                counts += np.bincount(row_N[is_counted_N] - start, minlength=len(counts))
        return counts


def read_columns(
    prepared: Path, manifest: Manifest, split: str, columns: list[str]
) -> Iterator[pa.Table]:
    """Yield columns of a split, one row group at a time: a log need not fit into memory."""
    yield from (rows for _, rows in read_row_groups(prepared, manifest, split, columns))


def read_row_groups(
    prepared: Path,
    manifest: Manifest,
    split: str,
    columns: list[str],
    *,
    part: int = 0,
    num_parts: int = 1,
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the number of the first row in the split, and columns, of every `num_parts`-th row group.

    Args:
        part: from 0, the first of them.
    """
    start, number = 0, 0
    for name in manifest.splits[split].files:
        path = prepared / name
        with reading(path, PREPARE_AGAIN):
            file = pq.ParquetFile(path, memory_map=True)
        for group in range(file.num_row_groups):
            if number % num_parts == part:
                with reading(path, PREPARE_AGAIN):
                    rows = file.read_row_group(group, columns=columns)
                yield start, rows
            start += file.metadata.row_group(group).num_rows
            number += 1


def as_array(numbers: pa.Array) -> np.ndarray:
    """Return numbers without nulls [N] as an array [N], uncopied.

    pyarrow's own `to_numpy` imports pandas first: 0.3 s before the first batch of every process.
    """
    return np.from_dlpack(numbers)


def jagged(
    values: np.ndarray, starts_B: np.ndarray, ends_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return values[starts[i]:ends[i]] of every i end to end, and the lengths [B].

    Example: values 10 11 12 13, starts (0, 2), ends (1, 4) -> (10, 12, 13), (1, 2).
    """
    index, lengths_B = jagged_index(starts_B, ends_B)
    return np.asarray(values).take(index), lengths_B


def jagged_index(starts_B: np.ndarray, ends_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places starts[i], ..., ends[i] - 1 of every i end to end, and the lengths [B]."""
    lengths_B = np.asarray(ends_B - starts_B)
    kept = np.flatnonzero(lengths_B)
    starts_K, lasts_K = starts_B[kept], ends_B[kept] - 1
    # Steps of 1 within a list, and of the distance to the next one at its first place; summed up they are
    # the indices. np.repeat would be as fast, but keeps all other threads of Python waiting meanwhile.
    index = np.ones(int(lengths_B.sum()), dtype=np.int64)
    if len(kept):
        index[0] = starts_K[0]
        index[np.cumsum(lengths_B[kept])[:-1]] = starts_K[1:] - lasts_K[:-1]
    np.cumsum(index, out=index)
    return index, lengths_B
