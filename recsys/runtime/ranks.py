"""Ranks: sums, prefix sums and exchanges of rows over the processes that hold parts of one set of rows.

Called by metrics and evaluation. All ranks call each method in the same order; one process alone is the
case of one rank, in which nothing is exchanged. Every exchange begins with the question whether a rank
has failed (collectives.py), so that an error in a block of `sharing_errors` ends all ranks. Torch is
loaded by the first exchange: one process alone computes metrics without it.
Shapes: N rows of this rank, W ranks.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

_PIECE_ROWS = 1 << 20
"""Rows that a rank sends, and gets, at a time: bounds the memory of buffers, on a GPU too."""
_SMALL_BYTES = 1 << 18
"""Larger arrays are summed in place instead of gathered from all ranks."""


@dataclass(frozen=True)
class Ranks:
    """The ranks that share a set of rows."""

    rank: int
    """This one."""
    size: int
    """How many there are."""

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks on every rank, by rank.

        Raises:
            Exception: another rank's error, as `sharing_errors` does; so do all methods.
        """
        if self.size == 1:
            return [value]
        from recsys.runtime.collectives import gather

        return gather(lambda: value)

    def total(self, values: Any) -> Any:
        """Return the sum of the ranks' values: numbers, or arrays of one shape [N, ...] and type."""
        if self.size > 1 and isinstance(values, np.ndarray) and values.nbytes > _SMALL_BYTES:
            return self._reduced(values, "SUM")
        return self.before_and_total(values)[1]

    def before_and_total(self, values: Any) -> tuple[Any, Any]:
        """Return the sum over the ranks before this one, and over all; numbers or arrays [N, ...]."""
        parts = self.gather(values)
        nothing: Any = np.zeros_like(values) if isinstance(values, np.ndarray) else 0
        return sum(parts[: self.rank], nothing), sum(parts, nothing)

    def lowest(self, values_N: NDArray) -> NDArray:
        """Return the smallest of the ranks' values, elementwise [N, ...]."""
        return values_N if self.size == 1 else self._reduced(values_N, "MIN")

    def any(self, flag: bool) -> bool:
        """Return whether it is true on any rank."""
        return any(self.gather(bool(flag)))

    def num_distinct(self, keys_N: NDArray[np.integer]) -> int:
        """Return how many different whole numbers of 0 or more all ranks have."""
        keys = np.unique(keys_N.astype(np.uint64))
        sent = self.send({"key": keys}, (keys % np.uint64(self.size)).astype(np.int64))
        return int(self.total(np.unique(sent["key"]).size))

    def send(self, columns: dict[str, NDArray], owner_N: NDArray[np.integer]) -> dict[str, NDArray]:
        """Send every row to the rank that `owner_N` names; return those that this one gets.

        Rows come by source rank, in the order in which their rank has them.

        Args:
            columns: [N, ...] each, emptied on the way.
            owner_N: rank of every row.
        """
        if self.size == 1:
            return columns
        order_N = np.argsort(owner_N, kind="stable")
        counts_W = np.bincount(owner_N, minlength=self.size)
        ordered = {name: columns.pop(name)[order_N] for name in list(columns)}
        return self.exchange(ordered, counts_W)

    def exchange(
        self, columns: dict[str, NDArray], counts_W: Sequence[int] | NDArray
    ) -> dict[str, NDArray]:
        """Send rows to other ranks; return those that this one gets, by source rank.

        Args:
            columns: [N, ...] each, emptied on the way so that one column is held twice at a time. The
                first rows are for rank 0, the next for rank 1, and so on.
            counts_W: how many rows each rank gets of this one [W]; their sum is N.
        """
        if self.size == 1:
            return columns
        sent_WW = np.stack(self.gather(np.asarray(counts_W, dtype=np.int64)))
        return {name: self._exchanged(columns.pop(name), sent_WW) for name in list(columns)}

    def _exchanged(self, column_N: NDArray, sent_WW: NDArray[np.int64]) -> NDArray:
        """Return the rows [M, ...] of one column that this rank gets; sent_WW[from, to] are counts."""
        import torch.distributed as dist

        from recsys.runtime.collectives import sharing_errors

        sent_W, got_W = sent_WW[self.rank], sent_WW[:, self.rank]
        piece_rows = max(_PIECE_ROWS // self.size, 1)
        # All memory is taken before the loop: an error within it would leave the other ranks waiting.
        with sharing_errors():
            received_M = np.empty((int(got_W.sum()), *column_N.shape[1:]), dtype=column_N.dtype)
            # Every type as bytes: no backend knows all of numpy's.
            source, target = _bytes_of(column_N), _bytes_of(received_M)
            outgoing, sent = _buffers(np.minimum(sent_W, piece_rows).sum(), source.shape[1])
            incoming, got = _buffers(np.minimum(got_W, piece_rows).sum(), source.shape[1])
        starts_W, places_W = np.cumsum(sent_W) - sent_W, np.cumsum(got_W) - got_W
        for done in range(0, int(sent_WW.max()), piece_rows):
            out_W = np.clip(sent_W - done, 0, piece_rows)
            in_W = np.clip(got_W - done, 0, piece_rows)
            num_out, num_in = int(out_W.sum()), int(in_W.sum())
            parts = [source[s + done : s + done + n] for s, n in zip(starts_W, out_W, strict=True)]
            np.concatenate(parts, out=sent[:num_out].numpy())
            outgoing[:num_out].copy_(sent[:num_out])
            dist.all_to_all_single(
                incoming[:num_in], outgoing[:num_out], in_W.tolist(), out_W.tolist()
            )
            got[:num_in].copy_(incoming[:num_in])
            arrived = np.split(got[:num_in].numpy(), np.cumsum(in_W)[:-1])
            for place, rows in zip(places_W, arrived, strict=True):
                target[place + done : place + done + len(rows)] = rows
        return received_M

    def _reduced(self, values_N: NDArray, operator: str) -> NDArray:
        """Return an array of every rank reduced to one [N, ...], in memory of two of them.

        Args:
            operator: of torch.distributed.ReduceOp.
        """
        import torch
        import torch.distributed as dist

        from recsys.runtime.collectives import sharing_errors

        with sharing_errors():
            reduced = torch.from_numpy(np.array(values_N)).to(_device())
        dist.all_reduce(reduced, getattr(dist.ReduceOp, operator))
        return reduced.cpu().numpy()


ALONE = Ranks(0, 1)
"""This process alone has all rows."""


def all_ranks() -> Ranks:
    """Return the ranks of this job; one where no process group was started."""
    if "torch.distributed" not in sys.modules:
        return ALONE
    import torch.distributed as dist

    if not dist.is_initialized():
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


def _device() -> "torch.device":
    """Return the device on which this job's ranks exchange tensors."""
    import torch
    import torch.distributed as dist

    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _buffers(num_rows: int, row_bytes: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return a buffer [num_rows, row_bytes] where ranks exchange tensors, and one in host memory.

    Edge cases: both are one where that is host memory.
    """
    import torch

    on_host = torch.empty((int(num_rows), row_bytes), dtype=torch.uint8)
    return on_host.to(_device()), on_host


def _bytes_of(column_N: NDArray) -> NDArray[np.uint8]:
    """Return the bytes of the rows [N, bytes of a row], of an array that is contiguous."""
    rows = np.ascontiguousarray(column_N)
    row_bytes = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    return rows.view(np.uint8).reshape(len(rows), row_bytes)
