"""Data parallelism of everything that is not sharded: the dense part of every rank, kept equal.

Called by recsys/sharding/apply.py.
"""

import torch
from torchrec.distributed.model_parallel import (
    DataParallelWrapper,
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.types import ShardingEnv


class Alone(DataParallelWrapper):
    """Data parallelism of a single rank, whose gradients are averaged with nobody's."""

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Leave the module as it is; DistributedDataParallel would copy its gradients at every step."""


def data_parallel(world_size: int) -> DataParallelWrapper:
    """Return TorchRec's wrapper around DistributedDataParallel, or none for a world of one."""
    return Alone() if world_size == 1 else DefaultDataParallelWrapper()
