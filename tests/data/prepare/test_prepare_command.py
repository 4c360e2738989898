"""prepare as users type it: documented commands, recipes of their own, the real data sets."""

import shlex

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recsys.schema import read_manifest
from tests.data.small_log import INTERACTIONS, write_source
from tests.reference.split import split_by_each_users_time

OWN_RECIPE = """
name: own
source: ???
interactions:
  file: log.csv
  user_id: user_id
  item_id: item_id
  timestamp: time
  label: "rating >= 4"
items: {file: items.csv, title: title, features: {genres: {kind: id_list}}}
split: {strategy: per_user_time, fractions: [0.5, 0.25, 0.25]}
history: {max_length: 3, recent_length: 1}
"""


@pytest.fixture
def own(tmp_path):
    """Raw files and a recipe outside of the repository; the arguments that name both."""
    source = write_source(tmp_path / "raw")
    (source / "data").mkdir()
    (source / "data" / "own.yaml").write_text(OWN_RECIPE)
    return source, [
        f"--config-dir={source}",
        "data=own",
        f"data.source={source}",
        f"workspace={tmp_path / 'w'}",
    ]


def test_a_recipe_of_ones_own_runs_again_to_the_same_files(tmp_path, own, job):
    done = job("prepare", *own[1])
    assert done.returncode == 0, done.stderr
    for part in ("12 interactions", "train 6", "results: ", "next: python "):
        assert part in done.stdout
    # The command that is advised finds the recipe where this one did.
    command = shlex.split(done.stdout.rpartition("next: ")[2])
    assert command[2:] == [f"--config-dir={own[0]}", "data=own", f"workspace={tmp_path / 'w'}"]
    first = read_manifest(tmp_path / "w")
    assert job("prepare", *own[1], "run.threads=1").returncode == 0
    assert read_manifest(tmp_path / "w").checksums == first.checksums


def test_every_problem_is_one_line_on_stderr_and_nothing_is_left(tmp_path, own, job):
    source, arguments = own
    (source / "log.csv").write_text(
        INTERACTIONS.replace("ann,10,100,5", ",10,100,5").replace("bob,30,60,2", "bob,99,soon,2")
    )
    done = job("prepare", *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    head, *lines = done.stderr.strip().splitlines()
    assert head == "error: 3 problems with the input data:"
    assert all("log.csv: column " in line and "1 row" in line for line in lines) and len(lines) == 3
    assert not (tmp_path / "w").exists()


def test_wrong_settings_are_reported_at_once(own, job):
    done = job(
        "prepare", *own[1], "+data.interactions.lable=rating", "data.history.max_length=long"
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "data.interactions.lable: unknown key; expected one of" in done.stderr
    assert "data.history.max_length: 'long' does not fit" in done.stderr


def test_missing_source_is_one_sentence(tmp_path, job):
    done = job("prepare", "data=movielens", f"workspace={tmp_path / 'w'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "source" in done.stderr


def test_ctr_runs_by_the_command_in_its_recipe(tmp_path, command):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.csv").write_text("label,site,price\n1,a,1\n0,b,2\n1,a,\n0,c,4\n")
    done = command(
        "prepare",
        "data=ctr",
        f"data.source={tmp_path}",
        f"workspace={tmp_path / 'w'}",
        "+data.interactions.features={site:{},price:{kind:numeric}}",
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "w")
    assert [f.name for f in manifest.features] == ["site", "price"]
    assert manifest.num_item_rows == 0 and manifest.history is None


@pytest.fixture(scope="module")
def movielens(tmp_path_factory, job, real_data):
    """Workspace of the real films, prepared by the documented command."""
    workspace = tmp_path_factory.mktemp("movielens")
    source = real_data / "movielens"
    if not source.is_dir():
        pytest.skip(f"no movielens folder in {real_data}")
    done = job("prepare", "data=movielens", f"data.source={source}", f"workspace={workspace}")
    assert done.returncode == 0, done.stderr
    return workspace, source


def rows_of(workspace):
    manifest = read_manifest(workspace)
    return pd.concat([
        pq.read_table(workspace / "prepared" / file).to_pandas().assign(split=split)
        for split, spec in manifest.splits.items()
        for file in spec.files
    ]).sort_values("row_id", ignore_index=True)


@pytest.mark.slow
def test_real_films_are_split_like_the_slow_reference(movielens):
    workspace, source = movielens
    log = pd.read_csv(source / "ratings.csv")
    log = log.rename(columns={"userId": "user_id", "movieId": "item_id", "timestamp": "time"})
    rows = rows_of(workspace)
    assert rows["row_id"].tolist() == list(range(len(log)))
    assert rows["split"].equals(split_by_each_users_time(log, (0.8, 0.1, 0.1)))
    assert rows["label"].eq(log["rating"] >= 4).all()


def test_real_histories_hold_training_positives_strictly_before_the_row(movielens):
    rows = rows_of(movielens[0])
    stored = rows[(rows["label"] == 1) & (rows["split"] == "train")]
    times = {user: np.sort(part["timestamp"]) for user, part in stored.groupby("user_row")}
    for user, part in rows.groupby("user_row"):
        seen = times.get(user, np.zeros(0))
        expected = np.searchsorted(seen, part["timestamp"], side="left")
        assert (part["history_end"].to_numpy() == expected).all(), user


def test_real_films_have_posters_texts_and_no_tags_of_users(movielens):
    workspace, _ = movielens
    manifest = read_manifest(workspace)
    assert manifest.missing_images == 225 and manifest.has_texts and manifest.has_tags
    assert "user_tags" not in str(manifest.recipe["items"])
    items = pq.read_table(workspace / "prepared" / "items.parquet").to_pylist()
    first = next(item for item in items if item["item_id"] == "1")
    assert first["title"] == "Toy Story (1995)" and first["image"] == "1.jpg"
    assert first["text"].startswith("Toy Story (1995). Adventure|Animation")


@pytest.mark.slow
def test_real_anime_prepares_without_pictures_and_times(tmp_path, job, real_data):
    source = real_data / "anime"
    if not source.is_dir():
        pytest.skip(f"no anime folder in {real_data}")
    done = job("prepare", "data=anime", f"data.source={source}", f"workspace={tmp_path / 'w'}")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "w")
    assert manifest.rows_in == 339_160 == sum(s.num_rows for s in manifest.splits.values())
    assert manifest.num_item_rows == 14_877 and not manifest.has_images
    assert manifest.splits["train"].timestamp_min is None
    pairs = pq.read_table(tmp_path / "w" / "prepared" / "pairs.parquet").to_pandas()
    assert set(pairs["perspective"]) == {"multilingual", "relation", "explanation"}
    assert pairs[["anchor", "positive", "perspective", "entity"]].notna().all().all()
    assert {"ja", "zh-Hans", "en"} <= set(pairs["language"].dropna())
    assert len(pairs) == manifest.pairs_kept > 60_000
    assert manifest.pairs_in == 47_399 + 11_488 + 14_145
    assert manifest.pairs_in == manifest.pairs_kept + sum(manifest.pairs_dropped.values())
    first = pairs[(pairs["entity"] == "1") & (pairs["language"] == "zh-Hans")]
    titles = ["\u5b87\u5b99\u725b\u4ed4", "\u661f\u9645\u725b\u4ed4", "\u8d4f\u91d1\u730e\u4eba"]
    assert first["anchor"].tolist() == titles  # in the order of the file
