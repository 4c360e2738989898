"""Damage to any file of prepared/ and features/: the reader names it and what makes it anew."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding.catalogue import Catalogue
from embedding.pairs import read_pairs
from embedding.store import FeatureTable, open_features
from recsys.data.dataset import Dataset, Loader
from recsys.data.segments import SegmentsConfig, segments
from recsys.schema import read_manifest
from recsys.train.scored_rows import _ids
from tests.data.small_log import ITEMS, prepared, recipe, write_source
from tests.feature_tables import write_table
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
        _ids(prepared_folder / f"{side}s.parquet", f"{side}_id")
        path = prepared_folder / f"{side}s" / "train_count.npy"
        Dataset(prepared_folder, manifest, split="train", features=[]).array(
            path.relative_to(prepared_folder).with_suffix("").as_posix()
        )
    Dataset(prepared_folder, manifest, split="train", features=[]).array("items/drawn_count")
    features = [feature.name for feature in manifest.features]
    for split, spec in manifest.splits.items():
        dataset = Dataset(prepared_folder, manifest, split=split, features=features)
        loader = Loader(
            dataset,
            global_batch_size=4,
            rank=0,
            world_size=1,
            num_lanes=1,
            shuffle=False,
            seed=0,
            num_prefetch=0,
        )
        assert len(list(loader.batches(epoch=0))) > 0
        rows = pq.read_table(prepared_folder / spec.files[0])
        columns = {n: rows.column(n).to_numpy() for n in ("row_id", "user_row", "item_row")}
        list(
            segments(
                prepared=prepared_folder,
                manifest=manifest,
                split=split,
                row_id_N=columns["row_id"],
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
