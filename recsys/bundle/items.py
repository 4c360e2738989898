"""Items of a bundle: everything that does not depend on the user, once per item row.

    items/<part>.npy                one of PARTS, [N, ...], memory-mapped; absent where the model has none
    items/vectors/<modality>.npy    float16 [N, E]; zeros where the item has none
    items/has_vector.npy            uint8 [N, V] by modality, in the order of BundleSpec.widths
    items/features/<name>.values.npy, .offsets.npy, .weights.npy   rows of the item's features, as in
                                    prepared/items; of dense ones, numbers
    items/train_count.npy           training interactions [N]

Items that are added at run time follow in memory: their rows are N, N + 1, ..., and every reader takes
rows of both kinds.
Shapes: N items of the files, V ids, B rows asked for, M modalities, H hidden, D product, R retrieval,
Y item features side by side, E modality width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.lookup import Column, column_of
from recsys.bundle.spec import BundleSpec
from recsys.bundle.tables import mapped
from recsys.schema import Manifest

PARTS = ("vectors", "present", "products", "first_order", "retrieval", "columns")
"""vectors [N, M, H], present [N, M] and products [N, M, D] of the item side of a two-sided model;
first_order [N]; retrieval [N, R]; columns [N, Y], the pooled item features of a model that is whole."""


class Rows:
    """An array [N, ...] of a file, and rows behind it that were added in memory."""

    def __init__(self, fixed: torch.Tensor):
        """Start without added rows."""
        self.fixed = fixed
        self._added = fixed[:0].clone()
        self._num_added = 0

    def __len__(self) -> int:
        return self.fixed.shape[0] + self._num_added

    @property
    def added(self) -> torch.Tensor:
        """The added rows [A, ...]."""
        return self._added[: self._num_added]

    def take(self, rows_B: torch.Tensor) -> torch.Tensor:
        """Return rows [B, ...] in the stored precision; rows_B: int64 [B]."""
        num_fixed = self.fixed.shape[0]
        is_added_B = rows_B >= num_fixed if self._num_added else None
        if is_added_B is None or not is_added_B.any():
            # Of 1 million rows of fp16 [4, 64], 500 take 0.06 ms; indexed as fixed[rows_B], 0.39 ms.
            return self.fixed.index_select(0, rows_B)
        taken = self.fixed.new_empty(rows_B.shape[0], *self.fixed.shape[1:])
        taken[~is_added_B] = self.fixed[rows_B[~is_added_B]]
        taken[is_added_B] = self.added[rows_B[is_added_B] - num_fixed]
        return taken

    def append(self, row: torch.Tensor) -> None:
        """Add one row [...]."""
        if self._num_added == self._added.shape[0]:  # doubled, so that n rows cost O(n)
            more = max(16, self._num_added)
            room = self._added.new_empty(self._num_added + more, *self._added.shape[1:])
            room[: self._num_added] = self.added
            self._added = room
        self._added[self._num_added] = row
        self._num_added += 1

    def cut(self, num_rows: int) -> None:
        """Take the added rows behind the first `num_rows` of all rows away."""
        self._num_added = min(self._num_added, num_rows - self.fixed.shape[0])

    def blocks(self, num_rows: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, rows [B, ...]) of everything in row order, at most num_rows at a time."""
        for start in range(0, self.fixed.shape[0], num_rows):
            yield start, self.fixed[start : start + num_rows]
        for start in range(0, self._num_added, num_rows):
            yield self.fixed.shape[0] + start, self.added[start : start + num_rows]


@dataclass(frozen=True, kw_only=True)
class ItemRow:
    """Everything that `Items` holds of one item: what `BundleScorer.encode_item` makes of a new one."""

    parts: dict[str, NDArray]
    """One row [...] of every part of PARTS that the bundle has."""
    vectors: dict[str, NDArray | None]
    """Vector [E] by modality of the bundle; None where the item has none."""
    features: dict[str, NDArray] = field(default_factory=dict)
    """Rows or number of the item's features by name; missing ones are unknown."""
    weights: dict[str, NDArray] = field(default_factory=dict)
    """Weights of the rows of weighted lists [V], by feature; missing ones are 1."""


