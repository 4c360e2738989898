"""Lineage: which run is gone on from, what is trained on, and which rows of which tables match."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.checkpoint.integrity import describe_file, point_to_best, write_manifest
from recsys.checkpoint.state import CHECKPOINT_VERSION, TrainState
from recsys.files import write_json
from recsys.run.config import read_run_config
from recsys.run.fingerprint import changes, deciding, fingerprint
from recsys.run.folder import as_stored, check_run_data, open_run_folder, read_stored
from recsys.run.lineage import course_of, open_parent, trained_splits
from recsys.run.matching import match_tables
from recsys.schema import Ancestor, read_manifest
from recsys.schema import write_manifest as write_data_manifest
from tests.data.small_log import INTERACTIONS, prepared, recipe, write_source


def config_of(name="warm", **sections):
    return read_run_config({"run": {"name": name}, "model": {"modalities": []}, **sections})


def finish(workspace, name="base", *, finished=True, **sections):
    """Leave a run as training does: its folder, and a checkpoint without content."""
    folder = open_run_folder(workspace, config_of(name, **sections), read_manifest(workspace))
    checkpoint = folder / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    state = dataclasses.asdict(TrainState(step=3, finished=finished))
    index = {"version": CHECKPOINT_VERSION, "chunks": [], "state": state, "name": name}
    write_json(checkpoint / "index.json", index)
    write_manifest(checkpoint, {"index.json": describe_file(checkpoint / "index.json")})
    point_to_best(folder / "checkpoints", checkpoint.name, 0.5)
    return folder


def grown(workspace, *windows):
    """Let the data be grown from what is there: windows are copies of split test, and no id is new."""
    before = read_manifest(workspace)
    file = workspace / "prepared" / "grown.txt"
    file.write_text(" ".join(windows))
    manifest = dataclasses.replace(
        before,
        splits=before.splits | dict.fromkeys(windows, before.splits["test"]),
        checksums=before.checksums | {"grown.txt": describe_file(file)["sha256"]},
        chain=(
            *before.chain,
            Ancestor(
                identity=before.identity,
                table_rows={table.name: table.num_rows for table in before.tables},
                splits=tuple(before.splits),
            ),
        ),
    )
    write_data_manifest(workspace / "prepared", manifest)
    return manifest


@pytest.fixture
def workspace(tmp_path):
    _, folder = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    return folder


def course(workspace, init=None, **train):
    config = config_of(train=train, **({"init": init} if init else {}))
    return course_of(workspace, config, read_manifest(workspace))


def test_a_run_without_parent_trains_on_train_and_validates(workspace):
    found = course(workspace)
    assert (found.splits, found.in_time_order, found.validates) == (["train"], False, True)
    assert (found.epochs, found.patience, found.parts) == (10, 3, [["train"]])
    found = course(workspace, order="time")
    assert found.in_time_order and found.validates and found.epochs == 1


def test_a_warm_start_trains_on_what_the_runs_before_it_have_not_in_time_order(workspace):
    finish(workspace)
    found = course(workspace, "base")
    assert found.splits == ["valid", "test"] and found.parts == [["valid"], ["test"]]
    assert found.in_time_order and not found.validates and (found.epochs, found.patience) == (1, 0)
    grown(workspace, "window_0001")
    assert course(workspace, "base").splits == ["valid", "test", "window_0001"]
    finish(workspace, "next", init="base")
    assert read_stored(workspace / "runs" / "next")["data"]["splits"] == found.splits + [
        "window_0001"
    ]
    every = ["test", "train", "valid", "window_0001"]
    assert trained_splits(workspace / "runs" / "next") == every
    with pytest.raises(ValueError, match="has been trained on every split .*append=true"):
        course(workspace, "next")
    grown(workspace, "window_0002")
    assert course(workspace, "next").splits == ["window_0002"]
    check_run_data(workspace / "runs" / "base", config_of("base"), read_manifest(workspace))


def test_splits_and_order_may_be_named(workspace):
    finish(workspace)
    grown(workspace, "window_0001")
    found = course(workspace, splits=["all"])
    assert found.parts == [["train", "valid", "test", "window_0001"]]
    assert not found.validates and found.epochs == 10 and found.patience == 0
    found = course(workspace, "base", splits=["window_0001", "test"], order="shuffled", epochs=2)
    assert found.parts == [["test", "window_0001"]] and found.epochs == 2
    with pytest.raises(ValueError, match="some of the splits .*: train, valid, test, window_0001"):
        course(workspace, splits=["window_0002"])


def test_a_warm_start_on_everything_scores_the_rows_that_are_new_alone(workspace):
    finish(workspace)
    grown(workspace, "window_0001")
    assert course(workspace, splits=["all"]).scored_parts == []
    found = course(workspace, "base", splits=["all"], order="shuffled")
    assert found.parts == [["train", "valid", "test", "window_0001"]]
    assert found.scored_parts == [["valid", "test", "window_0001"]]
    assert course(workspace, "base", splits=["train"]).scored_parts == [["train"]]


def test_a_replayed_sample_is_of_splits_that_were_trained_on_and_makes_one_shuffled_pass(workspace):
    finish(workspace)
    manifest = grown(workspace, "window_0001")
    sizes = {name: split.num_rows for name, split in manifest.splits.items()}
    found = course(workspace, "base", replay=0.5)
    num_new = sizes["valid"] + sizes["test"] + sizes["window_0001"]
    assert found.num_replayed == round(0.5 * num_new) > 0
    assert {one.split for one in found.replayed} == {"train"}
    assert found.parts == found.scored_parts == [["valid", "test", "window_0001"]]
    assert not found.in_time_order and found.epochs == 1 and not found.validates
    found = course(workspace, "base", replay=1e6)
    assert found.num_replayed == sizes["train"]
    none = course(workspace, "base", replay=0)
    assert none == course(workspace, "base") and none.replayed == [] and none.in_time_order
    finish(workspace, "next", init="base", train={"replay": 0.5})
    assert read_stored(workspace / "runs" / "next")["data"]["splits"] == [
        "valid", "test", "window_0001"
    ]  # fmt: skip
    grown(workspace, "window_0002")
    replayed = course(workspace, "next", replay=1e6).replayed
    assert {one.split for one in replayed} == {"train", "valid", "test", "window_0001"}


def test_a_replay_without_earlier_rows_or_in_time_order_is_refused(workspace):
    finish(workspace)
    with pytest.raises(ValueError, match=r"train.replay=2: there are no earlier rows .*init="):
        course(workspace, replay=2)
    with pytest.raises(ValueError, match=r"train.replay=2: there are no earlier rows"):
        course(workspace, "base", replay=2, splits=["all"])
    with pytest.raises(ValueError, match=r"train.replay=0.01 of [1-9]\d? new rows is none"):
        course(workspace, "base", replay=0.01, splits=["valid", "test"])
    with pytest.raises(ValueError, match=r"train.order=time train.replay=2: .*train.replay=0"):
        course(workspace, "base", replay=2, order="time")
    with pytest.raises(ValueError, match="train.replay"):
        course(workspace, "base", replay=-1)


def test_the_rows_that_are_replayed_decide_a_runs_result(workspace):
    finish(workspace)
    manifest = read_manifest(workspace)
    none, zero, two = (
        as_stored(workspace, config_of(init="base", train=train), manifest)
        for train in ({}, {"replay": 0}, {"replay": 2})
    )
    assert fingerprint(none) == fingerprint(zero) != fingerprint(two)
    assert deciding(none)["train.replay"] is None, "as in every run of earlier versions"
    assert changes(zero, two)["train.replay"] == "train.replay was None, is 2.0"


@pytest.mark.parametrize(("name", "expected"), [("umair_fps", "ed093a81"), ("dcn_v2", "36ce6570")])
def test_a_key_that_came_later_leaves_the_hashes_of_earlier_versions(workspace, name, expected):
    """A new key of the model goes to _AS_BEFORE, as studies find their runs by hash."""
    stored = as_stored(workspace, config_of(model={"name": name}), read_manifest(workspace))
    data = {"name": "any", "checksums": {}, "features": {}}
    assert fingerprint({**stored, "data": data}) == expected
    if name == "umair_fps":
        model = {**stored["model"], "interest_shrinkage": 40.0}
        assert fingerprint({**stored, "model": model, "data": data}) != expected


def test_a_baseline_that_reads_whole_vectors_has_the_hash_of_earlier_versions(workspace):
    """When `modality_components` was a key of UMAIR-FPS alone, no section of a baseline had it."""
    manifest = read_manifest(workspace)

    def hashes(name, components):
        config = config_of(model={"name": name, "modality_components": components})
        stored = as_stored(workspace, config, manifest)
        earlier = {k: v for k, v in stored["model"].items() if k != "modality_components"}
        return fingerprint(stored), fingerprint({**stored, "model": earlier})

    whole, earlier = hashes("dcn_v2", 0)
    reduced, _ = hashes("dcn_v2", 4)
    assert whole == earlier != reduced
    of_umair_fps, without = hashes("umair_fps", 0)
    assert of_umair_fps != without, "whose runs have always had the key"


def test_what_cannot_be_gone_on_from_is_refused(workspace):
    with pytest.raises(ValueError, match="init=base: .*config.yaml is missing"):
        course(workspace, "base")
    finish(workspace, finished=False)
    with pytest.raises(ValueError, match="init=base: that run is not finished"):
        course(workspace, "base")
    finish(workspace, "itself")
    with pytest.raises(ValueError, match="init=itself run.name=itself: a run cannot go on from"):
        course_of(workspace, config_of("itself", init="itself"), read_manifest(workspace))
    manifest = read_manifest(workspace)
    timeless = {
        name: dataclasses.replace(split, timestamp_min=None)
        for name, split in manifest.splits.items()
    }
    with pytest.raises(ValueError, match="train.order=time: split train has no times"):
        course_of(
            workspace,
            config_of(train={"order": "time"}),
            dataclasses.replace(manifest, splits=timeless),
        )


def test_a_run_goes_on_only_with_the_parent_it_was_started_from(workspace):
    finish(workspace)
    manifest, config = read_manifest(workspace), config_of(init="base")
    open_run_folder(workspace, config, manifest)
    open_run_folder(workspace, config, manifest)
    checkpoint = workspace / "runs" / "base" / "checkpoints" / "step-00000003"
    index = json.loads((checkpoint / "index.json").read_text())
    write_json(checkpoint / "index.json", {**index, "name": "trained again"})
    write_manifest(checkpoint, {"index.json": describe_file(checkpoint / "index.json")})
    with pytest.raises(ValueError, match="started with other settings .init was "):
        open_run_folder(workspace, config, manifest)
    grown(workspace, "window_0001")
    with pytest.raises(ValueError, match="or go on from it on the data that grew: init=base"):
        open_run_folder(workspace, config_of("base"), read_manifest(workspace))


def test_rows_of_grown_data_are_the_parents_first_ones(workspace):
    finish(workspace)
    manifest = grown(workspace, "window_0001")
    more = tuple(
        dataclasses.replace(table, num_rows=table.num_rows + 2) for table in manifest.tables
    )
    extra = dataclasses.replace(manifest.tables[0], name="extra")
    manifest = dataclasses.replace(manifest, tables=(*more, extra))
    matches = match_tables(workspace, manifest, open_parent(workspace, "base", manifest))
    assert matches.pop("extra") == "its data had no such table"
    rows = {table.name: table.num_rows - 2 for table in more}
    assert {name: match.num_matched for name, match in matches.items()} == rows


def test_rows_of_other_data_are_matched_by_their_ids(tmp_path, workspace):
    """Other counts give other rows; year has other bounds, and user cid is gone."""
    run = finish(workspace)
    log = "".join(line for line in INTERACTIONS.splitlines(True) if not line.startswith("cid"))
    source = write_source(
        tmp_path / "new", interactions=log + "dan,10,5,4\ndan,50,6,2\nann,50,7,4\n" * 3
    )
    features = {
        "genres": {"kind": "id_list"},
        "year": {"kind": "numeric", "cuts": [1990]},
    }
    manifest, other = prepared(tmp_path / "other", recipe(source, items__features=features))
    parent = open_parent(other, str(run), manifest)
    assert parent.table_rows is None and parent.splits == []
    assert course(other, str(run)).splits == ["train"]
    matches = match_tables(other, manifest, parent)
    assert matches.pop("year") == "its buckets have other bounds"
    for name in ("user_id", "item_id"):
        before, now = (ids_of(place, name) for place in (workspace, other))
        expected = [0] + [before.get(now_id, -1) for now_id in sorted(now, key=now.get)]
        np.testing.assert_array_equal(matches[name].source_R, expected)
    assert -1 in matches["user_id"].source_R and matches["item_id"].num_matched > 3
    assert list(matches["item_id"].source_R) != sorted(matches["item_id"].source_R)


def test_other_data_of_the_same_workspace_is_refused(tmp_path, workspace):
    finish(workspace)
    more = INTERACTIONS + "ann,50,400,5\n"
    manifest, _ = prepared(tmp_path, recipe(write_source(tmp_path / "raw", interactions=more)))
    parent = open_parent(workspace, "base", manifest)
    with pytest.raises(ValueError, match="was trained on other data .*append=true"):
        match_tables(workspace, manifest, parent)


def ids_of(workspace, table):
    """Row by id of a vocabulary."""
    rows = pq.read_table(workspace / "prepared" / "vocab" / f"{table}.parquet").to_pylist()
    return {row["id"]: row["row"] for row in rows}
