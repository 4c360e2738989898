"""Configurations broken at random: whatever is wrong is a ValueError that names the key.

Every YAML file below configs/ is composed as a job composes it, some of its values are replaced,
removed, renamed or added to, and the result is read the way the job reads it.
"""

import copy
import dataclasses
import functools
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedding.image.config import ImageConfig
from embedding.text.config import TextConfig
from recsys.config import from_config, plain, read_job
from recsys.data.planned_manifest import planned_manifest
from recsys.data.recipe import Recipe, named_features
from recsys.run.assembly import build_plannable
from recsys.run.config import SECTIONS, read_run_config
from recsys.sharding.cluster import ClusterConfig
from recsys.study.suite import SuiteConfig
from tests import tiny_world
from tests.jobs import JOBS
from tests.test_configs import CONFIGS, composed

VALUES = [None, True, -1, 0, 1, 3, 1_000, 1.5, math.nan, math.inf, -math.inf]
VALUES += ["", "x", "user_id", "a|b", "../x", "\0", "4", "${oc.env:HOME}", "1e3", "\u00e9"]
VALUES += [[], [1], ["x"], [None], [[]], {}, {"x": 1}, {"x": {"y": None}}, {1: 2}, [{"x": 1}]]
KEYS = ["x", "", "name", "colour", 1, None, True, "a.b", "\u00e9", "features", "rows"]


def places(node, path=()):
    """Every path to a value of nested dicts and lists."""
    yield path
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(value, (*path, key))


def broken(node, data):
    """A copy with one to three changes, and the keys that were touched."""
    node = copy.deepcopy(node)
    touched = []
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        found = [path for path in places(node) if path]
        if not found:
            break
        *path, key = data.draw(st.sampled_from(found), label="place")
        holder = functools.reduce(lambda n, k: n[k], path, node)
        touched += [str(k) for k in (*path, key) if isinstance(k, str)]
        change = data.draw(st.sampled_from(["replace", "remove", "rename", "add"]), label="change")
        value = copy.deepcopy(data.draw(st.sampled_from(VALUES), label="value"))
        if change == "replace" or not isinstance(holder, dict):
            holder[key] = value
        elif change == "remove":
            del holder[key]
        else:
            new = data.draw(st.sampled_from(KEYS), label="key")
            holder[new] = holder.pop(key) if change == "rename" else value
            touched.append(str(new))
    return node, touched


def read_recipe(node):
    recipe = from_config(Recipe, node, "data")
    rows = {key.rsplit(".", 1)[1]: 10 for key, _ in named_features(recipe) if ".tags." not in key}
    log = recipe.interactions
    for name in ("user_id", "item_id"):
        if getattr(log, name):
            rows[name] = 5
    planned_manifest(recipe, rows)


def read_run(node):
    config = read_run_config(node)
    manifest = tiny_world.manifest()
    (history,) = (feature for feature in manifest.features if feature.name == "history")
    negatives = dataclasses.replace(history, name="history_negative")
    build_plannable(
        config=config,
        manifest=dataclasses.replace(manifest, features=(*manifest.features, negatives)),
        modality_dims={name: table.dim for name, table in tiny_world.vectors().items()},
        device_type="cpu",
    )


def reader(schema, key):
    return lambda node: from_config(schema, node, key)


CASES = {
    "data": ("prepare", lambda cfg: cfg.data, read_recipe),
    "model": ("train", lambda cfg: {name: plain(cfg.get(name)) for name in SECTIONS}, read_run),
    "experiment": (
        "train",
        lambda cfg: {name: plain(cfg.get(name)) for name in SECTIONS},
        read_run,
    ),
    "optim": ("train", lambda cfg: {name: plain(cfg.get(name)) for name in SECTIONS}, read_run),
    "cluster": ("plan", lambda cfg: cfg.cluster, reader(ClusterConfig, "cluster")),
    "suite": ("compare", lambda cfg: cfg.suite, reader(SuiteConfig, "suite")),
    "encoder/image": ("embed", lambda cfg: cfg.encoder.image, reader(ImageConfig, "encoder.image")),
    "encoder/text": ("embed", lambda cfg: cfg.encoder.text, reader(TextConfig, "encoder.text")),
}


@pytest.mark.parametrize("group", CASES)
@pytest.mark.parametrize("max_examples", [12, pytest.param(120, marks=pytest.mark.slow)])
def test_group_of_configs_broken_at_random_is_refused_by_name_or_read(group, max_examples):
    root, section, read = CASES[group]
    options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
    nodes = {}
    for option in options:
        choices = {group: option} | ({"++data.source": "raw"} if root == "prepare" else {})
        nodes[option] = plain(section(composed(Path(f"{root}.yaml"), **choices)))

    # Without shrinking: what is drawn is small already, and a reader takes its time.
    @settings(
        max_examples=max_examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        node, touched = broken(nodes[data.draw(st.sampled_from(options), label="file")], data)
        try:
            read(node)
        except ValueError as error:
            assert any(key and key in str(error) for key in touched), str(error)

    check()


REQUIRED = {
    "events": {"workspace": "w"},
    "loadtest": {"url": "http://localhost:1"},
    "recommend": {"bundle": "b"},
    "serve": {"bundle": "b"},
    "sync": {"source": "a", "target": "b"},
}
"""Keys that every call of a job must give."""


def whole(name):
    """A job's configuration, with something for what every call of it must give."""
    return plain(composed(Path(f"{name}.yaml")), allow_missing=True) | REQUIRED.get(name, {})


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("max_examples", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_job_refuses_any_broken_configuration_by_name_or_reads_it(name, max_examples):
    module = JOBS[name]
    node = whole(name)

    @settings(
        max_examples=max_examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        changed, touched = broken(node, data)
        try:
            read_job(changed, module.KEYS)
        except ValueError as error:
            assert any(key and key in str(error) for key in touched), str(error)

    check()


@pytest.mark.parametrize("name", JOBS)
def test_job_refuses_every_key_of_a_wrong_type_in_one_sentence(name):
    """Every key of every job, and a value of every type that it does not take."""
    module = JOBS[name]
    node = whole(name)
    num_refused = 0
    for path in places(node):
        if not path or not all(isinstance(key, str) for key in path):
            continue
        for value in ("x", 3, 1.5, True, [1], [[]], {"x": 1}, {1: 2}):
            changed = copy.deepcopy(node)
            holder = functools.reduce(lambda n, k: n[k], path[:-1], changed)
            holder[path[-1]] = value
            try:
                read_job(changed, module.KEYS)
            except ValueError as error:
                num_refused += 1
                assert path[-1] in str(error), (path, value, str(error))
    assert num_refused >= 6 * len(node)
