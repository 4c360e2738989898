"""Model settings: old run configurations are read, and keys that were removed are named."""

import pytest

from recsys.run.config import read_run_config


def test_run_configuration_of_an_earlier_version_is_read_without_its_removed_keys():
    stored = {"name": "umair_fps", "two_streams": False, "history_attention": False}
    config = read_run_config({"model": {**stored, "tower_dims": [8]}}, stored=True)
    assert config.model.tower_dims == [8]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [("two_streams", "model=finalmlp"), ("history_attention", "model.similarity_tiers=16")],
)
def test_run_that_was_trained_with_a_removed_option_is_refused_by_name(key, sentence):
    with pytest.raises(ValueError, match=f"model.{key}: was removed; .*{sentence}"):
        read_run_config({"model": {key: True}}, stored=True)
