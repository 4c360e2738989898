"""Vectors of posters that another model made, as .npy: trained, exported and searched without `embed`."""

import numpy as np
import pytest

from recsys.evaluation.result import read_result
from recsys.serving.recommender import Recommender

RECIPE = """
name: films
source: {source}
interactions:
  file: ratings.csv
  user_id: userId
  item_id: movieId
  timestamp: timestamp
  label: "rating >= 4"
items:
  file: items.csv
  item_id: movieId
  title: title
  features:
    genres: {{kind: id_list}}
  vectors:
    poster: {{file: posters.npy}}
split: {{strategy: per_user_time, fractions: [0.6, 0.2, 0.2]}}
"""
NUM_ITEMS, NUM_USERS, NUM_RATINGS, DIM = 300, 40, 30, 8
MODEL = [
    "model.modalities=[poster]",
    "model.interest_modalities=[poster]",
    "model.features=[user_id]",
]
MODEL += ["model.tower_dims=[16]", "model.deep_dims=[8]", "model.cross_layers=1"]
TRAIN = ["train.global_batch_size=64", "train.epochs=12", "optim.dense_learning_rate=1e-2"]


def write_films(folder):
    """Films in the order of the items file, each with a poster but every tenth; taste is their sign."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    posters = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    posters[:, 0] = np.where(rng.random(NUM_ITEMS) < 0.5, -2, 2)
    posters[::10] = 0
    np.save(folder / "posters.npy", posters)
    order = rng.permutation(NUM_ITEMS)
    items = ["movieId,title,genres"]
    items += [f"{10 * place},Film {place},Drama|War" for place in range(NUM_ITEMS)]
    (folder / "items.csv").write_text("\n".join(items) + "\n")
    ratings = ["userId,movieId,rating,timestamp"]
    for user in range(NUM_USERS):
        taste = 1 if user % 2 else -1
        for time in range(NUM_RATINGS):
            item = int(order[(user * NUM_RATINGS + time) % NUM_ITEMS])
            is_liked = rng.random() < (0.9 if taste * posters[item, 0] > 0 else 0.1)
            ratings.append(f"{user},{10 * item},{5 if is_liked else 2},{1000 + time}")
    (folder / "ratings.csv").write_text("\n".join(ratings) + "\n")
    return posters


@pytest.fixture(scope="module")
def films(tmp_path_factory, job):
    """A trained, evaluated and exported run, and the vectors it was given."""
    folder = tmp_path_factory.mktemp("films")
    posters = write_films(folder / "raw")
    (folder / "data").mkdir()
    (folder / "data" / "films.yaml").write_text(RECIPE.format(source=folder / "raw"))
    place = [f"--config-dir={folder}", "data=films", f"workspace={folder / 'w'}"]
    run = "run.name=own"
    for name, *more in (
        ("prepare",),
        ("train", run, *MODEL, *TRAIN),
        ("evaluate", run, "split=test"),
        ("export", run, "precision=fp32"),
    ):
        done = job(name, *place, *more)
        assert done.returncode == 0, done.stderr
    assert not (folder / "w" / "encoders").exists()
    return folder / "w", posters


@pytest.mark.slow
def test_taste_is_learned_from_vectors_alone(films):
    workspace, _ = films
    result = read_result(workspace / "runs" / "own" / "eval" / "test" / "metrics.json", "again")
    # 0.9 at best; items are new to most users, and no id of an item is read.
    assert result.all.flat()["auc"] > 0.75


@pytest.mark.slow
def test_a_bundle_recommends_and_compares_by_the_vectors(films):
    workspace, posters = films
    recommender = Recommender.open(workspace / "bundles" / "current")
    assert recommender.bundle.spec.vector_names == ("poster",)
    found = recommender.similar("10", by="poster", k=1).items[0]
    unit = posters / np.maximum(np.linalg.norm(posters, axis=1, keepdims=True), 1e-9)
    cosines = unit @ unit[1]
    cosines[1] = -1
    assert found.id == str(10 * int(cosines.argmax()))
    liked = [str(10 * item) for item in np.flatnonzero(posters[:, 0] > 0)[:8]]
    listed = [int(item.id) // 10 for item in recommender.recommend(likes=liked, k=20).items]
    assert np.mean(posters[listed, 0] > 0) > 0.7
