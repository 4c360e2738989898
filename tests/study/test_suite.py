"""Suites: the baselines that a suite asks for are variants of it."""

from omegaconf import OmegaConf

from recsys.config import from_config, plain
from recsys.model.build import BASELINES
from recsys.study.suite import SuiteConfig, VariantConfig
from tests.test_configs import CONFIGS


def read(**changes):
    return SuiteConfig(
        name="x", reference="umair_fps", variants={"umair_fps": VariantConfig()}, **changes
    )


def test_a_suite_of_the_baselines_has_a_variant_for_each_after_its_own():
    suite = read(baselines=True)
    assert list(suite.all_variants) == ["umair_fps", *BASELINES]
    assert suite.all_variants["masknet"] == VariantConfig(overrides=["model=masknet"])
    assert list(read().all_variants) == ["umair_fps"]


def test_a_variant_of_a_baselines_name_is_taken_as_it_is_given():
    own = VariantConfig(overrides=["model=fm", "model.embedding_dim=8"])
    suite = SuiteConfig(name="x", reference="fm", variants={"fm": own}, baselines=True)
    assert suite.problems() == []
    assert suite.all_variants["fm"] == own and list(suite.all_variants)[0] == "fm"


def test_the_suite_of_baselines_compares_all_of_them_with_umair_fps():
    suite = from_config(
        SuiteConfig, plain(OmegaConf.load(CONFIGS / "suite" / "baselines.yaml")), "suite"
    )
    assert set(suite.all_variants) == {"umair_fps", *BASELINES} and len(BASELINES) > 10
