"""Choices between two models: sign test, Wilson's interval, sides."""

from math import comb

import pytest

from recsys.serving.choices import is_swapped, sign_test, tally, wilson_interval


@pytest.mark.parametrize("wins, losses", [(9, 1), (1, 9), (5, 5), (3, 2), (0, 0), (20, 0)])
def test_the_sign_test_counts_outcomes_as_far_from_even_or_farther(wins, losses):
    total = wins + losses
    apart = abs(wins - losses)
    far = sum(comb(total, k) for k in range(total + 1) if abs(2 * k - total) >= apart)
    assert sign_test(wins, losses) == pytest.approx(min(1, far / 2**total))


def test_wilsons_interval_is_that_of_the_book():
    # Brown, Cai, DasGupta (2001): 95 % score interval; 8 of 10 by hand: centre 0.7164, half 0.2267.
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 0) == (0, 1)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_the_sides_of_a_user_do_not_depend_on_the_order_of_the_models_and_are_even_over_users():
    users = [f"u{n}" for n in range(2000)]
    left_is_b = [is_swapped(user, ("a", "b")) for user in users]
    assert left_is_b == [not is_swapped(user, ("b", "a")) for user in users]
    assert 900 < sum(left_is_b) < 1100


def test_a_statement_names_the_preferred_model_and_how_sure_that_is():
    sure = tally(("a", "b"), (2, 15), 3)
    assert sure.statement.startswith(
        "b is preferred by 15 of 17 (88%, 95 % interval 66% to 97%; 3 "
    )
    assert "more than chance" in sure.statement
    assert "chance alone" in tally(("a", "b"), (3, 2), 0).statement
    assert tally(("a", "b"), (0, 0), 0).statement == "Nobody has chosen yet."
