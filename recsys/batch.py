"""Features and Batch: rows as a ranker scores them, and rows as training takes them.

Features hold ids, lengths and numbers, which a request can give; a Batch adds labels, weights and row
ids. Modality vectors are in neither: the model looks them up by item row.
Shapes: B rows of this rank (padding included), F sparse features, K dense features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable


@dataclass
class Features(Pipelineable):
    """Ids and numbers of B rows: the input of a Scorer.

    The KeyedJaggedTensor is key-major, one stride of B lengths per feature, e.g. F=2, B=3:

        key        row 0     row 1     row 2
        user_id    [7]       [7]       [12]
        tags       [1, 4]    []        [2, 4, 9]
    """

    sparse: KeyedJaggedTensor
    """int64 rows of the vocabularies (int32 in page-locked memory), int32 lengths [F * B]. Frozen
    modality tables are looked up by them, and trainable tables where `mapped` is None."""
    mapped: KeyedJaggedTensor | None = None
    """The same keys and lengths, with rows of the trainable tables; None: those of the vocabularies."""
    dense_BK: torch.Tensor | None = None
    """float32, the scaled numbers of the model's dense features, NaN where one is missing; None: it has
    none."""

    @property
    def table_rows(self) -> KeyedJaggedTensor:
        """Rows of the trainable tables."""
        return self.sparse if self.mapped is None else self.mapped

    def to(self, device: torch.device, non_blocking: bool = False) -> "Features":
        """Return a copy on `device`, its rows in int64."""
        moved = self._each(lambda part: part.to(device=device, non_blocking=non_blocking))
        mapped = None if moved.mapped is None else _with_wide_rows(moved.mapped)
        return Features(_with_wide_rows(moved.sparse), mapped, moved.dense_BK)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the CUDA allocator that `stream` still uses these tensors."""
        for part in (self.sparse, self.mapped, self.dense_BK):
            if part is not None:
                part.record_stream(stream)

    def pin_memory(self) -> "Features":
        """Return a copy in page-locked host memory."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> "Features":
        parts = (self.sparse, self.mapped, self.dense_BK)
        return Features(*(None if part is None else change(part) for part in parts))


def _with_wide_rows(sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """Return the same with int64 rows, which TorchRec's lookups take."""
    if sparse.values().dtype == torch.int64:
        return sparse
    return KeyedJaggedTensor(
        keys=sparse.keys(),
        values=sparse.values().long(),
        lengths=sparse.lengths(),
        weights=sparse.weights_or_none(),
        stride=sparse.stride(),
        length_per_key=sparse.length_per_key(),
        offset_per_key=sparse.offset_per_key(),
    )


@dataclass
class Batch(Pipelineable):
    """One rank's part of a global batch: Features with labels, weights and row ids.

    If a global batch is not divided by the ranks, and at the end of a pass, a batch is padded at
    its end to full size with rows of weight 0 and no ids, so that every rank takes the same number of
    equally shaped steps.
    """

    features: Features
    labels_B: torch.Tensor
    """float32, 0 or 1."""
    weights_B: torch.Tensor
    """float32, the sample weight of a real row, 0 for padding."""
    row_id_B: torch.Tensor
    """int64, the row's number in the input file (-1 for padding)."""
    user_row_B: torch.Tensor
    """int64, 0 where there are no users."""
    item_row_B: torch.Tensor
    """int64, 0 where there are no items."""
    global_rows: int
    """Real rows of this step over all ranks."""
    num_ranks: int = 1
    """Ranks that share the global batch."""
    num_real: int = -1
    """Real rows of this rank, which come first; counted where it is not given, and then a real row's
    weight may not be 0."""
    time_B: torch.Tensor | None = None
    """int64 seconds since 1970, 0 for padding; read on the host alone, None where nobody asks for it."""

    def __post_init__(self) -> None:
        """Count the real rows while the weights are on the host."""
        if self.num_real < 0:
            self.num_real = int(self.weights_B.count_nonzero())
            assert bool(self.weights_B[: self.num_real].all()), "padding is at the end of a batch"

    @property
    def mean_rows(self) -> float:
        """Real rows of the global batch per rank: the normaliser of the loss (model/loss.py)."""
        return self.global_rows / self.num_ranks

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Return a copy on `device`."""
        moved = [tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()]
        features = self.features.to(device, non_blocking=non_blocking)
        return Batch(features, *moved, self.global_rows, self.num_ranks, self.num_real)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the CUDA allocator that `stream` still uses these tensors."""
        self.features.record_stream(stream)
        for tensor in self._tensors():
            tensor.record_stream(stream)

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked host memory."""
        pinned = [tensor.pin_memory() for tensor in self._tensors()]
        features, counts = self.features.pin_memory(), (self.global_rows, self.num_ranks)
        return Batch(features, *pinned, *counts, self.num_real, self.time_B)

    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (
            self.labels_B,
            self.weights_B,
            self.row_id_B,
            self.user_row_B,
            self.item_row_B,
        )
