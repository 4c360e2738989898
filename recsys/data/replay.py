"""Replay: a seeded random sample of earlier rows, which a warm start is trained on beside the new ones.

In: a manifest and the splits that earlier runs were trained on. Out: ranges of their rows, read by
recsys/data/passes.py. Called by recsys/run/lineage.py.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys.schema import Manifest


@dataclass(frozen=True, kw_only=True)
class SplitRange:
    """Rows [start, stop) of a split, by their place in its files."""

    split: str
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Rows of the range."""
        return self.stop - self.start


def replay_ranges(
    manifest: Manifest, splits: Sequence[str], num_rows: int, seed: int
) -> list[SplitRange]:
    """Return a uniform sample of the rows of splits, without repetition, as ranges of their files.

    Files hold the rows of a split in random order, so a range of them is a random sample; a range that
    begins near the end goes on at the beginning. Every split gives its share, rounded. The sample is
    another one after every append, and only its own row groups are read.

    Args:
        num_rows: of the sample; all rows where the splits have no more.
        seed: of the first row of every split.
    """
    sizes = [manifest.splits[name].num_rows for name in splits]
    # Integers of Python: a product of two numbers of rows may be beyond 64 bits.
    ends = list(itertools.accumulate(sizes, initial=0))
    total = ends[-1]
    shares = [end * min(num_rows, total) // max(total, 1) for end in ends]
    counts = [share - before for before, share in itertools.pairwise(shares)]
    rng = np.random.default_rng([seed, total])
    found = []
    for name, size, count in zip(splits, sizes, counts, strict=True):
        first = int(rng.integers(max(size, 1)))
        stop = min(first + count, size)
        found.append(SplitRange(split=name, start=first, stop=stop))
        found.append(SplitRange(split=name, start=0, stop=first + count - stop))
    return [one for one in found if one.num_rows]
