"""CSV files for people: spreadsheets show every cell and run none."""

import csv

import pytest

from recsys.spreadsheet import write_csv


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd|'/c calc'!A0", "'=cmd|'/c calc'!A0"),
        ("+1+cmd", "'+1+cmd"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        (" =1", "' =1"),
        ("\r=1", "'\n=1"),
        ("a\rb", "a\nb"),
        ("\uff1d1", "'\uff1d1"),
        ("-5", "-5"),
        ("+1.5e-3", "+1.5e-3"),
        (-0.25, "-0.25"),
        ("a=b", "a=b"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_cell_that_a_spreadsheet_would_run_is_text(tmp_path, cell, written):
    assert write_csv(tmp_path / "x.csv", ["name", "n"], [[cell, 1]]) == 1
    with open(tmp_path / "x.csv", encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream)) == [["name", "n"], [written, "1"]]
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
