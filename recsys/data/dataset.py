"""Prepared parquet to Batches: every row once a pass, the same global batch for any number of ranks.

What enters: prepared/ and its manifest. What leaves: Batch objects of ids and labels. Called by train
and evaluate. Nothing here loops over rows in Python; users', items' and history's lists are gathered
from recsys.errors import UserError
from memory-mapped arrays by index arithmetic. Shapes: B rows of this rank's batch, F features.
"""

import functools
import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.batch import Batch
from recsys.errors import UserError
from recsys.files import PREPARE_AGAIN, read_array, reading
from recsys.schema import FeatureSpec, Manifest

BLOCK_ROWS = 131_072
"""Rows a lane shuffles at a time: what a rank holds in memory per lane."""


class Dataset:
    """One split of prepared data, with the side arrays that its features read."""

    def __init__(self, prepared: Path, manifest: Manifest, *, split: str, features: Sequence[str]):
        """Open the files, memory-mapped.

        Args:
            features: names of the features to deliver, in the order of the batch's keys.

        Raises:
            UserError: unknown feature; a file is missing or does not have the manifest's rows.
        """
        self.manifest = manifest
        self.prepared = prepared
        self.split = split
        self.spec = manifest.splits[split]
        by_name = {f.name: f for f in manifest.features}
        unknown = [name for name in features if name not in by_name]
        if unknown:
            raise UserError(
                f"features {', '.join(unknown)}: not in the manifest, which has {', '.join(by_name)}"
            )
        self.features = [by_name[name] for name in features]
        self.num_rows = self.spec.num_rows
        self.columns = ["row_id", "label"]
        self.columns += ["user_row"] * bool(manifest.num_user_rows)
        self.columns += ["item_row"] * bool(manifest.num_item_rows)
        self.columns += ["history_end"] * any(f.source == "history" for f in self.features)
        self.columns += [f.name for f in self.features if f.source == "interaction"]
        self._arrays: dict[str, np.ndarray] = {}

    @functools.cached_property
    def _parts(self) -> list[pq.ParquetFile]:
        parts = []
        for name, num_rows in zip(self.spec.files, self.spec.file_rows, strict=True):
            path = self.prepared / name
            with reading(path, PREPARE_AGAIN):
                part = pq.ParquetFile(path, memory_map=True)
            if part.metadata.num_rows != num_rows:
                raise UserError(
                    f"{path}: has {part.metadata.num_rows:,} rows, the manifest says {num_rows:,}; "
                    f"run launch/prepare.py again"
                )
            parts.append(part)
        return parts

    @functools.cached_property
    def _row_groups(self) -> tuple[list[tuple[int, int]], np.ndarray]:
        """(part, row group in it) in reading order, and the first row of each."""
        groups, counts = [], []
        for number, part in enumerate(self._parts):
            for group in range(part.num_row_groups):
                groups.append((number, group))
                counts.append(part.metadata.row_group(group).num_rows)
        return groups, np.cumsum([0, *counts[:-1]])

    def read(self, start: int, stop: int) -> pa.Table:
        """Return rows [start, stop) of the split, reading only the row groups that hold them."""
        groups, starts = self._row_groups
        first = int(np.searchsorted(starts, start, side="right")) - 1
        last = int(np.searchsorted(starts, stop, side="left"))
        tables = []
        for part, members in itertools.groupby(groups[first:last], key=lambda g: g[0]):
            with reading(self.prepared / self.spec.files[part], PREPARE_AGAIN):
                tables.append(
                    self._reader(part).read_row_groups(
                        [group for _, group in members], columns=self.columns, use_threads=False
                    )
                )
        return pa.concat_tables(tables).slice(start - int(starts[first]), stop - start)

    def _reader(self, part: int) -> pq.ParquetFile:
        """Return a reader of its own for each call: threads read at the same time."""
        known = self._parts[part].metadata
        return pq.ParquetFile(
            self.prepared / self.spec.files[part], memory_map=True, metadata=known
        )

    def array(self, name: str, length: int | None = None) -> np.ndarray:
        """Return a memory-mapped side array such as `items/genres.values`.

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

    def histories(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sequences that the split's rows read end to end, and where each user's begins."""
        history = self.manifest.history
        assert history is not None, "asked for only where there is a history"
        folder, num_offsets = history.folder(self.split), self.manifest.num_user_rows + 1
        return self.array(f"{folder}/values"), self.array(f"{folder}/offsets", num_offsets)

    def train_count(self) -> np.ndarray | None:
        """Return training interactions by item row [num_item_rows]; None where there are no items.

        Drawn negatives are none (`Manifest.is_interaction`).
        """
        num_rows = self.manifest.num_item_rows
        return self.array("items/train_count", num_rows) if num_rows else None

    def drawn_count(self) -> np.ndarray | None:
        """Return drawn training negatives by item row [num_item_rows]; None without items."""
        num_rows = self.manifest.num_item_rows
        if not num_rows:
            return None
        if (self.prepared / "items" / "drawn_count.npy").is_file():
            return self.array("items/drawn_count", num_rows)
        # Data prepared before the array existed.
        counts = np.zeros(num_rows, dtype=np.int64)
        if self.manifest.rows_drawn:
            for group in read_columns(
                self.prepared, self.manifest, "train", ["row_id", "item_row"]
            ):
                is_drawn = ~self.manifest.is_interaction(group.column("row_id").to_numpy())
                items = group.column("item_row").to_numpy()
                counts += np.bincount(items[is_drawn], minlength=num_rows)
        return counts


