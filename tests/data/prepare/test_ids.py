"""Ids that the files do not share, classes that a split lacks: said, or refused where nothing is left."""

import dataclasses
import re
from pathlib import Path

import duckdb
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.train import job as train
from recsys.data.prepare.engine import Engine
from recsys.data.prepare.spelling import (
    VARIANTS,
    gather_ids,
    overlap_of,
    plain_ids_sql,
    two_spellings,
)
from recsys.runtime.env import Env
from recsys.schema import SplitSpec, write_manifest
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source

ALONE = Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu"))
SPELLINGS = [
    ("100000", "1e+05", "exponents, such as '100000' and '1e+05'"),
    ("120", "1.2E2", "exponents, such as '120' and '1.2E2'"),
    ("7", "007", "zeros in front, such as '7' and '007'"),
    ("1234", "1,234", "thousands separators, such as '1234' and '1,234'"),
    ("1234", "1 234", "thousands separators, such as '1234' and '1 234'"),
    ("1234", "1\u202f234", "non-breaking spaces with thousands separators, such as"),
    ("x", "x\u00a0", "non-breaking spaces, such as 'x' and 'x\\xa0'"),
    ("x", "\tx", "tabs, such as 'x' and '\\tx'"),
    ("a b", "a  b", "blanks, such as 'a b' and 'a  b'"),
    ("x", "\u200bx", "zero-width characters, such as 'x' and '\\u200bx'"),
    ("caf\u00e9", "cafe\u0301", "NFD), such as 'caf\\xe9' and 'cafe\\u0301'"),
    ("10.5", "10.50", "zeros behind the decimal point, such as '10.5' and '10.50'"),
    ("7", "+7", "plus signs, such as '7' and '+7'"),
    ("1234", "01,234\u00a0", "spaces with thousands separators with zeros in front, such as"),
]


@pytest.mark.parametrize(("one", "other", "cause"), SPELLINGS)
def test_an_item_written_in_two_ways_is_said_with_the_cause(one, other, cause):
    (said, _), (beside, _) = spelled([one, other], []), spelled([other], [one])
    assert said.startswith("1 item is written in more than one way") and cause in said
    assert sum(variant in said for variant in VARIANTS) == 1 + cause.count(" with "), (
        "no other cause"
    )
    assert f" and {ascii(other)} (log)" in beside and f"{ascii(one)} (c.csv)" in beside


def test_a_user_written_in_two_ways_is_said(tmp_path, capsys):
    log = INTERACTIONS.replace("cid", "1234\u00a0", 2).replace("cid", '"1,234"')
    prepared(tmp_path, recipe(write_source(tmp_path / "raw", interactions=log)))
    assert (
        "warning: 1 user is written in more than one way, and each way counts as a user of its own: "
        "non-breaking spaces with thousands separators, such as '1,234' and '1234\\xa0'\n"
    ) in capsys.readouterr().out


def test_users_that_differ_are_not_said(tmp_path, capsys):
    log = INTERACTIONS.replace("cid", "1e", 2).replace("cid", "1")
    prepared(tmp_path, recipe(write_source(tmp_path / "raw", interactions=log)))
    assert "more than one way" not in capsys.readouterr().out


COMMON = (
    "items.csv: column 'item_id': no item of the log is there: the log has 4 ('10', '20', '30'), "
    "items.csv has 5 ('ITEM-10', 'ITEM-20', 'ITEM-30'); check interactions.item_id='item_id' and "
    "items.item_id='item_id'"
)


def spelled(log_ids, listed_ids):
    """The sentence on two spellings of items of a log and of a catalogue."""
    with duckdb.connect() as connection:
        for name, ids in (("l", log_ids), ("c", listed_ids)):
            connection.execute(f"CREATE TABLE {name} AS SELECT unnest($1::VARCHAR[]) AS id", [ids])
        engine = Engine(connection, Path())
        gathered = gather_ids(engine, "FROM l", "FROM c")
        file = "c.csv" if listed_ids else None
        return two_spellings(engine, gathered, "item", file), overlap_of(engine, gathered)


