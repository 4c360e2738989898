"""The evaluation report: self-contained, whole for every evaluation, and what it was given as text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from recsys.evaluation.curves import curves_of, roc_curve
from recsys.evaluation.evaluate import Evaluation
from recsys.evaluation.interactions import Interactions
from recsys.evaluation.planted import PlantedShare
from recsys.evaluation.predict import by_score
from recsys.evaluation.result import InputImportance
from recsys.evaluation.samples import Recommendation, SampleUser
from recsys.evaluation.segments import Segment
from recsys.evaluation.split import RowUsers, scored_rows_of
from recsys.report.evaluation_page import DataCounts, write_report
from recsys.report.items import Item
from recsys.runtime.ranks import ALONE
from tests.evaluation.drawn_predictions import NAMES, evaluated, rows

HOSTILE = "<script>alert('x')</script> $a_1$ & \"quotes\""


class Page(HTMLParser):
    """Collects what a browser would load and what a reader sees."""

    def __init__(self):
        super().__init__()
        self.loads, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [v for k, v in attributes if k in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text.append(data)


def written(tmp_path, rng, **changes):
    """Write the page of drawn predictions; `changes` replace parts of the evaluation, and `counts`."""
    predictions = changes.pop("predictions", None) or by_score(rows(rng))
    counts = changes.pop(
        "counts",
        DataCounts(
            facts={"items": "19"},
            by_item=Interactions.of(dict.fromkeys(range(20), 1)),
            by_user=Interactions.of({1: 5}),
        ),
    )
    masks = {HOSTILE: predictions.item_row < 10, "rest": predictions.item_row >= 10}
    result = changes.pop("result", None) or evaluated(
        predictions, [Segment("artist", name, m) for name, m in masks.items()]
    )
    result.importance = [
        InputImportance(kind="feature", name="item_id", auc_lost=0.1, interval=(0.0, 0.2))
    ]
    item = Item(item_id="i1", title=HOSTILE, artist="Ada", picture=Image.new("RGB", (8, 8), "red"))
    share = rng.random(30)
    users = RowUsers(user_row_N=predictions.user_row, unknown_user_N=None)
    scored = scored_rows_of(predictions, users, ALONE)
    curves = curves_of(scored, predictions.weights)
    if changes.pop("with_truth", True):
        curves.roc["best possible"] = roc_curve(scored)
    given = {
        "result": result,
        "predictions": predictions,
        "users": users,
        "modality_names": NAMES,
        "curves": curves,
        "sample_users": [
            SampleUser(
                user_id="u1",
                num_liked=3,
                liked=[7],
                recommended=[
                    Recommendation(
                        item_row=7,
                        score=0.75,
                        weights=dict(zip(NAMES, [0.1, 0.2, 0.3, 0.4], strict=True)),
                        is_positive=True,
                    )
                ],
                planted={"semantic": 0.25, "style": 0.75},
            )
        ],
        "planted": {
            "style": PlantedShare(
                user_row_U=np.arange(30), planted_U=share, learned_U=share, correlation=1.0
            )
        },
        **changes,
    }
    write_report(
        tmp_path / "report.html",
        title=f"demo / {HOSTILE}",
        evaluation=Evaluation(**given),
        level=0.95,
        counts=counts,
        items={7: item},
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page()
    parsed.feed(text)
    return text, parsed


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), np.random.default_rng(1))


def test_the_page_loads_nothing_and_runs_nothing(whole):
    text, parsed = whole
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert all(load.startswith(("data:image/jpeg", "#")) for load in parsed.loads)
    assert not re.search(r"url\(['\"]?(?!#)", text)
    assert "default-src 'none'" in text


def test_the_page_takes_its_colours_and_letters_from_its_style_sheet(whole):
    text, parsed = whole
    assert "prefers-color-scheme:dark" in text
    assert parsed.tags.count("svg") >= 8
    # The stand-ins of ink, soft ink and lines are replaced, and nothing is drawn in plain black.
    assert text.count("var(--ink)") > 8 and "var(--line)" in text
    assert not re.search(r"#0[147]0[258]0[369]\b", text)
    assert "#000000" not in text and "DejaVu" not in text


def test_the_page_says_what_it_was_given(whole):
    _, parsed = whole
    shown = " ".join(" ".join(parsed.text).split())
    for part in (
        "AUC",
        "95% interval",
        "Calibration",
        "Modality weights",
        "style: r = +1.00",
        "user u1",
        "3 liked before; drawn to care for content 25%, style 75%",
        "liked it",
        "0.75",
        "Interactions by item",
    ):
        assert part in shown, part
    assert HOSTILE in shown, "as text"


def test_a_page_without_users_weights_or_truth_is_whole(tmp_path, rng):
    predictions = by_score(rows(rng, weights=0))
    _, parsed = written(
        tmp_path,
        rng,
        result=evaluated(predictions),
        predictions=predictions,
        modality_names=[],
        counts=DataCounts(facts={}, by_item=None, by_user=None),
        sample_users=[],
        with_truth=False,
        planted={},
    )
    shown = " ".join(parsed.text)
    assert "ROC curve" in shown
    assert "Modality weights" not in shown and "What it recommends" not in shown


def test_a_page_of_one_class_has_no_curve_and_no_error(tmp_path, rng):
    predictions = rows(rng)
    predictions.label[:] = 1
    predictions = by_score(predictions)
    _, parsed = written(tmp_path, rng, predictions=predictions, with_truth=False)
    assert "ROC curve" in " ".join(parsed.text)
