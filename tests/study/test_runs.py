"""What a study starts: only what is missing, on its share of the cores, and failures say why."""

import dataclasses
import json
import os

import numpy as np
import pytest
import yaml
from hydra import initialize_config_dir

from recsys.checkpoint.integrity import describe_file
from recsys.checkpoint.integrity import write_manifest as write_checkpoint_manifest
from recsys.errors import UserError
from recsys.evaluation.candidates import RankingConfig
from recsys.evaluation.config import EvaluateConfig
from recsys.files import write_json
from recsys.run.config import RunConfig, read_run_config
from recsys.run.fingerprint import scored_from
from recsys.run.folder import open_run_folder, read_stored
from recsys.schema import read_manifest, write_manifest
from recsys.study.comparison import named_runs
from recsys.study.runs import Commands, DivergedError, StudyRun, study_run
from recsys.train.log import DIVERGED
from tests.feature_tables import write_table
from tests.tiny_world import NUM_ITEMS, manifest


class Recorded(Commands):
    """Notes jobs in place of starting them, and leaves a finished run behind."""

    def job(self, name, workspace, run_name, overrides):
        self.started.append((name, run_name, tuple(overrides)))


@pytest.fixture
def commands(tmp_path):
    recorded = Recorded(data=["data=demo"], num_parallel=1, num_ranks=1, logs=tmp_path / "logs")
    recorded.started = []
    return recorded


def run(workspace, name, state):
    """A run whose folder says `state` ("none", "finished", "changed")."""

    class Stated(StudyRun):
        def trained(self):
            if state == "changed":
                raise UserError("its run was started with other settings")
            return state == "finished"

        def validation_metric(self):
            return 0.8

    return Stated(workspace=workspace, name=name, overrides=("a=1",), config=RunConfig())


def test_only_missing_runs_are_trained(commands, tmp_path):
    runs = [run(tmp_path, "new", "none"), run(tmp_path, "old", "finished")]
    commands.train(runs, overwrite=False)
    assert commands.started == [("train", "new", ("a=1",))]


def test_changed_run_stops_the_study_or_is_trained_anew(commands, tmp_path):
    changed = [run(tmp_path, "changed", "changed")]
    with pytest.raises(ValueError, match="other settings"):
        commands.train(changed, overwrite=False)
    assert commands.started == []
    commands.train(changed, overwrite=True)
    assert commands.started == [("train", "changed", ("a=1", "run.overwrite=true"))]


def test_training_that_diverged_is_told_from_one_that_failed(commands, tmp_path):
    """A search goes on after the first, and nothing does after the second."""

    def job(name, workspace, run_name, overrides):
        if run_name == "diverging":
            (workspace / "runs" / run_name).mkdir(parents=True)
            write_json(workspace / "runs" / run_name / DIVERGED, {"reason": "the loss is nan"})
        if run_name != "good":
            raise UserError("failed with code 1")

    commands.job = job
    with pytest.raises(DivergedError, match="diverging: the loss is nan"):
        commands.train([run(tmp_path, "diverging", "none")], overwrite=False)
    commands.train([run(tmp_path, "good", "none")], overwrite=False)
    with pytest.raises(ValueError, match="failed with code 1") as error:
        commands.train([run(tmp_path, "failing", "none")], overwrite=False)
    assert not isinstance(error.value, DivergedError)


# Whose own a finished run is


def write_run(workspace, *, trained_with, extended=(), finished=True):
    """A run folder as training leaves it."""
    folder = open_run_folder(workspace, trained_with, read_manifest(workspace))
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "index.json").write_text(json.dumps({"state": {"finished": finished}}))
    files = {"index.json": describe_file(checkpoint / "index.json")}
    write_checkpoint_manifest(checkpoint, files)
    best = {"checkpoint": checkpoint.name, "metric": 0.7}
    (folder / "checkpoints" / "best.json").write_text(json.dumps(best))
    for config in extended:
        open_run_folder(workspace, config, read_manifest(workspace))
    return folder


