"""What can be appended and what cannot: new files alone are read, and a refusal changes nothing."""

import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.data.dataset import Dataset
from recsys.data.prepare import append_steps
from recsys.errors import UserError
from recsys.schema import read_manifest, write_manifest
from tests.data.small_days import (
    HEADER,
    appended,
    ids_of,
    prepared_base,
    recipe,
    rows_of,
    write_day,
)
from tests.embedding.features.test_extraction import Network, extract
from tests.reference.appended import window_rows

USERS, ITEMS = ["u1", "u2", "u3"], ["i1", "i2", "i3"]
BASE = [(f"u{1 + n % 2}", f"i{1 + n % 3}", n, int(n % 5 < 3)) for n in range(20)]
DAY_1 = [("u1", "i3", 20, 1), ("u3", "i1", 21, 0), ("u3", "i2", 22, 1)]
DAY_2 = [("u3", "i1", 30, 1), ("u2", "i3", 31, 0)]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """Raw files and prepared data of the base, whose users and items are listed; never changed."""
    folder = tmp_path_factory.mktemp("days")
    write_day(folder / "raw", 0, BASE)
    prepared_base(recipe(folder / "raw", strategy="time", catalogues=(USERS, ITEMS)), folder / "w")
    return folder


@pytest.fixture
def place(first, tmp_path):
    """A copy of it: (raw files, workspace, recipe)."""
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    made = recipe(tmp_path / "raw", strategy="time", catalogues=(USERS, ITEMS))
    return tmp_path / "raw", tmp_path / "w", made


def refused(made, workspace, since=None):
    """The message of a refused append; the prepared data and its folder are as before."""
    before = read_manifest(workspace)
    with pytest.raises(UserError) as error:
        appended(made, workspace, since)
    assert read_manifest(workspace) == before
    assert [path.name for path in workspace.iterdir()] == ["prepared"]
    return str(error.value)


def test_nothing_new_is_refused(place):
    _, workspace, made = place
    assert "no new file for interactions.file='log'" in refused(made, workspace)
    assert "1 were read already" in refused(made, workspace)


def test_a_day_under_another_name_is_refused(place):
    source, workspace, made = place
    write_day(source, 1, BASE)
    message = refused(made, workspace)
    assert "day=01/part.csv: has the content of log/day=00/part.csv, which was read" in message


def test_a_day_that_is_there_twice_is_refused(place):
    source, workspace, made = place
    write_day(source, 1, DAY_1)
    write_day(source, 2, DAY_1)
    message = refused(made, workspace)
    assert "day=02/part.csv: has the content of log/day=01/part.csv, which was read" in message


def test_days_that_overlap_are_one_window_in_one_append_and_refused_after_it(place):
    """New files are put in order together; rows before what was appended come too late."""
    source, workspace, made = place
    write_day(source, 1, [("u1", "i1", 20, 1), ("u1", "i2", 24, 1)])
    write_day(source, 2, [("u1", "i3", 22, 1), ("u2", "i2", 26, 0)])
    appended(made, workspace)
    times = [row[3] for row in rows_of(workspace, "window_0001")]
    assert sorted(times) == [20, 22, 24, 26]
    write_day(source, 3, [("u3", "i1", 25, 1), ("u3", "i2", 27, 1)])
    assert "1 of 2 rows are earlier than the last row" in _still_refused(made, workspace)


def _still_refused(made, workspace):
    """The message of a refused append to data that has a window."""
    before = read_manifest(workspace)
    with pytest.raises(UserError) as error:
        appended(made, workspace)
    assert read_manifest(workspace) == before
    return str(error.value)


def test_a_clock_that_went_back_to_the_first_day_is_refused(place):
    source, workspace, made = place
    write_day(source, 1, [(user, item, time - 20, label) for user, item, time, label in DAY_1])
    message = refused(made, workspace)
    assert "3 of 3 rows are earlier than the last row" in message
    assert "down to 1970-01-01 00:00:00" in message


def test_rows_before_the_end_are_refused_with_count_and_example(place):
    source, workspace, made = place
    write_day(source, 1, [DAY_1[0], ("u1", "i1", 12, 1), ("u1", "i2", 9, 1)])
    message = refused(made, workspace)
    assert 'day=01/part.csv: column "time": 2 of 3 rows are earlier than the last row' in message
    assert "(1970-01-01 00:00:19), down to 1970-01-01 00:00:09" in message
    assert "first at data row 1 ('12')" in message


