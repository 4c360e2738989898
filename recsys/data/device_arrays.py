"""Device arrays: features of users and items and histories, held by a GPU, which gathers a batch's ids.

A batch then travels as its rows: users, items, lengths of histories. Built by recsys/run/assembly.py for
training; the loader makes RowFeatures of it. Shapes: C columns, N real rows of a batch, B rows with
padding, F features, V ids.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from recsys.batch import Features
from recsys.data.dataset import Dataset
from recsys.schema import HISTORIES, FeatureSpec, Manifest, end_column, history_of

USER, ITEM = range(2)
"""First columns of a batch's rows; behind them how much of each history a row may see, and its ids."""


def can_hold(dataset: Dataset) -> bool:
    """Return whether every feature is one id of the row itself, or an array of ids by user or item.

    Histories of several splits are arrays of their own each, and are left to the loader.
    """
    has_history = any(feature.source == "history" for feature in dataset.features)
    if dataset.dense or (has_history and not dataset.is_one_split):
        return False
    return _are_held(dataset.manifest, dataset.features)


def _are_held(manifest: Manifest, features: Sequence[FeatureSpec]) -> bool:
    rows = [table.num_rows for table in manifest.tables]
    return max(rows, default=0) <= np.iinfo(np.int32).max and not any(
        feature.is_weighted or (feature.source == "interaction" and feature.is_list)
        for feature in features
    )


def array_names(dataset: Dataset) -> list[str]:
    """Return the names of the arrays that the features read (Dataset.array), each once."""
    names: list[str] = []
    for feature in dataset.features:
        if feature.source == "history":
            assert dataset.manifest.history is not None, "a history feature comes with a history"
            sequence = history_of(feature.name)
            folder = dataset.manifest.history.folder(dataset.split, sequence)
            names += [f"{folder}/values", f"{folder}/offsets"]
        elif feature.source != "interaction" and feature.name != f"{feature.source}_id":
            name = f"{feature.source}s/{feature.name}"
            names += [f"{name}.values"] + [f"{name}.offsets"] * feature.is_list
    return list(dict.fromkeys(names))


def num_bytes(dataset: Dataset) -> int:
    """Return the bytes that the arrays of the features take on the device."""
    return sum(dataset.array(name).nbytes for name in array_names(dataset))


def planned_bytes(
    manifest: Manifest, names: Sequence[str], feature_lengths: Mapping[str, float]
) -> int:
    """Return what `num_bytes` will be in a training, about, without the arrays; 0 where none is held.

    Args:
        names: features of a batch, dense ones too.
        feature_lengths: ids a row of every feature.
    """
    by_name = {feature.name: feature for feature in manifest.features}
    features = [by_name[name] for name in names if name in by_name]
    if len(features) < len(names) or not _are_held(manifest, features):
        return 0
    num_rows = {"user": manifest.num_user_rows, "item": manifest.num_item_rows}
    offset_bytes, id_bytes = 8, 4
    total = 0.0
    for feature in features:
        if feature.source in num_rows and feature.name != f"{feature.source}_id":
            ids_per_row = feature_lengths[feature.name]
            total += (id_bytes * ids_per_row + offset_bytes * feature.is_list) * num_rows[
                feature.source
            ]
    for name in {history_of(feature.name) for feature in features if feature.source == "history"}:
        entries = _history_entries(manifest, feature_lengths, name)
        total += offset_bytes * manifest.num_user_rows + id_bytes * entries
    return int(total)


def _history_entries(
    manifest: Manifest, feature_lengths: Mapping[str, float], sequence: str
) -> float:
    """Return the most items that a stored sequence of all users holds in training."""
    history = manifest.history
    assert history is not None, "a history feature comes with a history"
    if "train" not in manifest.splits:  # nothing is prepared
        return manifest.num_user_rows * feature_lengths[sequence]
    is_shared = history.scope == "past" and not history.is_by_split
    splits = manifest.splits.values() if is_shared else [manifest.splits["train"]]
    positives = sum(split.num_positives for split in splits)
    is_of_positives = HISTORIES[sequence] == 1
    return positives if is_of_positives else sum(split.num_rows for split in splits) - positives


