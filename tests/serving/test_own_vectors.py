"""New items bring vectors of modalities that have no encoder: scaled and read as those of the recipe."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys.bundle.bundle import Bundle
from recsys.data.prepare.pipeline import prepare
from recsys.errors import UserError
from recsys.export.export import ExportConfig, export, open_source
from recsys.run.folder import read_run_folder
from recsys.schema import read_manifest
from recsys.serving.recommender import Recommender
from tests.export.untrained import NUM_ITEMS, recipe, write_run, write_source


@pytest.fixture(scope="module")
def clip():
    """Vectors [NUM_ITEMS, 6] in the order of the items file, far from scale 1."""
    return (40 * np.random.default_rng(3).normal(size=(NUM_ITEMS, 6))).astype(np.float32)


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory, clip, one_process):
    """The bundle of a model that reads the vectors `clip` alone."""
    workspace = tmp_path_factory.mktemp("own") / "w"
    write_source(workspace / "raw")
    np.save(workspace / "raw" / "clip.npy", clip)
    given = recipe(workspace / "raw", has_contents=False, own_vectors="clip")
    prepare(given, workspace, memory_limit="500MB", threads=1)
    model = {"name": "umair_fps", "modalities": ["clip"], "interest_modalities": ["clip"]}
    write_run(workspace, "run", one_process, model)
    source = open_source(
        workspace, read_run_folder(workspace / "runs" / "run"), read_manifest(workspace)
    )
    return export(source, ExportConfig(precision="fp32", check_rows=0), threads=1)


@pytest.fixture
def recommender(bundle_folder):
    return Recommender(Bundle.open(bundle_folder))


def test_an_added_item_with_an_items_vector_has_its_vector_and_is_nearest_to_it(recommender, clip):
    bundle = recommender.bundle
    card = recommender.add_item("new", vectors={"clip": clip[7].tolist()}, features={"year": 1977})
    assert (card.is_new, card.modalities) == (True, ["clip"])
    rows = torch.from_numpy(bundle.item_rows(["i7", "new"]))
    vectors, present = bundle.items.modality("clip", rows)
    assert torch.equal(vectors[0], vectors[1])
    assert present.tolist() == [1, 1]
    assert recommender.similar("i7", by="clip", k=1).items[0].id == "new"
    assert "new" in {item.id for item in recommender.recommend(likes=["i7"], k=100).items}


def test_a_vector_of_zeros_is_none(recommender):
    card = recommender.add_item("new", vectors={"clip": [0.0] * 6}, features={"year": 1977})
    assert card.modalities == []


def test_vectors_that_are_none_of_the_bundle_are_refused_with_what_it_expects(recommender):
    for vectors, reason in (
        ({"text": [1.0]}, "'text' given; an item of this bundle brings vectors of clip"),
        ({"clip": [1.0] * 5}, "clip: 5 numbers, expected 6"),
        ({"clip": [1e9] * 6}, r"clip: a number as large as 1e\+09"),
    ):
        with pytest.raises(UserError, match=reason):
            recommender.add_item("new", vectors=vectors)
    for wrong in ([], [float("nan")] * 6, ["a"], [0.0] * 9000):
        with pytest.raises((UserError, ValidationError), match="vectors"):
            recommender.add_item("new", vectors={"clip": wrong})
    assert not recommender.bundle.item_rows(["new"])[0]