def workspace_of(folder, **changed):
    """Prepared data and one feature table; `changed` are fields of the manifest."""
    (folder / "prepared").mkdir(parents=True, exist_ok=True)
    made = dataclasses.replace(manifest(), checksums={"train.parquet": "a"}, **changed)
    write_manifest(folder / "prepared", made)
    write_table(folder / "features" / "semantic", np.ones((NUM_ITEMS, 3), dtype=np.float16))
    return folder


def config_of(**sections):
    return read_run_config({"run": {"name": "r"}, **sections})


def asked(workspace, **sections):
    return StudyRun(workspace=workspace, name="r", overrides=(), config=config_of(**sections))


def test_run_of_the_same_settings_and_data_is_a_studys_own(tmp_path):
    workspace = workspace_of(tmp_path)
    assert not asked(workspace).trained()
    write_run(workspace, trained_with=config_of())
    assert asked(workspace).trained()
    # How a run is carried out decides nothing.
    assert asked(workspace, plan={"search": "fast"}, train={"keep_last": 5}).trained()


def test_interrupted_run_is_a_studys_own_and_goes_on(tmp_path):
    workspace = workspace_of(tmp_path)
    write_run(workspace, trained_with=config_of(), finished=False)
    assert not asked(workspace).trained()
    with pytest.raises(ValueError, match=r"train.epochs was 10, is 100"):
        asked(workspace, train={"epochs": 100}).trained()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "epochs", 100),
        ("train", "patience", 7),
        ("train", "evaluate_every_steps", 5),
        ("train", "metric", "log_loss"),
        ("train", "global_batch_size", 64),
        ("train", "num_lanes", 4),
        ("model", "dropout", 0.5),
        ("model", "name", "fm"),
        ("optim", "dense_learning_rate", 0.1),
        ("model", "embedding_dim", 8),
    ],
)
def test_run_of_another_deciding_key_is_not_a_studys_own(tmp_path, section, key, value):
    workspace = workspace_of(tmp_path)
    write_run(workspace, trained_with=config_of())
    other = asked(workspace, **{section: {key: value}})
    with pytest.raises(ValueError, match=rf"other settings \({section}.{key} was .*overwrite=true"):
        other.trained()
    assert other.fingerprint() != asked(workspace).fingerprint()


@pytest.mark.parametrize(
    "table", [{"width": 8}, {"precision": "fp16"}, {"optimizer": {"name": "sgd", "l2": 0.1}}]
)
def test_a_tables_form_and_optimizer_decide_a_run_and_its_placement_does_not(tmp_path, table):
    workspace = workspace_of(tmp_path)
    write_run(workspace, trained_with=config_of())
    placed = {"sharding": "row_wise", "kernel": "fused_uvm_caching", "cache_load_factor": 0.5}
    assert asked(workspace, tables={"item_id": placed, "user_id": {"ranks": [0]}}).trained()
    other = asked(workspace, tables={"item_id": placed | table})
    with pytest.raises(ValueError, match=r"other settings \(tables was {}, is {'item_id': "):
        other.trained()
    assert other.fingerprint() != asked(workspace).fingerprint()


def test_run_from_another_seed_is_not_a_studys_own(tmp_path):
    workspace = workspace_of(tmp_path)
    write_run(workspace, trained_with=config_of())
    with pytest.raises(ValueError, match="run.seed was 0, is 3"):
        asked(workspace, run={"name": "r", "seed": 3}).trained()


