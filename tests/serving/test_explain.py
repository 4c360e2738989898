"""Explanations: the sentence about what lowers a score."""

from recsys.serving.explain import with_objection
from recsys.serving.requests import Reason


def test_the_term_that_lowers_the_score_most_is_named():
    reason = Reason("Its style is close.", "style")
    terms = {"first_order": 0.1, "match:text": -2.447, "deep": -1.1}
    assert with_objection(reason, terms).text == ("Its style is close. Against it: its text.")
    together = with_objection(reason, {"deep": -1.1}).text
    assert together.endswith("Against it: how all of it goes together.")
    assert with_objection(reason, {"deep": -0.4, "first_order": 2.0}) == reason