class FeatureRows:
    """Rows of one feature by item or user, lists or not, or numbers of a dense one; memory-mapped."""

    def __init__(
        self,
        values: torch.Tensor,
        offsets: torch.Tensor | None,
        weights: torch.Tensor | None = None,
    ):
        """Args: values [V]; offsets [N + 1] of a list, None: one row or number each; weights [V]."""
        self.is_list = offsets is not None
        self.is_dense = values.is_floating_point()
        self._dtype = torch.float32 if self.is_dense else torch.int64
        self._values = values
        self._offsets = offsets
        self._weights = weights
        self._num_rows = len(values) if offsets is None else len(offsets) - 1
        self._added: list[torch.Tensor] = []
        self._added_weights: list[torch.Tensor] = []

    @property
    def is_weighted(self) -> bool:
        """Whether the ids of the lists have weights."""
        return self._weights is not None

    def weights_of(self, row: int) -> NDArray[np.float32]:
        """Return the weights [V] of the rows of one item or user, of a feature of weighted lists."""
        assert self._weights is not None and self._offsets is not None, "a weighted list"
        if row >= self._num_rows:
            return self._added_weights[row - self._num_rows].numpy()
        return self._weights[int(self._offsets[row]) : int(self._offsets[row + 1])].numpy()

    def of(self, row: int) -> NDArray:
        """Return the feature's rows [V], or its number [1], of one item or user."""
        if row >= self._num_rows:
            return self._added[row - self._num_rows].numpy()
        if self._offsets is None:
            return self._values[row : row + 1].to(self._dtype).numpy()
        start, stop = int(self._offsets[row]), int(self._offsets[row + 1])
        return self._values[start:stop].long().numpy()

    def take(self, rows_B: torch.Tensor) -> Column:
        """Return the feature's rows, or numbers, of many items or users; rows_B: int64 [B]."""
        if self._added:
            rows = rows_B.tolist()
            weights = [self.weights_of(row) for row in rows] if self.is_weighted else None
            return column_of([self.of(row) for row in rows], self.is_list, weights)
        if self._offsets is None:
            return Column(self._values.index_select(0, rows_B).to(self._dtype))
        starts_B = self._offsets[rows_B].long()
        lengths_B = self._offsets[rows_B + 1] - starts_B
        firsts_B = lengths_B.cumsum(0) - lengths_B
        index_V = torch.repeat_interleave(starts_B - firsts_B, lengths_B)
        index_V += torch.arange(index_V.shape[0])
        weights_V = None if self._weights is None else self._weights[index_V]
        return Column(self._values[index_V].long(), lengths_B, weights_V)

    def append(self, rows: NDArray, weights: NDArray | None = None) -> None:
        """Add the rows [V], or the number [1], of one item more; `weights` [V] of the rows, None: 1."""
        kind = np.float32 if self.is_dense else np.int64
        self._added.append(torch.from_numpy(np.asarray(rows, kind)))
        given = np.ones(len(rows)) if weights is None else weights
        self._added_weights.append(torch.from_numpy(np.asarray(given, np.float32)))


def open_features(folder: Path, names: list[str]) -> dict[str, FeatureRows]:
    """Return the features whose files are below a folder, by name."""
    found = {}
    for name in names:
        offsets, weights = (folder / f"{name}.{part}.npy" for part in ("offsets", "weights"))
        found[name] = FeatureRows(
            mapped(folder / f"{name}.values.npy"),
            mapped(offsets) if offsets.is_file() else None,
            mapped(weights) if weights.is_file() else None,
        )
    return found


class Items:
    """The item side, read."""

    def __init__(self, folder: Path, spec: BundleSpec):
        """Map the files of `items/`.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self.num_stored = spec.manifest.num_item_rows
        self.parts = {
            part: Rows(mapped(folder / f"{part}.npy"))
            for part in PARTS
            if f"items/{part}.npy" in spec.sizes
        }
        self.modalities = list(spec.widths.modalities)
        self.vectors = {
            name: Rows(mapped(folder / "vectors" / f"{name}.npy")) for name in self.modalities
        }
        self.has_vector = Rows(mapped(folder / "has_vector.npy"))
        self.features = open_features(folder / "features", item_features(spec.manifest))
        self.train_count = Rows(mapped(folder / "train_count.npy"))

    def __len__(self) -> int:
        """Rows of all items, unknown row 0 and added ones included."""
        return len(self.train_count)

    def take(self, part: str, rows_B: torch.Tensor) -> torch.Tensor:
        """Return rows of a part as float32 [B, ...]; rows_B: int64 [B]."""
        return self.parts[part].take(rows_B).float()

    def modality(self, name: str, rows_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (vectors float32 [B, E], whether the item has one as 1 or 0 [B])."""
        present_BV = self.has_vector.take(rows_B)
        return self.vectors[name].take(rows_B).float(), present_BV[
            :, self.modalities.index(name)
        ].float()

    def add(self, item: ItemRow) -> int:
        """Add an item in memory and return its row."""
        row = len(self)
        for part, rows in self.parts.items():
            rows.append(torch.from_numpy(np.asarray(item.parts[part])))
        self._append_vectors(item.vectors)
        for name, feature in self.features.items():
            feature.append(item.features.get(name, _unknown(feature)), item.weights.get(name))
        self.train_count.append(torch.tensor(0))
        return row

    @contextmanager
    def temporary(self, vectors: Sequence[Mapping[str, NDArray]]) -> Iterator[range]:
        """Keep rows of vectors alone behind those of all items, within a block, and yield them.

        Histories may have them; they are no items, and no search finds them. None may be added meanwhile.

        Args:
            vectors: of each row, vector [E] by modality.

        Raises:
            RuntimeError: a vector has another width than its modality; no row is kept.
        """
        num_items = len(self)
        try:
            for by_modality in vectors:
                self._append_vectors(by_modality)
            yield range(num_items, num_items + len(vectors))
        finally:
            for rows in (*self.vectors.values(), self.has_vector):
                rows.cut(num_items)

    def _append_vectors(self, vectors: Mapping[str, NDArray | None]) -> None:
        for name, rows in self.vectors.items():
            vector = vectors.get(name)
            rows.append(
                rows.fixed.new_zeros(rows.fixed.shape[1:])
                if vector is None
                else torch.from_numpy(np.asarray(vector))
            )
        has_V = [int(vectors.get(name) is not None) for name in self.modalities]
        self.has_vector.append(torch.tensor(has_V, dtype=torch.uint8))


def _unknown(feature: FeatureRows) -> NDArray:
    """Return the rows or number of an item of which nothing is known: those of row 0."""
    return feature.of(0)


def item_features(manifest: Manifest) -> list[str]:
    """Return the features of the items file, in the manifest's order, dense ones last."""
    features = manifest.all_features
    return [f.name for f in features if f.source == "item" and f.name != "item_id"]
