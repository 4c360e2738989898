"""metrics.json: written and read in one place, and read as earlier versions wrote it."""

import json
import math
from pathlib import Path

import pytest

from recsys.evaluation.result import (
    EvaluationResult,
    InputImportance,
    SegmentResult,
    UnknownUsers,
    from_json,
    read_result,
    to_json,
    write_result,
)
from recsys.metrics.registry import METRICS
from recsys.metrics.summary import RowMetrics

EARLIER = Path(__file__).with_name("earlier_metrics.json")
"""Written on the drawn world by the version before there was a record."""


def metrics(auc):
    return RowMetrics(
        num_rows=10, num_positives=4, values=dict.fromkeys(METRICS, 0.25) | {"auc": auc}
    )


def test_the_file_of_an_earlier_version_is_read_and_written_as_it_was(tmp_path):
    result = read_result(EARLIER, "evaluate again")
    assert result.all.num_rows == 30_000 and result.all.value("auc") == 0.8576060216063516
    assert result.rankings.full.candidates == "all items the user had not seen"
    assert result.oracle.lift_recovered > 0.9 and set(result.planted) == {
        "semantic",
        "style",
        "text",
    }
    assert math.isnan(result.by_item_kind["only_drawn_as_negatives"].value("auc"))
    write_result(tmp_path / "metrics.json", result)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(EARLIER.read_text())


def test_what_has_no_value_is_null_in_the_file_and_nan_in_the_record(tmp_path):
    result = EvaluationResult(
        all=metrics(math.nan),
        intervals={"auc": (math.nan, math.nan)},
        unknown_users=UnknownUsers(num_rows=2, num_users=None),
        segments={
            "kind": {
                "few": SegmentResult(num_rows=1, num_positives=0, metrics=None, note="too small"),
                "large": SegmentResult(
                    num_rows=10,
                    num_positives=4,
                    metrics=metrics(0.5),
                    auc_interval=(0.4, 0.6),
                    weights={"style": 0.3},
                ),
            }
        },
        importance=[InputImportance(kind="feature", name="x", auc_lost=0.1, interval=(0.0, 0.2))],
        made_from={"checkpoint": "abc"},
    )
    write_result(tmp_path / "metrics.json", result)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["all"]["auc"] is None and content["intervals"]["auc"] == [None, None]
    again = read_result(tmp_path / "metrics.json", "evaluate again")
    assert math.isnan(again.all.value("auc")) and math.isnan(again.intervals["auc"][0])
    assert again.segments == result.segments and again.unknown_users == result.unknown_users
    assert again.made_from == result.made_from
    assert to_json(again).keys() == to_json(result).keys()


def test_parts_that_a_file_lacks_are_none_or_empty():
    result = from_json({})
    assert result.all.num_rows == 0 and math.isnan(result.all.value("auc"))
    assert result.rankings is None and result.importance is None and result.made_from is None
    assert result.segments == {} and result.weights == {} and result.by_item_kind == {}


def test_a_file_of_other_content_names_itself_and_the_remedy(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"all": {"auc": "high"}}')
    with pytest.raises(ValueError, match=r"metrics.json: .*; evaluate again"):
        read_result(path, "evaluate again")