def test_spellings_are_counted_by_cause_with_three_examples_and_their_places():
    plain = [str(n) for n in range(1, 6)]
    sentence, overlap = spelled(
        ["5", "5", "1,000", *[f"00{n}" for n in plain]], ["1000", *plain, "only listed"]
    )
    assert sentence == (
        "6 items are written in more than one way, and each way counts as an item of its own: "
        "zeros in front in 5, such as '1' (c.csv) and '001' (log); '2' (c.csv) and '002' (log); "
        "'3' (c.csv) and '003' (log) | "
        "thousands separators in 1, such as '1000' (c.csv) and '1,000' (log)"
    )
    assert (overlap.num_log, overlap.num_listed, overlap.num_shared) == (7, 7, 1)
    assert overlap.only_log == ("001", "002", "003")
    assert overlap.only_listed == ("1", "1000", "2")


def test_ids_that_are_not_one_are_not_called_so():
    ids = [
        "1e5a",
        "1e",
        "0x10",
        "16",
        "-7",
        "7",
        "a0",
        "a",
        "1.23",
        "123",
        "12,34",
        "1234",
        "1.1.0",
    ]
    assert spelled([*ids, "0", "00a", "A"], ["1.1", "1e-5", "0.00001", "ab", "a b"])[0] is None


@given(st.lists(st.text("01e+-., \t\u00a0\u200ba\u0301", min_size=1), min_size=1))
@settings(max_examples=50, deadline=None)
def test_a_plain_id_has_nothing_more_to_undo(ids):
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE ids AS SELECT unnest($1) AS id", [ids])
        once = f"SELECT plain AS id FROM ({plain_ids_sql('SELECT id FROM ids')})"
        for id, plain, variants in connection.execute(plain_ids_sql(once)).fetchall():
            assert (id, variants) == (plain, 0)


@pytest.mark.parametrize("rule", ["keep", "drop"])
def test_files_without_a_common_item_are_refused(tmp_path, rule):
    items = ITEMS.replace("\n", "\nITEM-").removesuffix("ITEM-")
    made = recipe(write_source(tmp_path / "raw", items=items), interactions__unknown_items=rule)
    with pytest.raises(ValueError, match=re.escape(COMMON)):
        prepared(tmp_path, made)
    assert not (tmp_path / "w" / "prepared").exists()


def test_items_that_the_catalogue_lacks_are_counted_with_an_example(tmp_path, capsys):
    items = ITEMS.replace("40,Forty,sub/d.png,,1971\n", "")
    made = recipe(write_source(tmp_path / "raw", items=items), interactions__unknown_items="keep")
    prepared(tmp_path, made)
    said = capsys.readouterr().out
    assert "items: items.csv lacks 1 of the log's 4 ('40'), the log lacks 1 of its 4\n" in said


def test_what_the_log_lacks_of_a_catalogue_is_one_line_with_its_count(tmp_path, capsys):
    source = write_source(tmp_path / "raw")
    (source / "users.csv").write_text("user_id\nann\nbob\ncid\ndan\neve\n")
    prepared(tmp_path, recipe(source, users={"file": "users.csv", "user_id": "user_id"}))
    said = capsys.readouterr().out
    assert "users: users.csv has all of the log's 3, the log lacks 2 of its 5\n" in said
    assert "items: items.csv has all of the log's 4, the log lacks 1 of its 5\n" in said
    assert "more than one way" not in said


