"""Users of a bundle: every liked item of the log counts as seen, whatever history the model reads."""

import csv
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from recsys.bundle.bundle import Bundle
from recsys.bundle.histories import Histories
from recsys.export import catalogue
from recsys.export.export import ExportConfig, export, open_source
from recsys.run.folder import read_run_folder
from recsys.schema import read_manifest
from recsys.serving.recommender import Recommender
from tests.export.untrained import NUM_USERS, make_workspace, write_run

SETTINGS = ExportConfig(precision="fp32", thumbnail_pixels=0, check_rows=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, one_process):
    """A recommender whose model reads training positives alone, and every user's likes in the raw log."""
    workspace = make_workspace(tmp_path_factory.mktemp("seen") / "w", history_scope="train")
    write_run(workspace, "run", one_process, {"name": "umair_fps"})
    config = read_run_folder(workspace / "runs" / "run")
    source = open_source(workspace, config, read_manifest(workspace))
    liked = defaultdict(set)
    with open(workspace / "raw" / "log.csv", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["label"] == "1":
                liked[row["user"]].add(row["item"])
    return Recommender(Bundle.open(export(source, SETTINGS, threads=1))), liked


def seen_ids(bundle, rows):
    return {bundle.item_id(row) for row in rows.tolist()}


def test_every_liked_item_of_the_log_is_seen_and_none_other(exported):
    recommender, liked = exported
    bundle = recommender.bundle
    assert len(liked) == NUM_USERS
    for user, items in liked.items():
        row = bundle.user_row(user)
        # Ids that no training row has are unknown to the bundle.
        known = {item for item in items if bundle.item_rows([item])[0]}
        assert seen_ids(bundle, bundle.users.seen(row)) == known
        assert seen_ids(bundle, bundle.users.history(row)) <= known
    assert not len(bundle.users.seen(0))


def test_likes_of_later_splits_are_not_recommended_and_not_read(exported):
    recommender, liked = exported
    bundle, num_later = recommender.bundle, 0
    for user, items in liked.items():
        answer = recommender.recommend(user=user, k=100, candidates=1000)
        assert not items & {item.id for item in answer.items}
        later = items - seen_ids(bundle, bundle.users.history(bundle.user_row(user)))
        num_later += len(later)
        everything = recommender.recommend(user=user, k=100, candidates=1000, exclude_seen=False)
        assert later <= {item.id for item in everything.items}
    assert num_later > NUM_USERS, "likes of validation and test"


def test_a_bundle_of_an_earlier_version_has_seen_its_histories(exported):
    bundle = exported[0].bundle
    sizes = {name: n for name, n in bundle.spec.sizes.items() if "seen" not in name}
    earlier = type(bundle.users)(bundle.folder / "users", replace(bundle.spec, sizes=sizes))
    assert earlier.seen(1).tolist() == bundle.users.history(1).tolist() != []


def test_likers_of_an_item_are_the_users_whose_history_holds_it(tmp_path, rng, monkeypatch):
    lengths_U = rng.integers(0, 9, 200)
    lengths_U[:3] = 0
    np.save(tmp_path / "history.offsets.npy", np.concatenate([[0], np.cumsum(lengths_U)]))
    np.save(tmp_path / "history.values.npy", rng.integers(1, 30, lengths_U.sum()).astype(np.int32))
    monkeypatch.setattr(catalogue, "BATCH_ROWS", 17)
    catalogue.write_likers(tmp_path, 31)
    histories, likers = Histories(tmp_path), Histories(tmp_path, "likers")
    for item in range(31):
        assert likers.of(item).tolist() == histories.holding(item).tolist()
    assert len(likers.of(30)) == 0, "nobody likes the newest"
    # Nobody has a history.
    np.save(tmp_path / "history.offsets.npy", np.zeros(4, np.int64))
    np.save(tmp_path / "history.values.npy", np.zeros(0, np.int32))
    catalogue.write_likers(tmp_path, 31)
    assert len(Histories(tmp_path, "likers").of(3)) == 0
