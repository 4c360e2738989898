"""Recipes: label rules without eval, and every contradiction named with its key."""

import pytest

from recsys.data.prepare.label import LabelRule, parse_label
from tests.data.small_log import recipe


@pytest.mark.parametrize(
    ("text", "column", "operator", "number"),
    [
        ("rating >= 4", "rating", ">=", 4.0),
        ("rating>3.5", "rating", ">", 3.5),
        ("watch time (s) < .5e2", "watch time (s)", "<", 50.0),
        ("score == -1", "score", "=", -1.0),
        ("score != 0", "score", "!=", 0.0),
        (" x <= +2 ", "x", "<=", 2.0),
    ],
)
def test_label_rule_is_column_operator_number(text, column, operator, number):
    assert parse_label(text) == LabelRule(column=column, operator=operator, values=(number,))


@pytest.mark.parametrize("text", ["clicked", "rating >= four", "a; DROP TABLE log", "x >= .."])
def test_anything_else_is_the_name_of_a_column(text):
    assert parse_label(text) == LabelRule(column=text, operator=None)


CONTRADICTIONS = {
    "strategy": (
        {"split__strategy": "by_moon"},
        r"split.strategy='by_moon': expected time, per_user_time, random or given",
    ),
    "time split without a time": (
        {"interactions__timestamp": None, "split__strategy": "time"},
        r"interactions.timestamp: missing, split.strategy=time needs a time column",
    ),
    "per-user split without users": (
        {"interactions__user_id": None},
        r"interactions.user_id: missing, split.strategy=per_user_time needs users",
    ),
    "given without files": (
        {"split__strategy": "given"},
        r"interactions.files=\[\]: split.strategy=given needs train, valid, test",
    ),
    "no file": ({"interactions__file": None}, r"interactions.file: missing"),
    "two fractions": (
        {"split__fractions": [0.5, 0.5]},
        r"split.fractions=\[0.5, 0.5\]: expected three shares that sum to 1",
    ),
    "negative fraction": (
        {"split__fractions": [1.2, -0.1, -0.1]},
        r"split.fractions=\[1.2, -0.1, -0.1\]: expected three shares",
    ),
    "separator of pairs": (
        {"pairs": [{"file": "p.csv", "positive_separator": ""}]},
        r"pairs\[0\].positive_separator='': expected text between list elements",
    ),
    "no label": ({"interactions__label": None}, r"interactions.label: missing, expected a 0/1"),
    "negatives beside a label": (
        {"interactions__negatives": {}},
        r"interactions.negatives: only where interactions.label is null",
    ),
    "strategy of negatives": (
        {"interactions__negatives": {"strategy": "worst"}, "interactions__label": None},
        r"interactions.negatives.strategy='worst': expected uniform or popularity",
    ),
    "no negatives per positive": (
        {"interactions__negatives": {"per_positive": 0}, "interactions__label": None},
        r"interactions.negatives.per_positive=0: expected 1 or more",
    ),
    "rule for unknown items": (
        {"interactions__unknown_items": "hide"},
        r"interactions.unknown_items='hide': expected error, drop or keep",
    ),
    "history scope": ({"history__scope": "all"}, r"history.scope='all': expected train or past"),
    "past without a time": (
        {
            "interactions__timestamp": None,
            "history__scope": "past",
            "split__strategy": "random",
        },
        r"history.scope=past: needs interactions.timestamp",
    ),
    "recent longer than history": (
        {"history__recent_length": 9},
        r"history.recent_length=9: expected 0 to history.max_length=3",
    ),
    "negatives without positives": (
        {"history": {"max_length": 0, "recent_length": 0, "negative_length": 5}},
        r"history.negative_length=5: needs history.max_length of 1 or more",
    ),
    "history of drawn negatives": (
        {
            "interactions__label": None,
            "interactions__negatives": {"per_positive": 1},
            "history__negative_length": 5,
        },
        r"history.negative_length=5: needs interactions.label",
    ),
    "kind of a feature": (
        {"items__features": {"year": {"kind": "number"}}},
        r"items.features.year.kind='number': expected id, id_list, numeric or dense",
    ),
    "side of a feature": (
        {"interactions__features": {"device": {"side": "left"}}},
        r"interactions.features.device.side='left': expected user, item or context",
    ),
    "cuts out of order": (
        {"items__features": {"year": {"kind": "numeric", "cuts": [2000, 1980]}}},
        r"items.features.year.cuts=\[2000.0, 1980.0\]: expected ascending numbers",
    ),
    "one hashed row": (
        {"items__features": {"title": {"hash_rows": 1}}},
        r"items.features.title.hash_rows=1: expected 0, or 2 and more",
    ),
    "name taken twice": (
        {"interactions__features": {"Genres": {}}},
        r"feature 'Genres': the name is taken",
    ),
    "name of a column of ours": (
        {"interactions__features": {"split": {}, "Label": {}}},
        r"feature 'Label': the name is taken.*\n.*feature 'split': the name is taken",
    ),
    "name with a blank": (
        {"interactions__features": {"day of week": {}}},
        r"feature 'day of week': expected letters, digits and underscores",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradiction_names_the_key_and_what_is_expected(tmp_path, case):
    changes, message = CONTRADICTIONS[case]
    with pytest.raises(ValueError, match=message):
        recipe(tmp_path, **changes)


def test_all_contradictions_are_reported_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"data.split.strategy='by_moon': ") as caught:
        recipe(
            tmp_path,
            split__strategy="by_moon",
            history__scope="all",
            items__features={"year": {"kind": "number"}},
        )
    assert str(caught.value).count("expected") == 3


def test_unknown_keys_and_wrong_types_are_reported_at_once(tmp_path):
    with pytest.raises(ValueError, match="unknown key") as caught:
        recipe(tmp_path, history__max_length="long", items__featurs={})
    assert "data.items.featurs: unknown key; expected one of" in str(caught.value)
    assert "data.history.max_length: 'long' does not fit" in str(caught.value)
