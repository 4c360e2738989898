"""Headers of .npy files, read by one thread at a time. Called by everything that opens such a file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_HEADERS = threading.Lock()


@contextmanager
def one_header_at_a_time() -> Iterator[None]:
    """Read the header of a .npy file, which is a Python literal, while no other thread reads one.

    Python 3.11 counts the depth of all literals that are parsed in one number; where a garbage
    collection lets another thread run meanwhile, both raise SystemError.
    """
    with _HEADERS:
        yield
