"""Own vectors from the raw file to an answer of the server's library, without an encoder."""

import numpy as np
import pyarrow.parquet as pq
import pytest

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
