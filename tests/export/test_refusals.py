"""Exports that are refused leave everything as it was; data of earlier versions is exported."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from recsys.bundle import tables
from recsys.bundle.bundle import Bundle
from recsys.config import from_config
from recsys.errors import UserError
from recsys.export import check
from recsys.export.export import ExportConfig, export, open_source
from recsys.metrics.auc import auc
from recsys.run.folder import read_run_folder
from recsys.schema import read_manifest, write_manifest
from tests.export.untrained import make_workspace, write_run

SETTINGS = ExportConfig(precision="fp32", thumbnail_pixels=0)


@pytest.fixture
def workspace(tmp_path, one_process):
    """Data with the run `run`."""
    made = make_workspace(tmp_path / "w")
    write_run(made, "run", one_process, {"name": "umair_fps"})
    return made


def source_of(workspace):
    return open_source(
        workspace, read_run_folder(workspace / "runs" / "run"), read_manifest(workspace)
    )


def test_a_bundle_that_scores_otherwise_is_refused_and_the_one_before_stays(workspace, monkeypatch):
    source = source_of(workspace)
    before = export(source, SETTINGS, threads=1)
    monkeypatch.setattr(check, "MOST_DIFFERENCE", -1.0)
    with pytest.raises(UserError, match=r"differ from the run's by up to .*nothing was exported"):
        export(source, dataclasses.replace(SETTINGS, check_rows=50), threads=1)
    bundles = workspace / "bundles"
    assert sorted(path.name for path in bundles.iterdir()) == ["current", before.name]
    assert Bundle.open(bundles / "current", verify="sha256").folder == before


@pytest.mark.slow
def test_smaller_tables_that_lose_more_auc_than_allowed_are_refused(workspace, monkeypatch):
    source, quantise = source_of(workspace), tables.quantise

    def coarse(values_BD):
        """Every value of a row is its least or its greatest."""
        numbers_BD, scales_B2 = quantise(values_BD)
        return (numbers_BD // 128) * np.uint8(255), scales_B2

    best_N: list[np.ndarray] = []

    def auc_of_own_order(labels_N, scores_N):
        """With the run's upper half for positives: the weights are random, and so would the AUC be."""
        best_N.append(scores_N > np.median(scores_N))
        return auc(best_N[0], scores_N)

    monkeypatch.setattr(tables, "quantise", coarse)
    monkeypatch.setattr(check, "auc", auc_of_own_order)
    smaller = dataclasses.replace(SETTINGS, precision="int8")
    with pytest.raises(UserError, match=r"precision=int8: .* below the run's, .*precision=fp32"):
        export(source, smaller, threads=1)
    assert not list((workspace / "bundles").iterdir())
    anyhow = export(source, dataclasses.replace(smaller, max_auc_loss=None), threads=1)
    measured = Bundle.open(anyhow).spec.measured
    assert measured["auc_full"] == 1
    assert measured["auc_exported"] < 1 - 2 * SETTINGS.max_auc_loss
    with pytest.raises(UserError, match=r"max_auc_loss=-0\.1: expected 0 or more"):
        from_config(ExportConfig, {"max_auc_loss": -0.1}, "")


def test_data_without_items_is_refused(workspace):
    manifest = dataclasses.replace(read_manifest(workspace), num_item_rows=0)
    config = read_run_folder(workspace / "runs" / "run")
    with pytest.raises(UserError, match=r"has no items.*interactions\.item_id"):
        open_source(workspace, config, manifest)


def test_a_damaged_checkpoint_is_refused_by_name(workspace):
    (file,) = (workspace / "runs" / "run" / "checkpoints").glob("step-*/tables-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"the checkpoint is damaged \({file.name} has"):
        source_of(workspace)


@pytest.mark.slow
def test_vocabularies_that_an_earlier_manifest_does_not_name_are_found(workspace):
    manifest = read_manifest(workspace)
    tables = tuple(dataclasses.replace(table, vocabulary=None) for table in manifest.tables)
    write_manifest(workspace / "prepared", dataclasses.replace(manifest, tables=tables, version=1))
    bundle = Bundle.open(export(source_of(workspace), SETTINGS, threads=1))
    assert bundle.item_rows(["i3", "nobody"]).tolist() == [bundle.item_rows(["i3"])[0], 0]
    assert bundle.item_id(bundle.item_rows(["i3"])[0]) == "i3"
    with pytest.raises(UserError, match="has no rules to encode raw values"):
        bundle.encoder.encode("genres", pa.array(["g1"]))