def test_another_schema_is_named_with_the_difference(place):
    source, workspace, made = place
    write_day(source, 1, DAY_1)
    file = source / "log" / "day=01" / "part.csv"
    file.write_text(file.read_text().replace("place", "spot"))
    message = refused(made, workspace)
    assert "day=01/part.csv: column 'place' (interactions.features.place) is missing" in message


def test_a_new_column_is_another_schema(place):
    source, workspace, made = place
    (source / "log" / "day=01").mkdir()
    (source / "log" / "day=01" / "part.csv").write_text(
        HEADER.replace("place", "place,more") + "u1,i1,20,1,p1,x\n"
    )
    assert "another schema" in refused(made, workspace)
    assert "column 'more' is new" in refused(made, workspace)


def test_another_recipe_is_refused_with_both_values(place):
    source, workspace, made = place
    write_day(source, 1, DAY_1)
    other = dataclasses.replace(
        made, history=dataclasses.replace(made.history, max_length=7, scope="train")
    )
    message = refused(other, workspace)
    assert "data.history.max_length was 3, is 7" in message
    assert "data.history.scope was 'past', is 'train'" in message


def test_data_prepared_without_histories_of_negatives_is_appended_to_without_them(place):
    """As by a version that did not have the key."""
    source, workspace, made = place
    manifest = read_manifest(workspace)
    del manifest.recipe["history"]["negative_length"]
    write_manifest(workspace / "prepared", manifest)
    write_day(source, 1, DAY_1)
    other = dataclasses.replace(made, history=dataclasses.replace(made.history, negative_length=4))
    assert "data.history.negative_length was 0, is 4" in refused(other, workspace)
    assert appended(made, workspace).history.sequences == ("history",)


def test_nothing_to_append_to_is_refused(place, tmp_path):
    _, _, made = place
    with pytest.raises(UserError, match="no prepared data here"):
        appended(made, tmp_path / "elsewhere")


def test_an_unknown_item_is_refused_and_a_listed_one_is_not(place):
    source, workspace, made = place
    write_day(source, 1, [("u1", "i9", 20, 1)])
    assert "item is not in items.csv" in refused(made, workspace)
    with (source / "items.csv").open("a") as file:
        file.write("i9,k9\n")
    manifest = appended(made, workspace)
    assert ids_of(workspace, "item_id")[1:] == [*ids_of(workspace, "item_id")[1:4], "i9"]
    assert manifest.table("item_kind").num_rows == 5
    assert rows_of(workspace, "window_0001")[0][:4] == ("u1", "i9", 1, 20)


def test_data_of_a_version_without_a_list_of_files_needs_since(place):
    source, workspace, made = place
    write_day(source, 1, DAY_1)
    old = dataclasses.replace(read_manifest(workspace), files=(), raw_columns={})
    write_manifest(workspace / "prepared", old)
    assert "kept no list of its files; give since=" in refused(made, workspace)
    manifest = appended(made, workspace, since="20")
    assert manifest.splits["window_0001"].num_rows == 3
    assert manifest.rows_dropped == {"earlier than since": 20}


def test_a_log_that_grows_is_read_from_since_on(place):
    source, workspace, made = place
    write_day(source, 0, [*BASE, *DAY_1])
    message = refused(made, workspace)
    assert "was read already with" in message and "give since=" in message
    assert "no rows to append" in refused(made, workspace, since="2026-11-01")
    assert "earlier than the last row" in refused(made, workspace, since="1970-01-01 00:00:18")
    appended(made, workspace, since="1970-01-01 00:00:20")
    grown = rows_of(workspace, "window_0001")
    assert [row[:4] for row in grown] == [(u, i, label, time) for u, i, time, label in DAY_1]


def test_a_missing_day_is_warned_of(tmp_path, capsys):
    def write(day, rows):
        folder = tmp_path / "raw" / "log" / f"date={day}"
        folder.mkdir(parents=True)
        lines = [f"{u},{i},{t},{y},p\n" for u, i, t, y in rows]
        (folder / "part.csv").write_text(HEADER + "".join(lines))

    write("2026-11-20", BASE)
    made = recipe(tmp_path / "raw", strategy="time")
    prepared_base(made, tmp_path / "w")
    write("2026-11-21", DAY_1)
    write("2026-11-25", DAY_2)
    capsys.readouterr()
    appended(made, tmp_path / "w")
    warning = (
        "no files for date=2026-11-22, 2026-11-23, 2026-11-24, between 2026-11-20 and 2026-11-25"
    )
    assert f"warning: {warning}" in capsys.readouterr().out
    write("2026-11-23", [("u1", "i1", 25, 1)])
    assert "1 of 1 rows are earlier than the last row" in _still_refused(made, tmp_path / "w")


