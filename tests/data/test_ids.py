"""Ids that the files do not share, classes that a split lacks: said, or refused where nothing is left."""

import pytest

from recsys.schema import SplitSpec
from recsys.train.run import check_classes
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source

SPELLINGS = [
    ("100000", "1e+05"),
    ("7", "007"),
    ("1234", '"1,234"'),
    ("x", "x\u00a0"),
    ("x", "\u200bx"),
    ("caf\u00e9", "cafe\u0301"),
    ("10.5", "10.50"),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS)
def test_users_written_in_two_ways_are_said(tmp_path, capsys, one, other):
    log = INTERACTIONS.replace("cid", one, 2).replace("cid", other)
    prepared(tmp_path, recipe(write_source(tmp_path / "raw", interactions=log)))
    assert "1 users are written in more than one way" in capsys.readouterr().out


def test_users_that_differ_are_not_said(tmp_path, capsys):
    log = INTERACTIONS.replace("cid", "1e", 2).replace("cid", "1")
    prepared(tmp_path, recipe(write_source(tmp_path / "raw", interactions=log)))
    assert "more than one way" not in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["keep", "drop"])
def test_files_without_a_common_item_are_refused(tmp_path, rule):
    items = ITEMS.replace("\n", "\nITEM-").removesuffix("ITEM-")
    made = recipe(write_source(tmp_path / "raw", items=items), interactions__unknown_items=rule)
    with pytest.raises(ValueError, match=r"no item of the log is there|all 12 rows are of items"):
        prepared(tmp_path, made)
    assert not (tmp_path / "w" / "prepared").exists()


def test_items_that_the_catalogue_lacks_are_counted_with_an_example(tmp_path, capsys):
    items = ITEMS.replace("40,Forty,sub/d.png,,1971\n", "")
    made = recipe(write_source(tmp_path / "raw", items=items), interactions__unknown_items="keep")
    prepared(tmp_path, made)
    said = capsys.readouterr().out
    assert (
        "items.csv lacks 1 of the log's items ('40'), the log lacks 1 of its items ('50')" in said
    )


def test_a_split_of_one_class_is_said_and_training_on_it_refused(tmp_path, capsys):
    made = recipe(write_source(tmp_path / "raw"), interactions__label="rating >= 6")
    manifest, _ = prepared(tmp_path, made)
    said = capsys.readouterr().out
    assert "split train has 6 rows and no positives: nothing can be learned" in said
    with pytest.raises(
        ValueError, match="split train has 6 rows and no positives.*\n.*split valid"
    ):
        check_classes(manifest, "auc")


def test_a_class_is_lacking_where_no_row_is_of_it():
    def spec(num_positives):
        return SplitSpec(num_rows=3, num_positives=num_positives, files=(), file_rows=())

    assert [spec(n).lacking_class for n in range(4)] == ["positives", None, None, "negatives"]
