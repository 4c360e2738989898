"""The benchmark of codes: a workspace of the same data, whose tables hold an eighth of the bytes."""

import re

import numpy as np

from embedding.features.store import FeatureTable
from tests.benchmarks.compressed_vectors import write_coded
from tests.feature_tables import write_table


def test_a_workspace_of_codes_has_the_same_items_and_loses_little(tmp_path, rng, capsys):
    given = rng.normal(size=(900, 16)) * 0.8 ** np.arange(16)
    given[[0, 5]] = 0
    whole = write_table(tmp_path / "w" / "features" / "text", given.astype(np.float16))
    (tmp_path / "w" / "prepared").mkdir()
    write_coded(tmp_path / "w", tmp_path / "other", 2, [])
    coded = FeatureTable(tmp_path / "other" / "features" / "text")
    coded.verify()
    np.testing.assert_array_equal(coded.has_vector(), whole.has_vector())
    assert (tmp_path / "other" / "prepared").is_symlink()
    printed = capsys.readouterr().out
    assert "28,800 bytes of fp16, 3,600 of codes" in printed
    lost = float(re.search(r"([0-9.]+) of the variance lost", printed).group(1))
    error = np.square(coded.read(0, 900).astype(np.float64) - given).sum() / np.square(given).sum()
    assert 0 < lost < 0.1
    assert abs(lost - error) < 0.01
