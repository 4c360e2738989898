"""The real compare and sweep commands on a small drawn world: trained once, then left alone."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recsys.schema import read_manifest, write_manifest
from recsys.study.comparison import own_features
from recsys.study.suite import VariantConfig
from tests.feature_tables import write_table
from tests.processes import Running, family_of
from tests.small_runs import make_workspace, steps_saved
from tests.test_configs import CONFIGS
from tests.tiny_world import manifest

SMALL = '"model.embedding_dim=4","model.tower_dims=[8]","model.deep_dims=[8]","train.epochs=1"'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_suite_trains_what_is_missing_and_sweep_reads_validation_only(tmp_path, command, job):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    sizes = ["world.num_items=120", "world.num_users=60", "world.num_exposures=1500"]
    base = ["data=demo", f"workspace={tmp_path}"]
    for name, more in (("demo", ["processes=1", *sizes]), ("prepare", ["data=demo"])):
        done = job(name, f"workspace={tmp_path}", *more)
        assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path)
    for index, name in enumerate(("semantic", "style", "text")):
        vectors = np.random.default_rng(index).normal(size=(manifest.num_item_rows, 8))
        folder = tmp_path / "features" / name
        write_table(folder, vectors, items_checksum=manifest.items_checksum)
    base += ["tracker=[mlflow,wandb]"]
    suite = [*base, "suite=baselines", "variants=[umair_fps,fm]", f"overrides=[{SMALL}]"]
    done = command("compare", *suite, "seeds=2", "trials=2", timeout_seconds=600)
    assert done.returncode == 0, done.stderr
    assert "train: 0 of 4 runs are there" in done.stdout
    folder = tmp_path / "comparisons" / "baselines"
    with open(folder / "comparison.csv", newline="") as stream:
        records = list(csv.DictReader(stream))
    assert [(r["run"], r["seed"]) for r in records] == [
        *(("umair_fps", "0"), ("umair_fps", "1"), ("fm", "0"), ("fm", "1"))
    ]
    # Tuning and training see the validation split; trials are never scored on test.
    trials = list((tmp_path / "runs").glob("*-trial*"))
    assert len(trials) == 4 and not list((tmp_path / "runs").glob("*-trial*/eval"))

    again = job("compare", *suite, "seeds=2", "trials=2")
    assert again.returncode == 0, again.stderr
    assert "train: 4 of 4 runs are there" in again.stdout
    assert "evaluate on test: 4 of 4 are there" in again.stdout

    sweep = [*base, "sweep.name=small", f'overrides=["model=lr",{SMALL}]', "sweep.trials=2"]
    done = command("sweep", *sweep)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "sweeps" / "small" / "best.json").read_text())
    assert best["num_trials"] == 2
    assert not list((tmp_path / "runs").glob("small-*-trial*/eval"))

    # Every training is one run of the trackers, grouped; those of the comparison have test metrics.
    for run in (tmp_path / "runs").iterdir():
        assert list((run / "wandb").glob("offline-run-*/*.wandb")), run
        assert not (run / "tensorboard").exists()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo").experiment_id
    found = client.search_runs([experiment])
    assert sorted(run.info.run_name for run in found) == sorted(
        run.name for run in (tmp_path / "runs").iterdir()
    )
    groups = Counter(run.data.tags["group"] for run in found)
    assert groups == {"baselines": 8, "small": 2}
    assert {run.info.status for run in found} == {"FINISHED"}
    scored = [run.info.run_name for run in found if "test/auc" in run.data.metrics]
    assert sorted(scored) == sorted(f"baselines-{r['run']}-seed{r['seed']}" for r in records)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_studies_run_in_any_folder_and_find_a_recipe_by_its_file(tmp_path, job):
    """The recipe's name is not its file's, and the path is full of Hydra's and the shell's letters."""
    made = make_workspace(tmp_path / "w", job)
    workspace = made.rename(tmp_path / "w\u00e4 (1)=,[x]#'\u732b")
    recipe = tmp_path / "own (1)" / "data" / "mine 2.yaml"
    recipe.parent.mkdir(parents=True)
    shipped = (CONFIGS / "data" / "demo.yaml").read_text(encoding="utf-8")
    recipe.write_text(shipped.replace("name: demo", "name: other"), encoding="utf-8")
    base = [f"--config-dir={recipe.parents[1]}", "data=mine 2", f"workspace={workspace}"]
    sweep = [*base, "sweep.name=1e3", f'overrides=["model=lr",{SMALL}]', "sweep.trials=1"]
    done = job("sweep", *sweep)
    assert done.returncode == 0, done.stderr
    # What is advised is a command: a shell takes it as it stands.
    line = done.stdout.rpartition("next: ")[2].strip()
    told = subprocess.run(
        ["bash", "-c", line.replace("python ", f"{sys.executable} ", 1)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert (workspace / "runs" / "1e3" / "config.yaml").is_file()
    # Another model under the same name has trials of its own.
    sweep = [*base, "sweep.name=1e3", f'overrides=["model=fm",{SMALL}]', "sweep.trials=1"]
    done = job("sweep", *sweep)
    assert done.returncode == 0, done.stderr
    assert len(list((workspace / "runs").glob("1e3-*-trial0"))) == 2
    suite = [*base, "suite=baselines", "variants=[lr]", "suite.reference=lr", "seeds=1"]
    done = job("compare", *suite, f"overrides=[{SMALL}]", timeout_seconds=400)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_study_takes_its_trainings_along_and_goes_on(tmp_path, job):
    workspace = make_workspace(tmp_path / "w", job)
    arguments = ["data=demo", f"workspace={workspace}", "suite=baselines", "variants=[umair_fps]"]
    longer = SMALL.replace("epochs=1", "epochs=200") + ',"train.patience=0"'
    arguments += ["seeds=1", f"overrides=[{longer}]"]
    running = Running("compare", *arguments, log=tmp_path / "log")
    lines = workspace / "runs" / "baselines-umair_fps-seed0" / "metrics.jsonl"
    assert running.wait_until(lines.is_file), running.said()
    family = family_of(running.process.pid)
    assert len(family) > 1
    running.process.terminate()
    assert running.finish(seconds=60) == 143
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    saved = steps_saved(workspace, "baselines-umair_fps-seed0")
    assert saved, "the training saved before it went"

    again = Running("compare", *arguments, log=tmp_path / "log")
    log = workspace / "comparisons" / "baselines" / "logs" / "baselines-umair_fps-seed0-train.log"
    assert again.wait_until(lambda: f"resumed from step-{saved[-1]:08d}" in log.read_text())
    again.process.terminate()
    assert again.finish(seconds=60) == 143


def test_variant_with_an_encoder_of_its_own_gets_features_of_its_own_once(tmp_path):
    """The rest of its workspace points to the common one; changed settings embed again."""
    started = []

    class Recorded:
        def job(self, name, workspace, run_name, overrides):
            started.append((name, workspace.name, overrides))

    (tmp_path / "w" / "prepared").mkdir(parents=True)
    write_manifest(tmp_path / "w" / "prepared", manifest())
    variant = VariantConfig(embed=["encoder.image.style_head=gram_max"])

    def place(embed):
        folder = tmp_path / "w" / "comparisons" / "style"
        return own_features(Recorded(), tmp_path / "w", folder, "gram_max", variant, embed)

    own = place([])
    assert place([]) == own
    assert started == [("embed", "gram_max", ["encoder.image.style_head=gram_max"])]
    assert read_manifest(own) == read_manifest(tmp_path / "w")
    place(["encoder/image=tiny"])
    assert len(started) == 2 and started[1][2][0] == "encoder/image=tiny"
    plain = own_features(Recorded(), tmp_path, tmp_path, "full", VariantConfig(), [])
    assert plain == tmp_path and len(started) == 2


def test_bad_request_is_one_sentence(tmp_path, job):
    base = ["data=demo", f"workspace={tmp_path}"]
    done = job("compare", *base)
    assert done.returncode == 1 and "neither suite= nor runs= given" in done.stderr
    done = job("compare", *base, "suite=umcm", "variants=[magic]")
    assert done.returncode == 1 and "variants=magic: the suite 'umcm' has attention" in done.stderr