def test_run_of_other_data_or_other_vectors_is_not_a_studys_own(tmp_path):
    workspace = workspace_of(tmp_path)
    write_run(workspace, trained_with=config_of())
    before = asked(workspace).fingerprint()
    write_table(workspace / "features" / "semantic", np.zeros((NUM_ITEMS, 3), dtype=np.float16))
    with pytest.raises(ValueError, match=r"data.features was .*semantic"):
        asked(workspace).trained()
    assert asked(workspace).fingerprint() != before
    # A model that reads no vectors does not depend on them.
    ids = {"modalities": [], "interest_modalities": []}
    ids_only = asked(workspace, model=ids).fingerprint()
    workspace_of(tmp_path)
    assert asked(workspace).trained()
    assert asked(workspace, model=ids).fingerprint() == ids_only
    made = dataclasses.replace(manifest(), checksums={"train.parquet": "b"})
    write_manifest(workspace / "prepared", made)
    with pytest.raises(ValueError, match="data.identity was"):
        asked(workspace).trained()


def test_extended_run_goes_on_but_is_no_studys_own(tmp_path):
    """One epoch continued to a hundred is not a run of a hundred: schedules and patience differ."""
    workspace = workspace_of(tmp_path)
    once, long = config_of(train={"epochs": 1}), config_of(train={"epochs": 100})
    folder = write_run(workspace, trained_with=once, extended=[long, long])
    with pytest.raises(ValueError, match=r"\(extended: train.epochs was 1, is 100\)"):
        asked(workspace, train={"epochs": 100}).trained()
    assert read_stored(folder)["extended"] == ["train.epochs was 1, is 100"]


def test_run_of_an_earlier_version_is_compared_by_what_it_tells(tmp_path):
    workspace = workspace_of(tmp_path)
    folder = write_run(workspace, trained_with=config_of(train={"epochs": 1}))
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    del stored["data"]["features"], stored["extended"], stored["model"]["dropout"]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    assert asked(workspace, train={"epochs": 1}).trained()
    with pytest.raises(ValueError, match="train.epochs was 1, is 10"):
        asked(workspace).trained()


def test_evaluation_of_another_checkpoint_data_features_or_settings_is_made_again(tmp_path):
    workspace = workspace_of(tmp_path)
    folder = write_run(workspace, trained_with=config_of())
    scored, settings = asked(workspace), EvaluateConfig()
    assert scored.validation_metric() == 0.7
    assert not scored.evaluated("test", settings)
    metrics = folder / "eval" / "test" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    best = folder / "checkpoints" / "step-00000001"

    def evaluate():
        modalities = scored.config.model.modalities
        write_json(metrics, {"made_from": scored_from(workspace, best, modalities, settings)})

    evaluate()
    assert scored.evaluated("test", settings)
    other = EvaluateConfig(ranking=RankingConfig(num_users=0))
    assert scored.changed_since_evaluation("test", other) == ["settings"]

    (best / "index.json").write_text(json.dumps({"state": {"finished": True, "step": 2}}))
    write_checkpoint_manifest(best, {"index.json": describe_file(best / "index.json")})
    assert scored.changed_since_evaluation("test", settings) == ["checkpoint"]
    with pytest.raises(ValueError, match=r"metrics.json: scored with another checkpoint than are"):
        named_runs(workspace, ["r"], "test")
    evaluate()
    write_table(workspace / "features" / "semantic", np.zeros((NUM_ITEMS, 3), dtype=np.float16))
    assert scored.changed_since_evaluation("test", settings) == ["features"]
    evaluate()
    changed = dataclasses.replace(manifest(), checksums={"train.parquet": "b"})
    write_manifest(workspace / "prepared", changed)
    assert scored.changed_since_evaluation("test", settings) == ["data"]
    # To score it again would be refused: the run itself is of other data.
    with pytest.raises(ValueError, match=r"was trained on other data .*data.identity was"):
        named_runs(workspace, ["r"], "test")
    # One of an earlier version does not say what it was made from: a study makes it anew.
    metrics.write_text("{}")
    assert not scored.evaluated("test", settings)
    with pytest.raises(ValueError, match=r"was trained on other data .*data.identity was"):
        named_runs(workspace, ["r"], "test")
    again = write_run(workspace, trained_with=config_of(run={"name": "again"}))
    (again / "eval" / "test").mkdir(parents=True)
    (again / "eval" / "test" / "metrics.json").write_text("{}")
    assert list(named_runs(workspace, ["again"], "test")) == ["again"]


