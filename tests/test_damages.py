"""Damage to any file of a workspace: the reader names it and what makes it anew."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from embedding.features.catalogue import Catalogue
from embedding.features.opening import open_features
from embedding.features.store import FeatureTable
from embedding.image.config import ImageConfig
from embedding.image.heads import fit_heads
from embedding.image.making import ImageMaker
from embedding.image.sample import Pictures
from embedding.making import open_encoder
from embedding.text.config import TextConfig
from embedding.text.encoder import TextEncoder, build_scratch_encoder
from embedding.text.making import TextMaker
from embedding.text.pairs import read_pairs
from recsys.checkpoint.integrity import best_checkpoint, check_whole, newest_whole
from recsys.checkpoint.read import load_checkpoint
from recsys.checkpoint.state import TrainState
from recsys.checkpoint.write import save_checkpoint
from recsys.data.dataset import Dataset
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.predict import Predictions
from recsys.evaluation.rows import IdsOfRows, write_predictions
from recsys.evaluation.segments import (
    ROW_COLUMNS,
    SegmentsConfig,
    read_by_row_id,
    segments,
)
from recsys.files import write_json
from recsys.run.assembly import build_plannable, plan_model
from recsys.run.config import read_run_config
from recsys.run.fingerprint import scored_from
from recsys.run.folder import check_run_data, open_run_folder
from recsys.schema import read_manifest
from recsys.sharding.cluster import local_cluster
from recsys.sharding.plan import read_plan, write_plan
from recsys.study.runs import StudyRun, read_metrics, read_predictions
from recsys.train.log import _forget_after
from tests.checkpoint.test_saver import ALONE, Ranker
from tests.data.small_log import ITEMS, prepared, recipe, write_source
from tests.feature_tables import write_table
from tests.loaders import loader_in_order
from tests.test_files import damaged

DAMAGES = ["missing", "empty", "half", "garbage"]
READ_BY_NOBODY = {"vocab/item_id.parquet", "vocab/user_id.parquet"}
"""Kept for people and other programs."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A prepared and embedded data set with a file of every kind."""
    folder = tmp_path_factory.mktemp("damages")
    source = write_source(folder / "raw", items=ITEMS)
    (source / "pairs.csv").write_text("one,other\nTen,Thirty\nForty,Twenty\n")
    made = recipe(
        source,
        pairs=[
            {"file": "pairs.csv", "anchor": "one", "positive": "other", "perspective": "relation"}
        ],
        interactions__features={"rating": {"kind": "numeric", "cuts": [2, 4]}},
    )
    manifest, workspace = prepared(folder, made)
    for name in ("semantic", "text"):
        vectors = np.ones((manifest.num_item_rows, 3), dtype=np.float16)
        write_table(workspace / "features" / name, vectors, items_checksum=manifest.items_checksum)
    return workspace


def read_everything(workspace):
    """Read what jobs read of a workspace, each file by the function that jobs read it with."""
    prepared_folder = workspace / "prepared"
    manifest = read_manifest(workspace)
    tables = open_features(workspace, ["semantic", "text"], manifest)
    assert all(isinstance(table, FeatureTable) for table in tables.values())
    Catalogue(prepared_folder).column("text", [1, 2])
    read_pairs(prepared_folder)
    for side in ("user", "item"):
        ids = IdsOfRows.read(prepared_folder / f"{side}s.parquet", f"{side}_id", np.arange(1, 3))
        assert ids is not None and len(ids.of(np.array([2, 1]))) == 2
        path = prepared_folder / f"{side}s" / "train_count.npy"
        Dataset(prepared_folder, manifest, split="train", features=[]).array(
            path.relative_to(prepared_folder).with_suffix("").as_posix()
        )
    Dataset(prepared_folder, manifest, split="train", features=[]).array("items/drawn_count")
    features = [feature.name for feature in manifest.features]
    for split, spec in manifest.splits.items():
        dataset = Dataset(prepared_folder, manifest, split=split, features=features)
        loader = loader_in_order(dataset, 4)
        assert len(list(loader.batches(epoch=0))) > 0
        rows = pq.read_table(prepared_folder / spec.files[0])
        columns = {n: rows.column(n).to_numpy() for n in ("row_id", "user_row", "item_row")}
        list(
            segments(
                prepared=prepared_folder,
                manifest=manifest,
                row_values=read_by_row_id(
                    prepared_folder, manifest, split, columns["row_id"], ROW_COLUMNS
                ),
                user_row_N=columns["user_row"],
                item_row_N=columns["item_row"],
                item_counts=None,
                has_vector={},
                config=SegmentsConfig(),
            )
        )