class DeviceArrays:
    """Copies of a data set's arrays on a device, from which the ids of rows are gathered."""

    def __init__(self, dataset: Dataset, device: torch.device):
        """Copy the arrays; `can_hold` says of which data sets."""
        self.features = dataset.features
        self.scalars = [f.name for f in self.features if f.source == "interaction"]
        self._on_device: dict[str, torch.Tensor] = {}
        self._lengths: dict[str, np.ndarray] = {}
        for name in array_names(dataset):
            array = dataset.array(name)
            self._on_device[name] = torch.from_numpy(np.array(array)).to(device)
            if name.endswith(".offsets"):
                self._lengths[name] = np.diff(array)
        self._ends = [end_column(name) for name in dataset.histories_read]
        """Columns of a batch's rows behind the items."""
        self._first_scalar = ITEM + 1 + len(self._ends)
        history = dataset.manifest.history
        if history is not None:
            self._folders = {
                name: history.folder(dataset.split, name) for name in dataset.histories_read
            }
            self._longest = {
                f.name: dataset.longest_history(f) for f in self.features if f.source == "history"
            }

    def rows(
        self, columns: Mapping[str, np.ndarray], ids_FN: np.ndarray
    ) -> tuple[np.ndarray, list[int]]:
        """Return a batch's rows as they travel [C, N] int32, and the number of ids of every feature.

        Args:
            columns: user_row, item_row and the ends of the histories, each [N], as far as the data has
                them.
            ids_FN: ids of the features in `scalars`.
        """
        num_rows = ids_FN.shape[1]
        rows_CN = np.zeros((self._first_scalar + len(ids_FN), num_rows), dtype=np.int32)
        for place, name in enumerate(("user_row", "item_row", *self._ends)):
            if name in columns:
                rows_CN[place] = columns[name]
        rows_CN[self._first_scalar :] = ids_FN
        return rows_CN, [self._count(feature, rows_CN) for feature in self.features]

    def _count(self, feature: FeatureSpec, rows_CN: np.ndarray) -> int:
        if feature.source == "history":
            ends_N = rows_CN[self._end_place(feature)]
            return int(np.minimum(ends_N, self._longest[feature.name]).sum())
        if not feature.is_list:
            return rows_CN.shape[1]
        lengths = self._lengths[f"{feature.source}s/{feature.name}.offsets"]
        return int(lengths[rows_CN[USER if feature.source == "user" else ITEM]].sum())

    def _end_place(self, feature: FeatureSpec) -> int:
        return ITEM + 1 + self._ends.index(end_column(history_of(feature.name)))

    def gather(self, rows_CN: torch.Tensor, counts: list[int], batch_size: int) -> Features:
        """Return the Features of N rows on the device, padded to `batch_size` B rows.

        Args:
            rows_CN: what `rows` returned, on the device.
            counts: likewise; known beforehand, they need not be waited for.
        """
        values, lengths = [], []
        for feature, count in zip(self.features, counts, strict=True):
            values_V, lengths_N = self._ids(feature, rows_CN, count)
            values.append(values_V.long())
            lengths.append(lengths_N.int())
        lengths_FB = rows_CN.new_zeros((len(lengths), batch_size))
        lengths_FB[:, : rows_CN.shape[1]] = torch.stack(lengths)
        # key 0: row 0, row 1, ...; key 1: row 0, row 1, ...
        sparse = KeyedJaggedTensor(
            keys=[feature.name for feature in self.features],
            values=torch.cat(values),
            lengths=lengths_FB.reshape(-1),
            stride=batch_size,
            length_per_key=counts,
            offset_per_key=[0, *itertools.accumulate(counts)],
        )
        return Features(sparse)

    def _ids(
        self, feature: FeatureSpec, rows_CN: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a feature's ids end to end [V] and how many every row has [N]."""
        ones_N = torch.ones_like(rows_CN[USER])
        if feature.source == "interaction":
            return rows_CN[self._first_scalar + self.scalars.index(feature.name)], ones_N
        if feature.source == "history":
            folder = self._folders[history_of(feature.name)]
            ends_N = rows_CN[self._end_place(feature)]
            offsets_N = self._on_device[f"{folder}/offsets"][rows_CN[USER]]
            lengths_N = ends_N.clamp_max(self._longest[feature.name])
            starts_N = offsets_N + ends_N - lengths_N
            values = self._on_device[f"{folder}/values"]
            return _jagged(values, starts_N, lengths_N, count), lengths_N
        rows_N = rows_CN[USER if feature.source == "user" else ITEM]
        if feature.name == f"{feature.source}_id":
            return rows_N, ones_N
        name = f"{feature.source}s/{feature.name}"
        values = self._on_device[f"{name}.values"]
        if not feature.is_list:
            return values[rows_N], ones_N
        offsets = self._on_device[f"{name}.offsets"]
        starts_N = offsets[rows_N]
        lengths_N = offsets[rows_N + 1] - starts_N
        return _jagged(values, starts_N, lengths_N, count), lengths_N


def _jagged(
    values: torch.Tensor, starts_N: torch.Tensor, lengths_N: torch.Tensor, count: int
) -> torch.Tensor:
    """Return values[starts[i] : starts[i] + lengths[i]] of every i end to end [V], V = count."""
    firsts_N = lengths_N.cumsum(0) - lengths_N
    shifts_V = torch.repeat_interleave(starts_N - firsts_N, lengths_N, output_size=count)
    return values[shifts_V + torch.arange(count, device=values.device)]


@dataclass
class RowFeatures(Pipelineable):
    """Features of a batch that are still to be gathered, on the device that holds the arrays."""

    arrays: DeviceArrays
    rows_CN: torch.Tensor
    """int32, what `DeviceArrays.rows` returned."""
    counts: list[int]
    """Ids of every feature."""
    batch_size: int
    """Rows B of the batch, padding included."""

    def to(self, device: torch.device, non_blocking: bool = False) -> Features:  # type: ignore[override]
        """Return the Features on `device`."""
        rows_CN = self.rows_CN.to(device, non_blocking=non_blocking)
        return self.arrays.gather(rows_CN, self.counts, self.batch_size)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the CUDA allocator that `stream` still uses these tensors."""
        self.rows_CN.record_stream(stream)

    def pin_memory(self) -> "RowFeatures":
        """Return a copy in page-locked host memory."""
        return RowFeatures(self.arrays, self.rows_CN.pin_memory(), self.counts, self.batch_size)
