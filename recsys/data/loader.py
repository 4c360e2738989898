"""Loader: a split as Batches, every row once a pass, the same global batch for any number of ranks.

In: a Dataset. Out: Batch objects of ids, numbers and labels. Called by train and evaluate.
Shapes: B rows of this rank's batch, N of them real, F features of ids, K dense features.
"""

import collections
import itertools
import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow.compute as pc
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.batch import Batch, Features
from recsys.data.dataset import Dataset, as_array
from recsys.data.device_arrays import DeviceArrays, RowFeatures
from recsys.data.lanes import Lane, LaneRange, Part
from recsys.data.weighted import normalised
from recsys.schema import FeatureSpec, end_column, history_of, weights_column


@dataclass(frozen=True, kw_only=True)
class ReadAhead:
    """Work of the loader that is done before the step asks for it."""

    num_prefetch: int = 2
    """Batches that a background thread makes ahead; 0: none."""
    num_readers: int = 0
    """Threads that read the lanes' next blocks while the current ones are used, at twice the memory;
    0: a block is read when its first row is due."""
    num_makers: int = 0
    """Threads that put batches together, each one whole; 0: the thread that asks. Order and content of
    the batches do not depend on it."""
    pin_memory: bool = False
    """Leave batches in page-locked memory, from which they are copied to a GPU while it computes."""
    arrays: DeviceArrays | None = None
    """Gather the ids of batches on their device; None: the loader gathers them."""


