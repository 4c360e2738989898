"""One process in the place of rank 0 of many: all other ranks are taken to do exactly as it does.

A process group in which nothing is sent. Where ranks exchange pieces, every rank would send this one what
it keeps for itself, as often as that rank's own share takes; where they reduce, every rank would add the
same. Shapes, splits and bytes of every collective are those of a job whose ranks all have the same batch;
sums of tables are not, since all ranks seem to hold the rows of rank 0. torch's own fake group leaves
received splits uninitialised, so that TorchRec cannot take a step with it.
"""

import os
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future

from recsys.runtime.env import Env

BYTES: Counter[str] = Counter()
"""Bytes that rank 0 sends to others, by collective, since `clear`."""


class AlikeRanks(dist.ProcessGroup):
    """Process group of `world_size` ranks that all do as this one does."""

    def __init__(self, rank: int, world_size: int):
        super().__init__(rank, world_size)
        self._rank, self._size = rank, world_size

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        return "alike"

    @property
    def pg_name(self) -> str:
        return dist.distributed_c10d._world.pg_names[self]

    @property
    def group_name(self) -> str:
        return self.pg_name

    def size(self) -> int:
        return self._size

    def rank(self) -> int:
        return self._rank

    def all_to_all_single(
        self,
        output: torch.Tensor,
        given: torch.Tensor,
        output_splits: list[int] | None,
        input_splits: list[int] | None,
        opts: Any = None,
    ) -> Any:
        parts = given.split(list(input_splits) if input_splits else len(given) // self._size)
        own = parts[self._rank]
        lengths = list(output_splits) if output_splits else [len(output) // self._size] * self._size
        for part, length in zip(output.split(lengths), lengths, strict=True):
            # Ranks that hold other columns send vectors of other widths.
            part.copy_(_of_length(own, length))
        self._sent("all_to_all", given.nbytes - own.nbytes)
        return _done(output)

    alltoall_base = all_to_all_single

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> Any:
        summed = opts is None or opts.reduceOp == dist.ReduceOp.SUM
        for tensor in tensors:
            self._sent("all_reduce", tensor.nbytes)
            if summed:
                tensor *= self._size
        return _done(tensors)

    def allgather(
        self, outputs: list[list[torch.Tensor]], given: list[torch.Tensor], opts: Any = None
    ) -> Any:
        for parts, own in zip(outputs, given, strict=True):
            self._sent("all_gather", own.nbytes * (self._size - 1))
            for part in parts:
                part.copy_(own)
        return _done(outputs)

    def all_gather_single(self, output: torch.Tensor, given: torch.Tensor, opts: Any = None) -> Any:
        return self.allgather([list(output.chunk(self._size))], [given])

    _allgather_base = all_gather_single

    def reduce_scatter(
        self, outputs: list[torch.Tensor], given: list[list[torch.Tensor]], opts: Any = None
    ) -> Any:
        for output, parts in zip(outputs, given, strict=True):
            self._sent("reduce_scatter", sum(p.nbytes for p in parts) - parts[self._rank].nbytes)
            output.copy_(parts[self._rank] * self._size)
        return _done(outputs)

    def reduce_scatter_single(
        self, output: torch.Tensor, given: torch.Tensor, opts: Any = None
    ) -> Any:
        return self.reduce_scatter([output], [list(given.chunk(self._size))])

    _reduce_scatter_base = reduce_scatter_single

    def broadcast(self, tensors: list[torch.Tensor], opts: Any = None) -> Any:
        return _done(tensors)

    def barrier(self, opts: Any = None) -> Any:
        return _done([])

    def _sent(self, collective: str, num_bytes: int) -> None:
        if self._size > 1:
            BYTES[collective] += num_bytes


def _of_length(own: torch.Tensor, length: int) -> torch.Tensor:
    """Return as many values as asked for: cut, or again and again; zeros where there are none."""
    if not len(own):
        return own.new_zeros((length, *own.shape[1:]))
    times = -(-length // len(own))
    return own.repeat(times, *[1] * (own.dim() - 1))[:length]


def _done(result: Any) -> Any:
    future: Future = Future()
    future.set_result(result)
    return torch._C._distributed_c10d._create_work_from_future(future)


def begin(*, num_ranks: int, ranks_a_host: int) -> Env:
    """Make this process rank 0 of a job of alike ranks, on a CPU."""
    os.environ |= {
        "RANK": "0",
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(ranks_a_host),
    }
    dist.Backend.register_backend(
        "alike", lambda _, rank, size, __: AlikeRanks(rank, size), devices=["cpu"]
    )
    dist.init_process_group("alike", rank=0, world_size=num_ranks, store=dist.HashStore())
    return Env(
        rank=0,
        world_size=num_ranks,
        local_rank=0,
        local_world_size=ranks_a_host,
        device=torch.device("cpu"),
    )
