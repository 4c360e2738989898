"""Model settings: every model its own, old run configurations are read, removed keys are named."""

import dataclasses
import typing

import pytest

from recsys.model.build import RANKERS
from recsys.run.config import read_run_config

EVERY_KEY = {f.name: f for config, _ in RANKERS.values() for f in dataclasses.fields(config)}
"""A field of each key of any model, as a run of an earlier version stored them all."""


def defaults_of(config):
    return dataclasses.asdict(config())


@pytest.mark.parametrize("name", RANKERS)
def test_settings_of_a_model_bear_its_name_and_have_no_problems(name):
    config = RANKERS[name][0]()
    assert config.name == name and config.problems() == []


def test_a_key_has_the_same_type_in_every_model():
    for key in EVERY_KEY:
        hints = [typing.get_type_hints(config) for config, _ in RANKERS.values()]
        assert len({str(types[key]) for types in hints if key in types}) == 1, key


@pytest.mark.parametrize("name", RANKERS)
def test_run_configuration_of_an_earlier_version_is_read_by_any_model(name):
    """Earlier versions stored the keys of all models in one section."""
    stored = {k: v for config, _ in RANKERS.values() for k, v in defaults_of(config).items()}
    stored |= defaults_of(RANKERS[name][0])
    stored |= {"embedding_init": 0.5, "two_streams": False, "history_attention": False}
    config = read_run_config({"model": stored}, stored=True).model
    assert config == dataclasses.replace(RANKERS[name][0](), embedding_init=0.5)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [("two_streams", "model=finalmlp"), ("history_attention", "model.similarity_tiers=16")],
)
def test_run_that_was_trained_with_a_removed_option_is_refused_by_name(key, sentence):
    with pytest.raises(ValueError, match=f"model.{key}: was removed; .*{sentence}"):
        read_run_config({"model": {key: True}}, stored=True)


def test_problems_of_a_model_are_listed_together():
    model = {"umcm": "magic", "cross": "deep", "dropout": 1.0, "tower_dims": [], "cross_rank": 0}
    model |= {"dense_precision": "fp8", "similarity_tiers": -1, "embedding_init": -1.0}
    with pytest.raises(ValueError) as error:
        read_run_config({"model": model})
    for key in model:
        assert f"model.{key}=" in str(error.value)