def files_of(workspace):
    names = {
        path.relative_to(workspace).as_posix()
        for folder in ("prepared", "features")
        for path in (workspace / folder).rglob("*")
        # Hidden entries and hashes of rows are read by embed, which makes their shard anew.
        if path.is_file() and not path.name.startswith(".") and ".rows." not in path.name
    }
    return sorted(names - {f"prepared/{name}" for name in READ_BY_NOBODY})


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_is_named_with_the_command_that_makes_it_anew(whole, tmp_path, how):
    read_everything(whole)
    names = files_of(whole)
    assert len(names) > 18
    assert {name.rsplit(".", 1)[1] for name in names} == {"json", "npy", "parquet"}
    for name in names:
        shutil.copytree(whole, tmp_path / "w")
        damaged(tmp_path / "w" / name, how)
        if how == "missing" and name in ("prepared/users.parquet",):
            shutil.rmtree(tmp_path / "w")  # data without users has none
            continue
        with pytest.raises(ValueError, match=r"launch/(prepare|embed)\.py") as caught:
            read_everything(tmp_path / "w")
        assert str(caught.value).startswith(str(tmp_path / "w" / name)), name
        shutil.rmtree(tmp_path / "w")


# Runs

CONFIG = read_run_config({"run": {"name": "r"}, "model": {"embedding_dim": 4, "modalities": []}})
EVALUATION = EvaluateConfig(split="test")


class LoadedRanker(Ranker):
    """As much of a ShardedRanker as a checkpoint is loaded into."""

    def load_dense_state(self, state):
        self.dense.data.copy_(state["w"])

    def load_step_counts(self, counts):
        assert counts == {}


@pytest.fixture(scope="module")
def with_run(whole, tmp_path_factory):
    """The prepared data, and a run with a file of every kind that jobs read."""
    workspace = tmp_path_factory.mktemp("run") / "w"
    shutil.copytree(whole, workspace)
    manifest = read_manifest(workspace)
    folder = open_run_folder(workspace, CONFIG, manifest)
    ranker, tables = build_plannable(
        config=CONFIG, manifest=manifest, modality_dims={}, device_type="cpu"
    )
    plan = plan_model(
        config=CONFIG,
        manifest=manifest,
        ranker=ranker,
        tables=tables,
        cluster=local_cluster(ALONE),
    )
    write_plan(folder / "plan.json", plan)
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "train/loss": 0.5, "train/examples_per_second": 9.0}) + "\n"
            for step in (1, 2, 3)
        )
    )
    path = save_checkpoint(
        folder / "checkpoints",
        sharded=LoadedRanker(20),
        state=TrainState(step=2, best_step=2, best_metric=0.5, finished=True),
        env=ALONE,
        keep_last=1,
        best=True,
    )
    evaluation = folder / "eval" / "test"
    evaluation.mkdir(parents=True)
    made_from = scored_from(workspace, path, [], EVALUATION)
    write_json(evaluation / "metrics.json", {"all": {"auc": 0.5}, "made_from": made_from})
    rows = np.arange(8)
    (evaluation / "predictions.parquet").mkdir()
    write_predictions(
        evaluation / "predictions.parquet",
        Predictions(
            row_id=rows,
            user_row=rows % 2 + 1,
            item_row=rows % 3 + 1,
            label=(rows % 2).astype(np.float64),
            score=rows / 8,
            weights=np.zeros((8, 0), dtype=np.float32),
        ),
        modality_names=[],
        prepared=workspace / "prepared",
        unknown_users_N=None,
    )
    return workspace


