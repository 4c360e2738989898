"""The real compare and sweep commands on a small drawn world: trained once, then left alone."""

import csv
import json

import numpy as np
import pytest

from launch.compare import own_features
from recsys.schema import read_manifest, write_manifest
from recsys.study.suite import VariantConfig
from tests.feature_tables import write_table
from tests.tiny_world import manifest

SMALL = '"model.embedding_dim=4","model.tower_dims=[8]","model.deep_dims=[8]","train.epochs=1"'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_suite_trains_what_is_missing_and_sweep_reads_validation_only(tmp_path, job):
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
    suite = [*base, "suite=baselines", "variants=[umair_fps,fm]", f"overrides=[{SMALL}]"]
    done = job("compare", *suite, "seeds=2", "trials=2", timeout_seconds=600)
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
    done = job("sweep", *sweep)
    assert done.returncode == 0, done.stderr
    best = json.loads((tmp_path / "sweeps" / "small" / "best.json").read_text())
    assert best["num_trials"] == 2
    assert not list((tmp_path / "runs").glob("small-trial*/eval"))


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
