"""The feature store: what is written is read back, across shards; what was changed is refused."""

import numpy as np
import pytest

from embedding.store import FeatureTable, open_features
from tests.feature_tables import write_table


def write(workspace, name="text", shard_rows=4, num_rows=10, dim=3):
    vectors = np.random.default_rng(0).normal(size=(num_rows, dim)).astype(np.float16)
    folder = workspace / "features" / name
    write_table(folder, vectors, shard_rows=shard_rows)
    return folder, vectors


def test_rows_are_read_across_shards(tmp_path):
    folder, vectors = write(tmp_path)
    table = FeatureTable(folder)
    for start, stop in ((0, 10), (3, 5), (2, 9), (8, 10), (4, 8)):
        np.testing.assert_array_equal(table.read(start, stop), vectors[start:stop])


def test_missing_features_say_to_run_embed(tmp_path):
    with pytest.raises(ValueError, match="no features here; run launch/embed.py"):
        open_features(tmp_path, ["text"], "c", 10)


def test_features_of_other_items_are_refused(tmp_path):
    write(tmp_path)
    assert open_features(tmp_path, ["text"], "c", 10)["text"].dim == 3
    with pytest.raises(ValueError, match="made for other items .10 rows, checksum c"):
        open_features(tmp_path, ["text"], "other", 10)


def test_changed_and_truncated_shards_are_named(tmp_path):
    folder, _ = write(tmp_path)
    shard = folder / "shard-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="shard-00001.npy: changed since it was written"):
        open_features(tmp_path, ["text"], "c", 10)
    shard.write_bytes(bytes(content[:-4]))
    with pytest.raises(ValueError, match="shard-00001.npy: cannot be read"):
        open_features(tmp_path, ["text"], "c", 10)
