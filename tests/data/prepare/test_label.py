"""Label rules: on numbers and on text, and what is no rule is the name of a column."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.prepare.label import LabelRule, parse_label
from tests.data.small_log import prepared, recipe, write_source

EVENTS = """user_id,item_id,time,event,paid
ann,10,100,purchase,True
ann,20,200,view,false
ann,30,300, cart ,TRUE
ann,10,400,purchase,true
bob,20,50,"in, cart",True
bob,30,60,purchase,true
bob,40,70,it's 5,False
bob,10,80,view,true
"""
RULES = {
    "event == purchase": [1, 0, 0, 1, 0, 1, 0, 0],
    "event=='purchase'": [1, 0, 0, 1, 0, 1, 0, 0],
    "event != view": [1, 0, 1, 1, 1, 1, 1, 0],
    "event in [purchase, cart]": [1, 0, 1, 1, 0, 1, 0, 0],
    "event in (purchase, 'in, cart', \"it's 5\")": [1, 0, 0, 1, 1, 1, 1, 0],
    "event not in [view, cart]": [1, 0, 0, 1, 1, 1, 1, 0],
    "event == Purchase": [0, 0, 0, 0, 0, 0, 0, 0],
    "event == it's 5": [0, 0, 0, 0, 0, 0, 1, 0],
    "paid == true": [1, 0, 1, 1, 1, 1, 0, 1],
    "paid": [1, 0, 1, 1, 1, 1, 0, 1],
    "item_id in [10, 20.0]": [1, 1, 0, 1, 1, 0, 0, 1],
    "item_id == '20'": [0, 1, 0, 0, 1, 0, 0, 0],
    "item_id == 2e1": [0, 1, 0, 0, 1, 0, 0, 0],
    "item_id not in [10]": [0, 1, 1, 0, 1, 1, 1, 0],
    "time >= 80": [1, 1, 1, 1, 0, 0, 0, 1],
}


@pytest.mark.parametrize("rule", RULES)
def test_rules_on_text_and_on_numbers_name_the_positives(tmp_path, rule):
    head, rows = EVENTS.split("\n", 1)
    source = write_source(tmp_path / "raw", interactions=f"{head}\n{6 * rows}")
    split = {"strategy": "random", "fractions": [0.4, 0.3, 0.3]}
    made = recipe(source, interactions__label=rule, split=split)
    try:
        manifest, _ = prepared(tmp_path, made)
    except ValueError as error:
        # Where nothing is a positive, prepare may say so.
        assert not any(RULES[rule]) and "positive" in str(error)
    else:
        assert sum(s.num_positives for s in manifest.splits.values()) == 6 * sum(RULES[rule])


def test_row_without_a_value_is_no_negative(tmp_path):
    log = EVENTS.replace("ann,20,200,view", "ann,20,200,").replace("bob,10,80,view", "bob,10,80, ")
    made = recipe(
        write_source(tmp_path / "raw", interactions=log), interactions__label="event == purchase"
    )
    with pytest.raises(ValueError, match=r"column 'event': no value: 2 rows, first at data row 1"):
        prepared(tmp_path, made)


@pytest.mark.parametrize(
    "rule", ["event = purchase", "event in purchase", "time >= late", "a or b"]
)
def test_what_is_no_rule_is_a_missing_column_and_rules_are_shown(tmp_path, rule):
    made = recipe(write_source(tmp_path / "raw", interactions=EVENTS), interactions__label=rule)
    with pytest.raises(
        ValueError,
        match=rf"column '{rule}' \(interactions.label: a 0/1 column, or a rule such as .*event == "
        r"purchase.*\) is missing; the file has user_id",
    ):
        prepared(tmp_path, made)


@given(st.lists(st.text("ab ,'5.", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=4))
def test_quoted_values_are_read_as_they_are_written(values):
    rule = parse_label(f"event in [{', '.join(chr(34) + value + chr(34) for value in values)}]")
    assert rule == LabelRule(column="event", operator="IN", values=tuple(values))
