"""Pieces of an earlier file in a new one: matching blocks by a rolling hash, as rsync finds them.

In: both as arrays of numbers of one width. Out: which parts of the new one are copies. The hash of a
window is a polynomial modulo 2^64, computed for all places of a block at once; what it finds is compared.
Called by difference.py of this folder.
Shapes: N numbers of the earlier file, V of the new one, B blocks of the earlier, W numbers of a window,
C places where a block may be found.
"""

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

Piece = tuple[int, int]
"""First number in the earlier file, and how many; -1: numbers that are new."""

_WINDOW_BYTES = 64
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 20
_FILTER_BITS = 22


def find_pieces(old_N: NDArray, new_V: NDArray) -> list[Piece]:
    """Return the pieces of which the new array [V] consists, in order; both are of unsigned integers."""
    num_equal = _num_equal(old_N, new_V)
    pieces: list[Piece] = [(0, num_equal)] if num_equal else []
    rest_V = new_V[num_equal:]
    if len(rest_V):
        pieces += _Matcher(old_N).match(rest_V)
    return pieces


def _num_equal(one: NDArray, other: NDArray) -> int:
    """Return how many numbers at the beginning of two arrays are the same."""
    length, start, step = min(len(one), len(other)), 0, 64
    while start < length:
        stop = min(length, start + step)
        differing = one[start:stop] != other[start:stop]
        if differing.any():
            return start + int(differing.argmax())
        start, step = stop, min(4 * step, _BLOCK)
    return length


class _Matcher:
    """Finds copies of an earlier array's blocks."""

    def __init__(self, old_N: NDArray):
        self._old_N = old_N
        self._window = max(8, _WINDOW_BYTES // old_N.itemsize)
        with np.errstate(over="ignore"):
            self._powers = np.cumprod(np.full(_BLOCK + self._window, _BASE))
            inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
            self._inverses = np.cumprod(np.full(_BLOCK + 1, inverse))
        hashes_B = self._block_hashes()
        self._order_B = np.argsort(hashes_B, kind="stable")
        self._sorted_B = hashes_B[self._order_B]
        self._hashes_B = hashes_B
        self._is_there = np.zeros(1 << _FILTER_BITS, bool)
        self._is_there[hashes_B >> np.uint64(64 - _FILTER_BITS)] = True

    def _block_hashes(self) -> NDArray[np.uint64]:
        """Return the hash of every whole block of the earlier array [B]."""
        window = self._window
        num_blocks = len(self._old_N) // window
        hashes_B = np.zeros(num_blocks, np.uint64)
        step = _BLOCK // window
        with np.errstate(over="ignore"):
            for start in range(0, num_blocks, step):
                stop = min(num_blocks, start + step)
                block = self._old_N[start * window : stop * window].astype(np.uint64)
                products = block.reshape(-1, window) * self._powers[:window]
                hashes_B[start:stop] = products.sum(axis=1, dtype=np.uint64)
        return hashes_B

    def _hashes(self, block: NDArray) -> NDArray[np.uint64]:
        """Return the hash of the window that begins at each place of a block [V - W + 1]."""
        window, length = self._window, len(block)
        with np.errstate(over="ignore"):
            sums = np.zeros(length + 1, np.uint64)
            np.cumsum(block.astype(np.uint64) * self._powers[:length], out=sums[1:])
            windows = sums[window:] - sums[:-window]
            windows[1:] *= self._inverses[: len(windows) - 1]
        return windows

    def match(self, new_V: NDArray) -> list[Piece]:
        """Return the pieces of which an array [V] consists."""
        places_C, firsts_C = self._candidates(new_V)
        pieces: list[Piece] = []
        done = next_candidate = (
            0  # numbers that have their piece, and the first candidate behind them
        )
        while next_candidate < len(places_C):
            place = places_C[next_candidate]
            source = self._source(firsts_C[next_candidate], place - done, pieces)
            copied = _num_equal(self._old_N[source:], new_V[place:])
            if copied < self._window:  # another block of this hash
                next_candidate += 1
                continue
            back = self._num_before(source, new_V, place, done)
            place, source, copied = place - back, source - back, copied + back
            if place > done:
                pieces.append((-1, place - done))
            pieces.append((source, copied))
            done = place + copied
            next_candidate = bisect_left(places_C, done, next_candidate)
        if done < len(new_V):
            pieces.append((-1, len(new_V) - done))
        return pieces

    def _candidates(self, new_V: NDArray) -> tuple[list[int], list[int]]:
        """Return places where an earlier block may be [C], and its first place by hash [C]."""
        places, firsts = [], []
        for start in range(0, len(new_V) - self._window + 1, _BLOCK):
            hashes_V = self._hashes(new_V[start : start + _BLOCK + self._window - 1])
            found_C = np.flatnonzero(self._is_there[hashes_V >> np.uint64(64 - _FILTER_BITS)])
            first_C = np.searchsorted(self._sorted_B, hashes_V[found_C])
            first_C = np.minimum(first_C, len(self._sorted_B) - 1)
            is_equal_C = self._sorted_B[first_C] == hashes_V[found_C]
            places += (found_C[is_equal_C] + start).tolist()
            firsts += first_C[is_equal_C].tolist()
        return places, firsts

    def _source(self, first: int, gap: int, pieces: list[Piece]) -> int:
        """Return where a block is in the earlier array: behind the last piece, where it is there too."""
        if pieces and pieces[-1][0] >= 0:
            expected = pieces[-1][0] + pieces[-1][1] + gap
            block = expected // self._window
            is_block = expected % self._window == 0 and block < len(self._hashes_B)
            if is_block and self._hashes_B[block] == self._sorted_B[first]:
                return expected
        return int(self._order_B[first]) * self._window

    def _num_before(self, source: int, new_V: NDArray, place: int, done: int) -> int:
        """Return how many numbers before a copy are copies too."""
        most = min(source, place - done, self._window)
        old, new = self._old_N[source - most : source], new_V[place - most : place]
        return _num_equal(old[::-1], new[::-1])