def test_a_known_item_described_anew_has_its_new_features_and_its_row(place, capsys):
    source, workspace, made = place
    before = np.load(workspace / "prepared" / "items" / "item_kind.values.npy")
    ids = ids_of(workspace, "item_id")
    (source / "items.csv").write_text("item_id,kind\ni1,k2\ni2,new kind\ni3,k0\n")
    write_day(source, 1, DAY_1)
    capsys.readouterr()
    appended(made, workspace)
    assert "features: 2 items described anew, 0 users described anew" in capsys.readouterr().out
    assert ids_of(workspace, "item_id") == ids
    kinds = ids_of(workspace, "item_kind")
    after = np.load(workspace / "prepared" / "items" / "item_kind.values.npy")
    found = {item: kinds[row] for item, row in zip(ids, after, strict=True)}
    assert found == {None: None, "i1": "k2", "i2": "new kind", "i3": "k0"}
    assert (before != after).sum() == 2


def test_an_append_that_fails_half_way_leaves_the_old_data(place, monkeypatch):
    source, workspace, made = place
    write_day(source, 1, DAY_1)
    before = {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()}

    def fail(*arguments):
        raise RuntimeError("killed")

    monkeypatch.setattr(append_steps, "items_checksum", fail)
    with pytest.raises(RuntimeError, match="killed"):
        appended(made, workspace)
    assert {p: p.read_bytes() for p in workspace.rglob("*") if p.is_file()} == before


def test_a_day_reads_its_own_files_and_neither_earlier_rows_nor_earlier_raw_files(place):
    """Nothing of what only earlier splits need is there any more, and a day is appended all the same."""
    source, workspace, made = place
    write_day(source, 1, DAY_1)
    base = read_manifest(workspace)
    inode = (workspace / "prepared" / base.splits["train"].files[0]).stat().st_ino
    appended(made, workspace)
    file = workspace / "prepared" / base.splits["train"].files[0]
    assert file.stat().st_ino == inode
    shutil.rmtree(source / "log")
    shutil.rmtree(workspace / "prepared" / "interactions")
    history = workspace / "prepared" / "history"
    for name in ("values.npy", "offsets.npy"):
        (history / name).unlink()
        (history / "window_0001" / name).unlink()
    write_day(source, 2, DAY_2)
    assert appended(made, workspace).splits["window_0002"].num_rows == 2
    expected = window_rows([BASE, DAY_1, DAY_2], 2, scope="past", lengths=(3,))
    assert [row[:5] for row in rows_of(workspace, "window_0002")] == expected


def test_the_chain_says_what_a_run_on_an_ancestor_knows(place):
    source, workspace, made = place
    base = read_manifest(workspace)
    counts = Dataset(workspace / "prepared", base, split="test", features=[]).train_count("item")
    with pytest.raises(UserError, match="split=next: the prepared data has no window yet"):
        base.split_named("next")
    with pytest.raises(UserError, match="split=tset: no such split; there are train, valid, test$"):
        base.split_named("tset")
    write_day(source, 1, DAY_1)
    one = appended(made, workspace)
    write_day(source, 2, DAY_2)
    two = appended(made, workspace)
    assert two.splits_in_time == ["train", "valid", "test", "window_0001", "window_0002"]
    assert (one.split_named("next"), two.split_named("next")) == ("window_0001", "window_0002")
    with pytest.raises(UserError, match="test, window_0001, or next for window_0001$"):
        one.split_named("window_0002")
    assert [known.identity for known in two.chain] == [base.identity, one.identity]
    known = two.ancestor(base.identity)
    assert known.table_rows == {table.name: table.num_rows for table in base.tables}
    assert known.files == base.files and [f.path for f in two.files] == ["log/day=02/part.csv"]
    assert two == read_manifest(workspace)
    # Counts are those before a split: what its model may know.
    for split, rows in (("test", []), ("window_0001", []), ("window_0002", DAY_1)):
        data = Dataset(workspace / "prepared", two, split=split, features=[])
        more = np.zeros(4, dtype=np.int64)
        for _, item, *_ in rows:
            more[ids_of(workspace, "item_id").index(item)] += 1
        assert (data.train_count("item") - counts).tolist() == more.tolist()


