"""What a run was trained on: other prepared data or other vectors are refused, and say what differs."""

import numpy as np
import pytest
import yaml

from recsys.run.config import read_run_config
from recsys.run.folder import check_run_data, open_run_folder
from recsys.schema import read_manifest
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source
from tests.feature_tables import write_table

CONFIG = read_run_config({"run": {"name": "r"}, "model": {"modalities": ["text"]}})


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "raw")


@pytest.fixture
def workspace(tmp_path, source):
    """Prepared and embedded data, and a run that was begun on it."""
    manifest, folder = prepared(tmp_path, recipe(source))
    embed(folder)
    open_run_folder(folder, CONFIG, manifest)
    return folder


def embed(workspace, seed=0):
    manifest = read_manifest(workspace)
    vectors = np.random.default_rng(seed).normal(size=(manifest.num_item_rows, 3))
    write_table(
        workspace / "features" / "text",
        vectors.astype(np.float16),
        items_checksum=manifest.items_checksum,
        made_of=manifest.column_checksums["text"],
    )


def check(workspace):
    check_run_data(workspace / "runs" / "r", CONFIG, read_manifest(workspace))


def begin_again(workspace):
    open_run_folder(workspace, CONFIG, read_manifest(workspace))


def test_the_data_a_run_was_trained_on_is_taken(tmp_path, workspace, source):
    check(workspace)
    begin_again(workspace)
    prepared(tmp_path, recipe(source))  # the same once more
    check(workspace)
    begin_again(workspace)


def test_a_longer_log_of_the_same_users_and_items_is_refused(tmp_path, workspace, source):
    # Item 10 is the most frequent now: rows are numbered by count.
    write_source(source, interactions=INTERACTIONS + "ann,10,400,5\nbob,10,410,5\ncid,10,420,4\n")
    before = read_manifest(workspace)
    after, _ = prepared(tmp_path, recipe(source))
    assert after.num_item_rows == before.num_item_rows
    embed(workspace)
    with pytest.raises(ValueError, match=r"trained on other data .*interactions/test/") as caught:
        check(workspace)
    assert "run.overwrite=true" in str(caught.value) and "prepared/" in str(caught.value)
    with pytest.raises(ValueError, match="data.identity was"):
        begin_again(workspace)


def test_vectors_made_anew_are_refused_and_titles_are_not(tmp_path, workspace, source):
    embed(workspace, seed=1)
    for refused in (check, begin_again):
        with pytest.raises(ValueError, match="data.features was"):
            refused(workspace)
    embed(workspace, seed=0)
    check(workspace)
    # What people read of an item is no input of a model, unless a vector is made of it.
    write_source(source, items=ITEMS.replace("e.png", "f.png"))
    prepared(tmp_path, recipe(source))
    check(workspace)
    begin_again(workspace)


def test_a_run_that_does_not_know_its_vectors_goes_on_with_a_note(workspace, capsys):
    file = workspace / "runs" / "r" / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["data"]["features"]
    file.write_text(yaml.safe_dump(stored))
    check(workspace)
    assert "does not say on which vectors it was trained" in capsys.readouterr().out
    begin_again(workspace)
    check(workspace)
    assert capsys.readouterr().out == ""


RECIPE = """
name: own
source: ???
interactions:
  file: log.csv
  user_id: user_id
  item_id: item_id
  timestamp: time
  label: "rating >= 4"
items: {file: items.csv, title: title, text: [title]}
split: {strategy: per_user_time, fractions: [0.5, 0.25, 0.25]}
history: {max_length: 3, recent_length: 1}
"""
TINY = ["model.embedding_dim=4", "model.tower_dims=[4]", "model.deep_dims=[4]", "train.epochs=1"]
TINY += ["train.global_batch_size=4"]


@pytest.mark.slow
def test_every_job_refuses_a_run_or_vectors_of_other_data(tmp_path, source, job):
    (source / "data").mkdir()
    (source / "data" / "own.yaml").write_text(RECIPE)
    folder = tmp_path / "w"
    own = [f"--config-dir={source}", "data=own", f"data.source={source}", f"workspace={folder}"]
    train = ["train", *own, *TINY, "run.name=a", "model.modalities=[]"]

    def succeeds(*arguments):
        done = job(*arguments)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def refuses(what, remedy, *arguments):
        done = job(*arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
        (sentence,) = done.stderr.strip().splitlines()[-1:]
        assert sentence.startswith("error: ") and what in sentence and remedy in sentence

    # 1. A longer log of the same users and items: what the run's rows mean has changed.
    succeeds("prepare", *own)
    embed(folder)
    succeeds(*train)
    succeeds("evaluate", *own, "run.name=a")
    kept = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    before = read_manifest(folder)
    more = [f"{user},30,{time},{time}\n" for user in ("ann", "bob", "cid") for time in (1, 2, 4, 5)]
    write_source(source, interactions=INTERACTIONS + "".join(more))
    succeeds("prepare", *own)
    after = read_manifest(folder)
    assert (after.num_user_rows, after.num_item_rows) == (
        before.num_user_rows,
        before.num_item_rows,
    )
    assert after.items_checksum != before.items_checksum, "rows are numbered by count"
    anew = "run.overwrite=true"
    refuses("trained on other data", anew, "evaluate", *own, "run.name=a")
    refuses("trained on other data", anew, "compare", *own, "runs=[a]")
    refuses("data.identity was", anew, *train)
    refuses("made for other items", "launch/embed.py again", "neighbours", *own, "k=1")
    now = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    assert now == kept

    # 2. The same items with other texts: their vectors are yesterday's.
    embed(folder)
    (source / "items.csv").write_text(ITEMS.replace("Twenty", "Two dozen"))
    succeeds("prepare", *own)
    assert read_manifest(folder).items_checksum == after.items_checksum
    texts = [*train[:-2], "run.name=b", "model.modalities=[text]"]
    refuses("made of other texts", "launch/embed.py again", *texts)
    refuses("made of other texts", "launch/embed.py again", "neighbours", *own, "k=1")
    assert not (folder / "runs" / "b").exists()
    embed(folder)
    assert "note:" not in succeeds(*texts)
