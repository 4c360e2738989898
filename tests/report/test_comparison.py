"""The comparison's table: means, deviations, differences, the oracle; nothing that has no value."""

import csv
import dataclasses
import math

from recsys.metrics.oracle import OracleMetrics
from recsys.report.comparison import (
    deviation_of,
    mean_of,
    table_texts,
    write_comparison,
)
from recsys.study.comparison import COLUMNS, VariantResult
from recsys.study.differences import Difference


def line(name, auc, difference=None, **more):
    metrics = {key: [math.nan] * len(auc) for key in COLUMNS}
    metrics["auc"] = auc
    metrics["log_loss"] = [0.5] * len(auc)
    return VariantResult(
        name=name,
        validation=[0.8] * len(auc),
        metrics=metrics,
        difference=difference,
        num_parameters=12345,
        examples_per_second=1234.5,
        **more,
    )


LINES = [
    line("full", [0.80, 0.82]),
    line("<bare>", [0.70, 0.74], Difference(mean=-0.09, low=-0.1, high=-0.08), settings=["a=1"]),
]


def test_mean_and_deviation_leave_out_what_has_no_value():
    assert mean_of([1.0, math.nan, 3.0]) == 2.0
    assert math.isnan(mean_of([]))
    assert deviation_of([1.0, 3.0]) == math.sqrt(2)
    assert math.isnan(deviation_of([1.0]))


def test_table_has_a_column_for_what_has_values_and_no_other():
    header, rows = table_texts(LINES, None)
    assert header == [
        *("run", "validation", "AUC", "log-loss (BCE)", "AUC - reference [95 %]"),
        *("parameters", "samples/s"),
    ]
    assert rows[0][2] == "0.8100 +- 0.0141"
    assert rows[0][4] == "reference"
    assert rows[1][4] == "-0.0900 [-0.1000, -0.0800]"
    assert rows[0][5:] == ["12,345", "1,234"]


def test_oracle_is_the_last_row():
    _, rows = table_texts(LINES, OracleMetrics(auc=0.9, log_loss=0.4, lift_recovered=0.8))
    assert rows[-1][:4] == ["oracle (true probabilities)", "-", "0.9000", "0.4000"]
    assert all(len(row) == len(rows[0]) for row in rows)


def test_a_run_named_like_a_formula_is_text_in_the_csv(tmp_path):
    line = dataclasses.replace(LINES[0], name="=1+1", examples_per_second=math.nan)
    write_comparison(tmp_path, "small", [line], None, [])
    with open(tmp_path / "comparison.csv", newline="") as stream:
        first = next(csv.DictReader(stream))
    assert (first["run"], first["samples_per_second"]) == ("'=1+1", "")


def test_files_say_the_same_and_escape_names(tmp_path):
    write_comparison(tmp_path, "small", LINES, None, ["a note"])
    with open(tmp_path / "comparison.csv", newline="") as stream:
        records = list(csv.DictReader(stream))
    assert [(r["run"], r["seed"], r["auc"]) for r in records] == [
        *(("full", "0", "0.800000"), ("full", "1", "0.820000")),
        *(("<bare>", "0", "0.700000"), ("<bare>", "1", "0.740000")),
    ]
    text = (tmp_path / "comparison.md").read_text()
    assert "| 0.8100 +- 0.0141 |" in text and "a note" in text and "- <bare>: a=1" in text
    page = (tmp_path / "comparison.html").read_text()
    assert "&lt;bare&gt;" in page and "<bare>" not in page and "http:" not in page
    assert 'class="worse"' in page and "-0.0900 worse" in page