EARLIER_SETTINGS = {
    "with all keys": ({}, []),
    "without a newer key": ({"sample_users": ...}, []),
    "with a removed key that is off": ({"compare": []}, []),
    "with a removed key in use": ({"compare": ["a", "b"]}, ["settings"]),
    "with an unknown key": ({"colour": "red"}, ["settings"]),
    "without a newer key, otherwise": ({"sample_users": ..., "seed": 3}, ["settings"]),
}


@pytest.mark.parametrize("case", EARLIER_SETTINGS)
def test_settings_of_an_earlier_version_are_the_same_where_they_mean_the_same(tmp_path, case):
    stored, changed = EARLIER_SETTINGS[case]
    workspace, settings = workspace_of(tmp_path), EvaluateConfig()
    folder = write_run(workspace, trained_with=config_of())
    scored = asked(workspace)
    best = folder / "checkpoints" / "step-00000001"
    made_from = scored_from(workspace, best, scored.config.model.modalities, settings)
    made_from["settings"] |= stored
    made_from["settings"] = {k: v for k, v in made_from["settings"].items() if v is not ...}
    (folder / "eval" / "test").mkdir(parents=True)
    write_json(folder / "eval" / "test" / "metrics.json", {"made_from": made_from})
    assert scored.changed_since_evaluation("test", settings) == changed
    other = EvaluateConfig(sample_users=settings.sample_users + 1)
    assert scored.changed_since_evaluation("test", other) == ["settings"]


def test_an_evaluation_of_other_candidates_is_made_again_and_compared_until_then(tmp_path):
    workspace, settings = workspace_of(tmp_path), EvaluateConfig()
    folder = write_run(workspace, trained_with=config_of())
    scored = asked(workspace)
    best = folder / "checkpoints" / "step-00000001"
    made_from = scored_from(workspace, best, scored.config.model.modalities, settings)
    del made_from["candidates"]  # evaluations of earlier versions have none
    (folder / "eval" / "test").mkdir(parents=True)
    write_json(folder / "eval" / "test" / "metrics.json", {"made_from": made_from})
    assert scored.changed_since_evaluation("test", settings) == ["candidates"]
    assert not scored.evaluated("test", settings)
    assert list(named_runs(workspace, ["r"], "test")) == ["r"]


def test_settings_that_a_model_lacks_are_left_out_of_its_runs(tmp_path, repository):
    shared = ["model.dropout=0.3", "model.second_order=true", "optim.table.l2=1e-3"]
    with initialize_config_dir(version_base=None, config_dir=str(repository / "configs")):
        own = {
            name: study_run(["data=demo"], tmp_path, "a", [f"model={name}", *shared]).overrides
            for name in ("lr", "dcn_v2", "base")
        }
    assert own["lr"] == ("model=lr", "optim.table.l2=1e-3")
    assert own["dcn_v2"] == ("model=dcn_v2", "model.dropout=0.3", "optim.table.l2=1e-3")
    assert own["base"] == ("model=base", *shared)


def test_failed_job_carries_its_last_words(tmp_path):
    commands = Commands(data=["data=demo"], num_parallel=1, num_ranks=1, logs=tmp_path / "logs")
    with pytest.raises(ValueError, match=r"failed with code 1 .*\n.*no prepared data here"):
        commands.job("evaluate", tmp_path, "nobody", ["split=test"])


def test_more_jobs_than_cores_are_refused(tmp_path):
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match=f"parallel={cores} with ranks=2: .* the {cores} cores"):
        Commands(data=["data=demo"], num_parallel=cores, num_ranks=2, logs=tmp_path)