def test_negatives_of_a_window_are_none_of_the_users_earlier_items(tmp_path):
    items = [f"i{n}" for n in range(1, 30)]
    write_day(tmp_path / "raw", 0, [(u, i, t, 1) for u, i, t, _ in BASE])
    negatives = {"label": None, "negatives": {"strategy": "uniform", "per_positive": 3}}
    made = recipe(
        tmp_path / "raw", strategy="time", catalogues=(USERS, items), interactions=negatives
    )
    base = prepared_base(made, tmp_path / "w")
    write_day(tmp_path / "raw", 1, [("u1", "i7", 20, 1), ("u3", "i8", 21, 1), ("u1", "i9", 22, 1)])
    one = appended(made, tmp_path / "w")
    write_day(tmp_path / "raw", 2, [("u1", "i10", 30, 1), ("u1", "i1", 31, 1)])
    two = appended(made, tmp_path / "w")
    assert (one.rows_drawn, two.rows_drawn) == (base.rows_drawn + 9, base.rows_drawn + 15)
    liked = {(u, i) for u, i, *_ in BASE}
    for split, new in (
        ("window_0001", {("u1", "i7"), ("u3", "i8"), ("u1", "i9")}),
        ("window_0002", {("u1", "i10"), ("u1", "i1")}),
    ):
        is_repeat = {31: True}
        for user, item, label, time, *_ in rows_of(tmp_path / "w", split):
            if label == 0:
                is_known = (user, item) in liked | new
                # A positive that repeats an earlier item has others that the user had.
                assert is_known == is_repeat.get(time, False)
                assert (user, item) not in new
        liked |= new
    tables = [pq.read_table(tmp_path / "w" / "prepared" / s.files[0]) for s in two.splits.values()]
    row_ids = np.concatenate([t.column("row_id").to_numpy() for t in tables])
    labels = np.concatenate([t.column("label").to_numpy() for t in tables])
    assert len(set(row_ids.tolist())) == len(row_ids) == 25 + two.rows_drawn
    assert (two.is_interaction(row_ids) == (labels == 1)).all()


def test_embed_encodes_the_new_items_alone_after_an_append(place):
    source, workspace, made = place
    made = dataclasses.replace(made, items=dataclasses.replace(made.items, text=["kind"]))
    base = prepared_base(made, workspace)
    network = Network()
    assert extract(workspace, base, network).num_encoded == len(network.encoded) == 3
    write_day(source, 1, DAY_1)
    manifest = appended(made, workspace)
    assert manifest.items_checksum == base.items_checksum
    assert extract(workspace, manifest, network).num_encoded == 0
    with (source / "items.csv").open("a") as file:
        file.write("i4,k4\ni5,k5\n")
    write_day(source, 2, DAY_2)
    manifest = appended(made, workspace)
    assert manifest.items_checksum != base.items_checksum
    assert extract(workspace, manifest, network).num_encoded == 2
    assert network.encoded[3:] == ["k4", "k5"]


def test_pictures_of_new_items_are_read_from_the_folder_that_the_new_files_are_in(place, tmp_path):
    """A workspace that was copied with its raw files appends to the copy, not to where it was made."""
    source, workspace, made = place
    made = dataclasses.replace(made, items=dataclasses.replace(made.items, image="{item_id}.png"))
    assert prepared_base(made, workspace).image_root == str(source)
    moved = tmp_path / "moved"
    shutil.copytree(source, moved)
    with (moved / "items.csv").open("a") as file:
        file.write("i4,k4\n")
    (moved / "i4.png").write_bytes(b"a picture")
    write_day(moved, 1, DAY_1)
    manifest = appended(dataclasses.replace(made, source=str(moved)), workspace)
    assert manifest.image_root == str(moved)
    assert manifest.missing_images == len(ITEMS)


def test_new_days_are_appended_by_the_command(place, job):
    source, workspace, _ = place
    (source / "data").mkdir()
    (source / "data" / "days.yaml").write_text(
        "{name: days, interactions: {file: log, user_id: user_id, item_id: item_id, timestamp: time, "
        "label: label}, split: {fractions: [0.5, 0.25, 0.25]}}"
    )
    shutil.rmtree(workspace)
    command = ("prepare", f"--config-dir={source}", "data=days", f"data.source={source}")
    command += (f"workspace={workspace}", "run.threads=1")
    assert job(*command).returncode == 0
    write_day(source, 1, DAY_1)
    assert job(*command, "append=true").returncode == 0
    write_day(source, 1, [*DAY_1, *DAY_2])
    done = job(*command, "append=true")
    assert done.returncode == 1 and "was read already with" in done.stderr
    done = job(*command, "append=true", "since=23")
    assert done.returncode == 0, done.stderr
    assert "window: split=window_0002, or split=next" in done.stdout
    assert "dropped: 3 rows, earlier than since" in done.stdout
    assert "since=23: only with append=true" in job(*command, "since=23").stderr