@pytest.mark.parametrize("rule", ["error", "keep", "drop"])
def test_a_catalogue_with_zeros_in_front_is_refused_with_that_cause(tmp_path, rule):
    items = ITEMS.replace("\n", "\n00").removesuffix("00")
    made = recipe(write_source(tmp_path / "raw", items=items), interactions__unknown_items=rule)
    cause = (
        "4 items are written in more than one way, and each way counts as an item of its own: zeros "
        "in front, such as '10' (log) and '0010' (items.csv); '20' (log) and '0020' (items.csv); "
        "'30' (log) and '0030' (items.csv)"
    )
    with pytest.raises(ValueError, match=re.escape(cause)):
        prepared(tmp_path, made)


@pytest.mark.parametrize(
    ("label", "lacking", "change"),
    [
        ("rating >= 6", "positives", "change interactions.label='rating >= 6' or split.strategy="),
        ("rating >= 0", "negatives", "set interactions.negatives, or change interactions.label="),
    ],
)
def test_training_rows_of_one_class_are_refused_with_the_rule(tmp_path, label, lacking, change):
    made = recipe(write_source(tmp_path / "raw"), interactions__label=label)
    expected = f"split train has 6 rows and no {lacking}, so nothing can be learned: {change}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        prepared(tmp_path, made)
    assert not (tmp_path / "w" / "prepared").exists()


def positives(tmp_path, items_of):
    """The recipe of a log of positives only: a user's items, one a second, of a catalogue of 1 to 6."""
    times = {user: dict(enumerate(items)) for user, items in items_of.items()}
    rows = [f"{user},{item},{t}" for user, items in times.items() for t, item in items.items()]
    log = "\n".join(["user_id,item_id,time", *rows, ""])
    items = "\n".join(["item_id,title,image,genres,year", *[f"{i},,,," for i in range(1, 7)], ""])
    source = write_source(tmp_path / "raw", interactions=log, items=items)
    changes = {"label": None, "negatives": {"per_positive": 1, "strategy": "uniform"}}
    return recipe(source, **{f"interactions__{key}": value for key, value in changes.items()})


def test_negatives_of_a_user_who_knows_all_items_are_said_to_be_missing(tmp_path, capsys):
    """Of ann's six items two are in test, where she knows all six; bob knows four."""
    made = positives(tmp_path, {"ann": range(1, 7), "bob": range(1, 5)})
    manifest, _ = prepared(tmp_path, made)
    assert manifest.rows_drawn == 8
    said = capsys.readouterr().out
    assert "warning: 2 of 10 negatives could not be drawn: their users know nearly" in said


def test_users_who_know_every_item_leave_no_training_negatives(tmp_path):
    made = positives(tmp_path, {"ann": [*range(1, 7)] * 2, "bob": [*range(1, 7)] * 2})
    with pytest.raises(
        ValueError, match="train has 12 rows and no negatives.*: of interactions.neg"
    ):
        prepared(tmp_path, made)


def test_train_refuses_data_of_one_class_that_was_prepared_before(
    tmp_path, repository, monkeypatch
):
    """The job itself, in this process; valid has no negatives either."""
    manifest, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    splits = {
        name: dataclasses.replace(split, num_positives={"train": 0, "valid": 3, "test": 3}[name])
        for name, split in manifest.splits.items()
    }
    write_manifest(workspace / "prepared", dataclasses.replace(manifest, splits=splits))
    monkeypatch.setattr("launch.train.start", lambda *_, **__: ALONE)
    with initialize_config_dir(version_base=None, config_dir=str(repository / "configs")):
        cfg = compose("train", overrides=["data=demo", f"workspace={workspace}"])
    expected = (
        r"split train has 6 rows and no positives.* launch/prepare.py again\n +split valid has 3 rows "
        r"and no negatives: train.metric=auc has no value.* set train.metric=log_loss"
    )
    with pytest.raises(ValueError, match=expected):
        train(cfg)
    assert not (workspace / "runs").exists()


def test_a_class_is_lacking_where_no_row_is_of_it():
    def spec(num_positives):
        return SplitSpec(num_rows=3, num_positives=num_positives, files=(), file_rows=())

    assert [spec(n).lacking_class for n in range(4)] == ["positives", None, None, "negatives"]
