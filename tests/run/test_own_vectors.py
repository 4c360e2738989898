"""Own vectors from the raw file to an answer of the server's library, without an encoder."""

import csv
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recsys.schema import read_manifest
from recsys.serving.recommender import Recommender
from tests.serving.tiny import WORLD
from tests.small_runs import SMALL


@pytest.mark.slow
def test_own_vectors_are_trained_evaluated_and_served_without_embed(tmp_path, job):
    def run(name, *arguments, ranks=0):
        done = job(name, f"workspace={tmp_path}", *arguments, ranks=ranks)
        assert done.returncode == 0, done.stderr
        return done

    run("demo", *WORLD)
    num_items = pq.read_metadata(tmp_path / "raw" / "items.parquet").num_rows
    rng = np.random.default_rng(3)
    np.save(tmp_path / "raw" / "clip.npy", rng.normal(size=(num_items, 6)))
    np.save(tmp_path / "raw" / "graph.npy", 50 * rng.normal(size=(num_items, 4)))
    own = [f"data.items.vectors.{name}.file={name}.npy" for name in ("clip", "graph")]
    run("prepare", "data=demo", *own)
    assert set(read_manifest(tmp_path).vectors) == {"clip", "graph"}
    names = ["data=demo", "run.name=own"]
    modalities = ["model.modalities=[clip,graph]", "model.interest_modalities=[clip]"]
    run("train", *names, *SMALL, *modalities, "train.epochs=1", ranks=2)
    run("evaluate", *names)
    predictions = pq.read_table(tmp_path / "runs" / "own" / "eval" / "test" / "predictions.parquet")
    weights = [name for name in predictions.column_names if name.startswith("weight_")]
    assert weights == ["weight_ids", "weight_clip", "weight_graph"]
    run("export", *names, "precision=fp32")
    recommender = Recommender.open(tmp_path / "bundles" / "current")
    user = recommender.bundle.vocabularies["user_id"].id_of(1)
    answer = recommender.recommend(user=user, k=5, explain=True)
    assert len(answer.items) == 5
    assert set(answer.items[0].weights) == {"ids", "clip", "graph"}
    near = recommender.similar(answer.items[0].id, by="graph", k=3)
    assert len(near.items) == 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vectors_of_the_posters_of_movielens_are_trained_and_served_without_embed(
    real_data, tmp_path, job
):
    """Every poster as its colours on a grid of 4 x 6; a film without one has a row of zeros."""
    source = real_data / "movielens"
    if not source.is_dir():
        pytest.skip(f"no folder movielens in {real_data}")
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("ratings.csv", "items.csv"):
        shutil.copyfile(source / name, raw / name)
    with open(raw / "items.csv", newline="", encoding="utf-8") as stream:
        films = [row["movieId"] for row in csv.DictReader(stream)]
    vectors = np.zeros((len(films), 4 * 6 * 3), dtype=np.float32)
    for row, film in enumerate(films):
        poster = source / "posters" / f"{film}.jpg"
        if poster.is_file():
            with Image.open(poster) as picture:
                small = picture.convert("RGB").resize((4, 6), Image.Resampling.BOX)
            vectors[row] = np.asarray(small, dtype=np.float32).reshape(-1) / 255
    np.save(raw / "posters.npy", vectors)

    def run(name, *arguments):
        done = job(name, "data=movielens", f"workspace={tmp_path / 'w'}", *arguments)
        assert done.returncode == 0, done.stderr[-2000:]

    place = [f"data.source={raw}", "data.items.image=null", "data.items.image_root=null"]
    run("prepare", *place, "data.items.vectors.posters.file=posters.npy")
    manifest = read_manifest(tmp_path / "w")
    assert set(manifest.vectors) == {"posters"}
    settings = ["model.modalities=[posters]", "model.interest_modalities=[]", "train.epochs=1"]
    run("train", "run.name=own", *SMALL, *settings)
    run("evaluate", "run.name=own", "ranking.num_users=0", "importance_rows=0")
    scored = tmp_path / "w" / "runs" / "own" / "eval" / "test" / "predictions.parquet"
    assert {"weight_ids", "weight_posters"} <= set(pq.read_table(scored).column_names)
    run("export", "run.name=own", "precision=fp32", "thumbnail_pixels=0", "map=false")
    recommender = Recommender.open(tmp_path / "w" / "bundles" / "current")
    user = recommender.bundle.vocabularies["user_id"].id_of(1)
    answer = recommender.recommend(user=user, k=5, explain=True)
    assert len(answer.items) == 5 and set(answer.items[0].weights) == {"ids", "posters"}