def read_run(workspace):
    """Return what goes wrong when each job reads its part of the run."""
    folder = workspace / "runs" / "r"
    run = StudyRun(workspace=workspace, name="r", overrides=(), config=CONFIG)

    def evaluate():
        path = best_checkpoint(folder / "checkpoints")
        check_whole(path, ALONE)
        load_checkpoint(path, sharded=LoadedRanker(20), env=ALONE, with_optimizer=False)

    def load_unseen():
        path = folder / "checkpoints" / "step-00000002"
        load_checkpoint(path, sharded=LoadedRanker(20), env=ALONE)

    readings = {
        "check data": lambda: check_run_data(folder, CONFIG, read_manifest(workspace)),
        "plan": lambda: read_plan(folder / "plan.json"),
        "resume": lambda: newest_whole(folder / "checkpoints", ALONE),
        "evaluate": evaluate,
        "load": load_unseen,
        "is trained": run.trained,
        "is evaluated": lambda: run.changed_since_evaluation("test", EVALUATION),
        "validation": run.validation_metric,
        "size": run.num_parameters,
        "speed": run.examples_per_second,
        "metrics": lambda: read_metrics(run, "test"),
        "predictions": lambda: read_predictions(run, "test"),
        # Drops the half line of a killed process, so it comes last.
        "resume log": lambda: _forget_after(folder / "metrics.jsonl", 3),
    }
    errors = {}
    for name, read in readings.items():
        try:
            read()
        except ValueError as error:
            errors[name] = str(error)
    return errors


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_of_a_run_is_named_with_a_remedy(with_run, tmp_path, how):
    assert read_run(with_run) == {}
    folder = with_run / "runs" / "r"
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert len(names) == 12
    for name in names:
        shutil.copytree(with_run, tmp_path / "w")
        damaged(tmp_path / "w" / "runs" / "r" / name, how)
        errors = read_run(tmp_path / "w")
        assert errors, f"{name}: read as if nothing were wrong"
        for reader, text in errors.items():
            assert str(tmp_path / "w" / "runs" / "r") in text, (name, reader, text)
            assert name.rsplit("/", 1)[-1] in text, (name, reader, text)
            remedies = (
                "launch/train.py",
                "launch/evaluate.py",
                "launch/plan.py",
                "put back a copy",
            )
            remedies += ("run.overwrite=true", "delete it")
            assert any(remedy in text for remedy in remedies), (name, reader, text)
            assert "\n" not in text
        shutil.rmtree(tmp_path / "w")


# Encoders


class MadeAnewError(Exception):
    """The encoder is not there: embed would make it."""


@pytest.fixture
def encoders(whole, tmp_path, monkeypatch):
    """Open both encoders as embed does; making one is an error."""
    manifest = dataclasses.replace(read_manifest(whole), image_root=str(whole))
    image = ImageConfig(size=32, style_head="moments", semantic_head="pool")
    text = TextConfig(path="scratch", hidden_dim=8, num_layers=1, max_tokens=16)

    def write_image(maker, stamp):
        pixels = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
        pictures = Pictures(pixels=pixels, artists=[None] * 8, contents=[None] * 8)
        encoder = maker.build("none").eval()
        fit_heads(encoder, pictures, num_views=1, batch_size=8, seed=0)
        encoder.save(maker.folder, stamp.content())

    def write_text(maker, stamp):
        model = build_scratch_encoder(
            ["Ten red", "Twenty blue"],
            tmp_path,
            vocabulary_size=60,
            hidden_dim=8,
            num_layers=1,
            max_tokens=16,
            seed=0,
            device=torch.device("cpu"),
        )
        encoder = TextEncoder(model, 4)
        encoder.fit_scaling(["Ten red", "Twenty blue"])
        maker.folder.mkdir(parents=True)
        encoder.save(maker.folder)
        write_json(maker.folder / "config.json", stamp.content())

    def open_both(workspace):
        open_encoder(ImageMaker(workspace, manifest, image, seed=0, env=ALONE), retrain=False)
        open_encoder(TextMaker(workspace, manifest, text, seed=0, env=ALONE), retrain=False)

    def refuse(*arguments):
        raise MadeAnewError

    with monkeypatch.context() as patch:
        patch.setattr(ImageMaker, "make", write_image)
        patch.setattr(TextMaker, "make", write_text)
        open_both(tmp_path / "w")
    for maker in (ImageMaker, TextMaker):
        monkeypatch.setattr(maker, "make", refuse)
    return tmp_path / "w", open_both


@pytest.mark.parametrize("how", DAMAGES)
def test_every_damaged_file_of_an_encoder_is_named_with_a_remedy(encoders, tmp_path, how):
    workspace, open_both = encoders
    open_both(workspace)
    files = sorted(p for p in (workspace / "encoders").rglob("*") if p.is_file())
    assert len(files) > 11
    for file in files:
        content = file.read_bytes()
        damaged(file, how)
        is_not_there = (
            how == "missing"
            and file.name == "config.json"
            and len(file.parts) == len((workspace / "encoders" / "text" / "config.json").parts)
        )
        if is_not_there:
            with pytest.raises(MadeAnewError):
                open_both(workspace)
        elif how == "missing" and file.name == "files.json":
            open_both(workspace)  # as an encoder of an earlier version
        else:
            with pytest.raises(
                ValueError, match=r"delete \S+ and run launch/embed.py again"
            ) as caught:
                open_both(workspace)
            assert str(caught.value).startswith(f"{file}: "), file
            assert "\n" not in str(caught.value)
        file.write_bytes(content)
