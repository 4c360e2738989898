"""Two lists of each row are joined in blocks of rows, as row by row."""

import numpy as np
import pytest

from recsys.data.prepare import sequences
from recsys.data.prepare.sequences import Sequences, read_sequences, write_sequences


def drawn(rng, num_rows):
    """Lists of a few numbers, and as sequences."""
    lists = [rng.integers(100, size=rng.integers(4)).tolist() for _ in range(num_rows)]
    values = np.array([value for own in lists for value in own], np.int32)
    offsets = np.cumsum([0, *map(len, lists)])
    return lists, Sequences(values, offsets)


@pytest.mark.parametrize("block_rows", [1, 3, 100])
def test_lists_are_joined_and_their_last_values_kept(tmp_path, rng, monkeypatch, block_rows):
    """New rows are only in the second file; of some rows nothing is kept."""
    monkeypatch.setattr(sequences, "BLOCK_ROWS", block_rows)
    (old, first), (new, then) = drawn(rng, 7), drawn(rng, 10)
    joined = [before + after for before, after in zip(old + [[]] * 3, new, strict=True)]
    kept = np.array([rng.integers(len(own) + 1) for own in joined])
    write_sequences(tmp_path, first, then, 10, lambda rows_B: kept[rows_B], prefix="x.")
    written = read_sequences(tmp_path, prefix="x.")
    rows = np.arange(10)
    assert written.lengths(rows).tolist() == kept.tolist()
    found = np.split(written.of(rows)[0], np.cumsum(kept)[:-1])
    expected = [own[len(own) - count :] for own, count in zip(joined, kept, strict=True)]
    assert [own.tolist() for own in found] == expected
    assert written.values.dtype == np.int32
    assert first.lengths(np.array([6, 7, 20])).tolist() == [len(old[6]), 0, 0]