def read_columns(
    prepared: Path, manifest: Manifest, split: str, columns: list[str]
) -> Iterator[pa.Table]:
    """Yield columns of a split, one row group at a time: a log need not fit into memory."""
    for name in manifest.splits[split].files:
        path = prepared / name
        with reading(path, PREPARE_AGAIN):
            part = pq.ParquetFile(path, memory_map=True)
        for group in range(part.num_row_groups):
            with reading(path, PREPARE_AGAIN):
                rows = part.read_row_group(group, columns=columns)
            yield rows


class Loader:
    """This rank's part of the global batches of a split.

    The split's N rows are cut into `num_lanes` lanes; the parquet is in random order, so a lane is a
    random sample. Global batch k is the k-th slice of every lane, one after the other, and rank r of W
    takes positions [r G / W, (r+1) G / W) of its G: its rows depend on the data, the seed, the epoch, G
    and the lanes, never on the ranks. A rank reads the lanes that its positions touch.

        G = 10 in 3 lanes, rank          0         1         2        3
        lane, place in its slice     0.0 0.1 | 0.2 1.0 1.1 | 1.2 2.0 | 2.1 2.2 2.3

    Every rank's batch has ceil(G / W) rows: what its positions do not fill, or a lane that has run out
    leaves open, is padding of weight 0 at its end. A pass takes as many steps as the longest lane needs.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch_size: int,
        rank: int,
        world_size: int,
        num_lanes: int,
        shuffle: bool,
        seed: int,
        num_prefetch: int = 2,
        pin_memory: bool = False,
        num_readers: int = 0,
    ):
        """Lay out the lanes.

        Args:
            shuffle: permute blocks of a lane and rows in a block anew for each (seed, epoch, lane).
            num_prefetch: batches a background thread prepares ahead; 0: none.
            pin_memory: leave batches in page-locked memory, from which they travel to a GPU while
                it computes.
            num_readers: threads that read the lanes' next blocks while these are handed out; twice
                the memory. 0: a block is read when its first row is due.
        """
        self.dataset = dataset
        self.global_batch_size = global_batch_size
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.num_prefetch = num_prefetch
        self.pin_memory = pin_memory
        self.num_readers = num_readers
        self.scalar_features = [
            f.name for f in dataset.features if f.source == "interaction" and not f.is_list
        ]
        """Features whose id, exactly one, stands in the row itself."""
        self.batch_size = -(-global_batch_size // world_size)
        """Rows of every batch of every rank, padding included."""
        positions = [lane * global_batch_size // num_lanes for lane in range(num_lanes + 1)]
        self.lanes = [
            _LaneRange(
                lane=lane,
                # As long as its slice is wide, so that all lanes end together.
                start=low * dataset.num_rows // global_batch_size,
                stop=high * dataset.num_rows // global_batch_size,
                width=high - low,
            )
            for lane, (low, high) in enumerate(itertools.pairwise(positions))
            if high > low
        ]
        self.steps_per_epoch = max(-(-(r.stop - r.start) // r.width) for r in self.lanes)
        first = rank * global_batch_size // world_size
        last = (rank + 1) * global_batch_size // world_size
        self.own: list[tuple[_LaneRange, int, int]] = []
        """Lanes this rank reads, each with the part of its slice that is this rank's."""
        for lane_range in self.lanes:
            position = positions[lane_range.lane]
            low = max(0, first - position)
            high = min(lane_range.width, last - position)
            if low < high:
                self.own.append((lane_range, low, high))

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's batches of a pass from `start_step` on; earlier blocks are not read."""
        made = self._batches(epoch, start_step)
        return prefetched(made, self.num_prefetch) if self.num_prefetch else made

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        if not self.num_readers:
            yield from self._batches_of(epoch, start_step, None)
            return
        with ThreadPoolExecutor(self.num_readers, thread_name_prefix="reader") as readers:
            yield from self._batches_of(epoch, start_step, readers)

    def _batches_of(
        self, epoch: int, start_step: int, readers: ThreadPoolExecutor | None
    ) -> Iterator[Batch]:
        lanes = [
            _Lane(
                self.dataset,
                lane_range,
                self._rng(epoch, lane_range.lane),
                low=low,
                high=high,
                scalar_features=self.scalar_features,
                readers=readers,
            )
            for lane_range, low, high in self.own
        ]
        if readers is not None:
            for lane in lanes:
                lane.read_ahead(start_step)
        for step in range(start_step, self.steps_per_epoch):
            parts = [part for lane in lanes for part in lane.take(step)]
            global_rows = sum(
                max(0, min(r.width, r.stop - r.start - step * r.width)) for r in self.lanes
            )
            batch = self._batch(parts, global_rows)
            yield batch.pin_memory() if self.pin_memory else batch

    def _rng(self, epoch: int, lane: int) -> np.random.Generator | None:
        return np.random.default_rng([self.seed, epoch, lane]) if self.shuffle else None

    def _batch(self, parts: "list[_Part]", global_rows: int) -> Batch:
        num_real = sum(stop - start for _, start, stop in parts)
        ids_FN = np.zeros((len(self.scalar_features), num_real), dtype=np.int64)
        columns: dict[str, np.ndarray] = {}
        at = 0
        for block, start, stop in parts:
            upto = at + stop - start
            ids_FN[:, at:upto] = block.ids_FN[:, start:stop]
            for name, column in block.columns.items():
                if name not in columns:
                    columns[name] = np.zeros(num_real, dtype=column.dtype)
                columns[name][at:upto] = column[start:stop]
            at = upto
        zeros = np.zeros(num_real, dtype=np.int64)
        users, items = columns.get("user_row", zeros), columns.get("item_row", zeros)
        features = self.dataset.features
        # Padding has no ids at all: a table's row 0 is the unknown's, not padding's.
        lengths_FB = np.zeros((len(features), self.batch_size), dtype=np.int32)
        if len(ids_FN) == len(features):
            lengths_FB[:, :num_real] = 1
            flat = ids_FN.reshape(-1)
        else:
            columns |= dict(zip(self.scalar_features, ids_FN, strict=True))
            values = []
            for number, feature in enumerate(features):
                feature_values, lengths_N = self._gather(feature, parts, columns, users, items)
                values.append(feature_values.astype(np.int64, copy=False))
                lengths_FB[number, :num_real] = lengths_N
            flat = np.concatenate(values)
        # Key-major: all rows of the first feature, then all rows of the second.
        sparse = KeyedJaggedTensor(
            keys=[f.name for f in features],
            values=torch.from_numpy(flat),
            lengths=torch.from_numpy(lengths_FB.reshape(-1)),
        )
        return Batch(
            sparse=sparse,
            labels_B=self._padded(columns.get("label", zeros), np.float32),
            weights_B=self._padded(np.ones(num_real), np.float32),
            row_id_B=self._padded(columns.get("row_id", zeros), np.int64, fill=-1),
            user_row_B=self._padded(users, np.int64),
            item_row_B=self._padded(items, np.int64),
            global_rows=global_rows,
            num_ranks=self.world_size,
            num_real=num_real,
        )

    def _padded(self, values_N: np.ndarray, dtype: type[np.generic], fill: int = 0) -> torch.Tensor:
        padded_B = np.full(self.batch_size, fill, dtype=dtype)
        padded_B[: len(values_N)] = values_N
        return torch.from_numpy(padded_B)

    def _gather(
        self,
        feature: FeatureSpec,
        parts: "list[_Part]",
        columns: dict[str, np.ndarray],
        users: np.ndarray,
        items: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a feature's rows and how many each example has."""
        ones = np.ones(len(users), dtype=np.int32)
        dataset = self.dataset
        if feature.source == "interaction":
            if not feature.is_list:
                return columns[feature.name], ones
            lengths = np.zeros(len(users), dtype=np.int32)
            found, at = [np.zeros(0, dtype=np.int64)], 0
            for block, start, stop in parts:
                lists = block.lists[feature.name].slice(start, stop - start)
                upto = at + stop - start
                lengths[at:upto] = _as_array(pc.list_value_length(lists))
                found.append(_as_array(pc.list_flatten(lists)))
                at = upto
            return np.concatenate(found), lengths
        if feature.source == "history":
            spec = dataset.manifest.history
            assert spec is not None, "a history feature comes with a history"
            longest = spec.max_length if feature.name == "history" else spec.recent_length
            sequences, offsets = dataset.histories()
            starts = np.asarray(offsets[users])
            # A batch of padding alone has no column.
            ends = starts + columns.get("history_end", 0)
            return jagged(sequences, np.maximum(starts, ends - longest), ends)
        keys = users if feature.source == "user" else items
        if feature.name == f"{feature.source}_id":
            return keys, ones
        name = f"{feature.source}s/{feature.name}"
        is_user, manifest = feature.source == "user", dataset.manifest
        num_rows = manifest.num_user_rows if is_user else manifest.num_item_rows
        if not feature.is_list:
            return np.asarray(dataset.array(f"{name}.values", num_rows)[keys]), ones
        values = dataset.array(f"{name}.values")
        offsets = dataset.array(f"{name}.offsets", num_rows + 1)
        return jagged(values, np.asarray(offsets[keys]), np.asarray(offsets[keys + 1]))


class _Block:
    """Rows in memory, as a batch takes them: slices of arrays, no work for each column and row."""

    def __init__(self, rows: pa.Table, scalar_features: Sequence[str], order: np.ndarray | None):
        """Args: order: rows to keep, in this order; None: all as they are."""

        def ordered(name: str) -> np.ndarray:
            values = _as_array(rows.column(name).combine_chunks())
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
                self.lists[name] = lists if order is None else lists.take(_as_arrow(order))
            elif name not in scalar_features:
                self.columns[name] = ordered(name)


_Part = tuple[_Block, int, int]
"""Rows [start, stop) of a block."""


@dataclass(frozen=True, kw_only=True)
class _LaneRange:
    """A lane: rows [start, stop) of the split, of which every global batch takes the next `width`."""

    lane: int
    start: int
    stop: int
    width: int


class _Lane:
    """A lane's rows in blocks and, with `rng`, in shuffled order; of every slice the places [low, high).

    Of a block only these places are kept: several ranks that share a lane each read it whole, and
    together hold it once.
    """

    def __init__(
        self,
        dataset: Dataset,
        lane_range: _LaneRange,
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
        self.held: tuple[int, _Block] | None = None
        self.ahead: tuple[int, Future[_Block]] | None = None

    def take(self, step: int) -> list[_Part]:
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

    def _block(self, index: int) -> _Block:
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

    def _read(self, index: int) -> _Block:
        rows = self.dataset.read(*self.blocks[index])
        seed = self.seeds[index]
        order = None if seed is None else np.random.default_rng(seed).permutation(rows.num_rows)
        if self.high - self.low < self.width:
            order = np.arange(rows.num_rows) if order is None else order
            places = (self.begins[index] + np.arange(rows.num_rows)) % self.width
            order = order[(places >= self.low) & (places < self.high)]
        return _Block(rows, self.scalar_features, order)


def _as_array(numbers: pa.Array) -> np.ndarray:
    """Return numbers without nulls as an array, uncopied.

    pyarrow's own `to_numpy` imports pandas first: 0.3 s before the first batch of every process.
    """
    return np.from_dlpack(numbers)


def _as_arrow(order: np.ndarray) -> pa.Array:
    """Return int64 numbers as an Arrow array; `pa.array` would import pandas, see `_as_array`."""
    return pa.Array.from_buffers(pa.int64(), len(order), [None, pa.py_buffer(order)])


def jagged(
    values: np.ndarray, starts_B: np.ndarray, ends_B: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return values[starts[i]:ends[i]] of every i end to end, and the lengths [B].

    Example: values 10 11 12 13, starts (0, 2), ends (1, 4) -> (10, 12, 13), (1, 2).
    """
    lengths_B = np.asarray(ends_B - starts_B)
    firsts_B = np.cumsum(lengths_B) - lengths_B
    index = np.repeat(starts_B - firsts_B, lengths_B) + np.arange(int(lengths_B.sum()))
    return np.asarray(values[index]), lengths_B


def prefetched(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """Yield the same batches, made up to `depth` ahead by a background thread.

    An error in the thread is raised in the consumer; closing the generator ends the thread.
    """
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def hand_over(thing: Batch | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put(thing, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                hand_over(batch)
                if stopped.is_set():
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (thing := ready.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    finally:
        stopped.set()
        thread.join()
