"""Times of a piece of work, for benchmarks that compare with what a machine can do."""

import time
from collections.abc import Callable


def best_seconds(
    work: Callable[[], object], rounds: int = 10, wait: Callable[[], object] = lambda: None
) -> float:
    """Return the seconds of the fastest of some runs.

    Args:
        wait: waits until the device has done all it was given, before and after each run.
    """
    times = []
    for _ in range(rounds):
        wait()
        begun = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - begun)
    return min(times)
