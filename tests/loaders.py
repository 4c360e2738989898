"""Loaders of tests that read a split as it is stored."""

from recsys.data.dataset import Dataset
from recsys.data.loader import Loader, ReadAhead


def loader_in_order(dataset: Dataset, batch_size: int) -> Loader:
    """A loader of one rank in the stored order, which reads nothing ahead."""
    return Loader(
        dataset,
        global_batch_size=batch_size,
        rank=0,
        world_size=1,
        num_lanes=1,
        shuffle=False,
        seed=0,
        ahead=ReadAhead(num_prefetch=0),
    )