class Loader:
    """This rank's part of the global batches of a split.

    The split's N rows are cut into `num_lanes` lanes; the parquet is in random order, so a lane is a
    random sample. Global batch k is the k-th slice of every lane, one after the other, and rank r of W
    takes positions [r G / W, (r+1) G / W) of its G: its rows depend on the data, the seed, the epoch, G
    and the lanes, never on the ranks. A rank reads the lanes that its positions touch.

        G = 10 in 3 lanes, rank          0         1         2        3
        lane, place in its slice     0.0 0.1 | 0.2 1.0 1.1 | 1.2 2.0 | 2.1 2.2 2.3

    Every rank's batch has ceil(G / W) rows: what its positions do not fill, or a lane that has run out
    leaves open, is padding of weight 0 at its end. A pass takes as many steps as the longest lane needs,
    or `steps_per_epoch`, which may be raised: batches of padding alone are its end.
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
        ahead: ReadAhead = ReadAhead(),
    ):
        """Divide the split into lanes.

        Args:
            shuffle: permute blocks of a lane and rows in a block anew for each (seed, epoch, lane).
            ahead: threads that read and batch before the step asks.
        """
        self.dataset = dataset
        self.global_batch_size = global_batch_size
        self.world_size = world_size
        self.shuffle = shuffle
        self.seed = seed
        self.ahead = ahead
        self.scalar_features = [
            f.name for f in dataset.features if f.source == "interaction" and not f.is_list
        ]
        """Features whose id, exactly one, stands in the row itself."""
        most_rows = max((table.num_rows for table in dataset.manifest.tables), default=0)
        # Half the bytes to write, to lock and to copy; a GPU makes int64 of them (Features.to).
        fits = ahead.pin_memory and most_rows <= np.iinfo(np.int32).max
        self.id_type: type[np.signedinteger] = np.int32 if fits else np.int64
        self.batch_size = -(-global_batch_size // world_size)
        """Rows of every batch of every rank, padding included."""
        positions = [lane * global_batch_size // num_lanes for lane in range(num_lanes + 1)]
        self.lanes = [
            LaneRange(
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
        self.own: list[tuple[LaneRange, int, int]] = []
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
        return prefetched(made, self.ahead.num_prefetch) if self.ahead.num_prefetch else made

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        parts = self._parts(epoch, start_step)
        if not self.ahead.num_makers:
            for step_parts, global_rows in parts:
                yield self._finished(step_parts, global_rows)
            return
        with ThreadPoolExecutor(self.ahead.num_makers, thread_name_prefix="maker") as makers:
            begun: collections.deque[Future[Batch]] = collections.deque()
            try:
                for step_parts, global_rows in parts:
                    begun.append(makers.submit(self._finished, step_parts, global_rows))
                    if len(begun) > self.ahead.num_makers:
                        yield begun.popleft().result()
                while begun:
                    yield begun.popleft().result()
            finally:
                for future in begun:
                    future.cancel()

    def _parts(self, epoch: int, start_step: int) -> Iterator[tuple[list[Part], int]]:
        """Yield the rows of every batch, and how many its global batch has."""
        if not self.ahead.num_readers:
            yield from self._parts_read_by(epoch, start_step, None)
            return
        with ThreadPoolExecutor(self.ahead.num_readers, thread_name_prefix="reader") as readers:
            yield from self._parts_read_by(epoch, start_step, readers)

    def _parts_read_by(
        self, epoch: int, start_step: int, readers: ThreadPoolExecutor | None
    ) -> Iterator[tuple[list[Part], int]]:
        lanes = [
            Lane(
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
            yield parts, global_rows

    def _finished(self, parts: list[Part], global_rows: int) -> Batch:
        batch = self._batch(parts, global_rows)
        return batch.pin_memory() if self.ahead.pin_memory else batch

    def _rng(self, epoch: int, lane: int) -> np.random.Generator | None:
        return np.random.default_rng([self.seed, epoch, lane]) if self.shuffle else None

    def _batch(self, parts: list[Part], global_rows: int) -> Batch:
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
        made: Features | RowFeatures
        arrays = self.ahead.arrays
        if arrays is not None:
            rows_CN, counts = arrays.rows(columns, ids_FN)
            made = RowFeatures(arrays, torch.from_numpy(rows_CN), counts, self.batch_size)
        elif len(ids_FN) == len(features):
            lengths_FB = np.zeros((len(features), self.batch_size), dtype=np.int32)
            lengths_FB[:, :num_real] = 1
            ids_V = ids_FN.reshape(-1).astype(self.id_type, copy=False)
            made = _key_major(self.scalar_features, ids_V, lengths_FB, [num_real] * len(features))
        else:
            columns |= dict(zip(self.scalar_features, ids_FN, strict=True))
            gathered = {f.name: self._gather(f, parts, columns, users, items) for f in features}
            weights = {
                f.name: self._weights(f, parts, users, items) for f in features if f.is_weighted
            }
            made = features_of(gathered, self.batch_size, self.id_type, weights)
        if isinstance(made, Features) and self.dataset.dense:
            made.dense_BK = self._dense(columns, users, items)
        return Batch(
            features=made,  # type: ignore[arg-type]  # Features once it is on the device
            labels_B=self._padded(columns.get("label", zeros), np.float32),
            weights_B=self._padded(columns.get("sample_weight", np.ones(num_real)), np.float32),
            row_id_B=self._padded(columns.get("row_id", zeros), np.int64, fill=-1),
            user_row_B=self._padded(users, np.int64),
            item_row_B=self._padded(items, np.int64),
            global_rows=global_rows,
            num_ranks=self.world_size,
            num_real=num_real,
            time_B=self._padded(columns["timestamp"], np.int64) if "timestamp" in columns else None,
        )

    def _padded(self, values_N: np.ndarray, dtype: type[np.generic], fill: int = 0) -> torch.Tensor:
        padded_B = np.full(self.batch_size, fill, dtype=dtype)
        padded_B[: len(values_N)] = values_N
        return torch.from_numpy(padded_B)

    def _dense(
        self, columns: dict[str, np.ndarray], users: np.ndarray, items: np.ndarray
    ) -> torch.Tensor:
        """Return the numbers of the N rows, padded with zeros [B, K]."""
        dense_BK = np.zeros((self.batch_size, len(self.dataset.dense)), dtype=np.float32)
        for place, feature in enumerate(self.dataset.dense):
            if feature.source == "interaction":
                # A batch of padding alone has no column.
                numbers_N = columns.get(feature.name, np.zeros(0, np.float32))
            else:
                rows = users if feature.source == "user" else items
                numbers_N = self.dataset.side_numbers(feature, rows)
            dense_BK[: len(numbers_N), place] = numbers_N
        return torch.from_numpy(dense_BK)

    def _gather(
        self,
        feature: FeatureSpec,
        parts: list[Part],
        columns: dict[str, np.ndarray],
        users: np.ndarray,
        items: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a feature's ids end to end and how many each of the N rows has [N]."""
        if feature.source == "history":
            # A batch of padding alone has no column.
            ends = columns.get(end_column(history_of(feature.name)), 0)
            return self.dataset.history_ids(feature, users, ends)
        if feature.source != "interaction":
            return self.dataset.side_ids(feature, users if feature.source == "user" else items)
        if not feature.is_list:
            return columns[feature.name], np.ones(len(users), dtype=np.int32)
        lengths_N = np.zeros(len(users), dtype=np.int32)
        at = 0
        for block, start, stop in parts:
            lists = block.lists[feature.name].slice(start, stop - start)
            upto = at + stop - start
            lengths_N[at:upto] = as_array(pc.list_value_length(lists))
            at = upto
        return _flattened(parts, feature.name, np.int64), lengths_N

    def _weights(
        self, feature: FeatureSpec, parts: list[Part], users: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        """Return the weights [V] of the ids that `_gather` returns for a feature of weighted lists."""
        if feature.source == "interaction":
            return _flattened(parts, weights_column(feature.name), np.float32)
        return self.dataset.side_weights(feature, users if feature.source == "user" else items)


def _flattened(parts: list[Part], name: str, kind: type[np.generic]) -> np.ndarray:
    """Return the elements of a column of lists in all parts end to end [V]."""
    found = [np.zeros(0, dtype=kind)]
    found += [
        as_array(pc.list_flatten(block.lists[name].slice(start, stop - start)))
        for block, start, stop in parts
    ]
    return np.concatenate(found)


def features_of(
    lists: Mapping[str, tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    id_type: type[np.signedinteger] = np.int64,
    weights: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Features:
    """Return the Features of N rows, padded to `batch_size` B rows.

    Args:
        lists: by feature, in the order of the keys, its ids end to end [V] and how many each row has
            [N]: what `Encoder.encode` returns for raw values.
        id_type: in which the ids are kept.
        weights: of the ids of weighted lists [V], by feature. Those of a row are divided by their sum;
            where any feature is weighted, ids of the others have weight 1.
    """
    # Padding has no ids at all: a table's row 0 is the unknown's, not padding's.
    lengths_FB = np.zeros((len(lists), batch_size), dtype=np.int32)
    for number, (_, lengths_N) in enumerate(lists.values()):
        lengths_FB[number, : len(lengths_N)] = lengths_N
    counts = [len(values) for values, _ in lists.values()]
    ids_V = np.empty(sum(counts), dtype=id_type)
    np.concatenate([values for values, _ in lists.values()], out=ids_V, casting="same_kind")
    weights_V = None
    if weights:
        weights_V = np.concatenate([
            normalised(weights[name], lengths_N)
            if name in weights
            else np.ones(len(values), np.float32)
            for name, (values, lengths_N) in lists.items()
        ])
    return _key_major(list(lists), ids_V, lengths_FB, counts, weights_V)


def _key_major(
    keys: list[str],
    ids_V: np.ndarray,
    lengths_FB: np.ndarray,
    counts: list[int],
    weights_V: np.ndarray | None = None,
) -> Features:
    """Return Features of all rows of the first feature, then all rows of the second.

    Args:
        counts: ids of each feature. Noted here, they need not be fetched from a GPU, which would first
            have to finish everything before.
    """
    # A weight has the place of its id: [0.7, 0.3] of a list [1, 4], [1.0] of an id [7].
    sparse = KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(ids_V),
        lengths=torch.from_numpy(lengths_FB.reshape(-1)),
        weights=None if weights_V is None else torch.from_numpy(weights_V),
        stride=lengths_FB.shape[1],
        length_per_key=counts,
        offset_per_key=[0, *itertools.accumulate(counts)],
    )
    return Features(sparse)


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
