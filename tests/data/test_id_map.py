"""The rule of a table with a fixed capacity: who has a row, who loses it, and what ranks agree on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.id_map import AdmitConfig, ForgetConfig, IdMap, IdsConfig, Seen, merged
from recsys.errors import UserError
from tests.reference.id_map import DAY, SlowIdMap

NUM_IDS = 12


def ids_config(capacity, count=1, **forget):
    return IdsConfig(
        capacity=capacity, admit=AdmitConfig(count=count), forget=ForgetConfig(**forget)
    )


def seen(occurrences, **numbers):
    rows = np.array([one for one, _ in occurrences], np.int64)
    times = np.array([time for _, time in occurrences], np.int64)
    given = {"is_counted": True, "num_lookups": 0, "num_unknown": 0, **numbers}
    return Seen.of(rows, times, **given)


def id_map(capacity, num_rows=NUM_IDS, **rule):
    return IdMap("item_id", ids_config(capacity, **rule), num_rows)


def rows_of(made):
    return {int(i): int(made.table_row_N[i]) for i in np.flatnonzero(made.table_row_N)}


occurrence = st.tuples(st.integers(1, NUM_IDS - 1), st.integers(0, 40).map(lambda h: h * DAY // 4))


@settings(max_examples=150)
@given(
    windows=st.lists(st.lists(occurrence, max_size=12), min_size=1, max_size=6),
    capacity=st.integers(1, 8),
    count=st.integers(1, 3),
    after_days=st.sampled_from([None, 0.5, 3.0]),
    least_recent=st.booleans(),
    deal=st.randoms(use_true_random=False),
)
def test_the_map_is_that_of_a_slow_reference_however_rows_are_dealt_to_ranks(
    windows, capacity, count, after_days, least_recent, deal
):
    forget = {"after_days": after_days, "least_recent": least_recent}
    slow = SlowIdMap(capacity, count, **forget)
    fast = id_map(capacity, count=count, **forget)
    for window in windows:
        expected = slow.update(window)
        ranks = [[] for _ in range(deal.randint(1, 3))]
        for one in deal.sample(window, len(window)):
            deal.choice(ranks).append(one)
        together = merged([seen(part) for part in ranks])
        if expected is None:
            with pytest.raises(UserError, match=rf"ids\.capacity={capacity}: .* have \d+ ids"):
                fast.update(together)
            return
        assert fast.update(together).tolist() == expected
        assert rows_of(fast) == slow.row_of
        assert fast.num_used == len(slow.row_of) <= capacity


def test_an_id_is_unknown_until_it_has_the_count():
    made = id_map(4, count=3)
    made.update(seen([(5, 0), (5, 1)]))
    assert rows_of(made) == {}
    made.update(seen([(5, 2), (6, 2)]))
    assert rows_of(made) == {5: 1}


def test_rows_of_later_passes_are_not_counted_again():
    made = id_map(4, count=2)
    for counted in (True, False, False):
        made.update(seen([(5, 7)], is_counted=counted))
    assert rows_of(made) == {} and made.last_N[5] == 7
    made.update(seen([(5, 7)]))
    assert rows_of(made) == {5: 1}


def test_an_id_is_forgotten_after_days_of_the_logs_time_and_comes_back_anew():
    made = id_map(4, after_days=2)
    made.update(seen([(1, 0), (2, DAY)]))
    assert made.update(seen([(3, 2 * DAY)])).tolist() == [3]
    assert made.update(seen([(3, 3 * DAY)])).tolist() == [1]
    assert rows_of(made) == {2: 2, 3: 3}
    made.update(seen([(1, 3 * DAY)]))
    assert rows_of(made) == {1: 1, 2: 2, 3: 3}
    assert (made.totals.admitted, made.totals.forgotten) == (4, 1)


def test_a_clock_that_goes_back_forgets_nothing_and_stays_at_the_latest_time():
    made = id_map(4, after_days=2)
    made.update(seen([(1, 9 * DAY), (2, 10 * DAY)]))
    assert made.update(seen([(1, 3 * DAY), (3, 8 * DAY), (4, 7 * DAY)])).tolist() == [3]
    assert rows_of(made) == {1: 1, 2: 2, 3: 3}, "id 4 is too old to be admitted"
    assert made.totals.now == 10 * DAY and made.last_N[1] == 9 * DAY
    assert made.totals.forgotten == 0


def test_the_least_recent_give_way_where_the_table_is_full():
    made = id_map(2, least_recent=True)
    made.update(seen([(1, 10), (2, 20)]))
    assert made.update(seen([(3, 30)])).tolist() == [1]
    assert rows_of(made) == {2: 2, 3: 1}
    assert made.update(seen([(4, 5)])).tolist() == []
    assert rows_of(made) == {2: 2, 3: 1} and made.totals.turned_away == 1


def test_without_a_rule_of_forgetting_a_full_table_stays_as_it_is():
    made = id_map(2)
    made.update(seen([(1, 10), (2, 20)]))
    assert made.update(seen([(3, 30)])).tolist() == []
    assert rows_of(made) == {1: 1, 2: 2} and made.totals.turned_away == 1


def test_a_window_with_more_ids_than_rows_names_table_capacity_and_needed_rows():
    with pytest.raises(UserError) as caught:
        id_map(2).update(seen([(1, 0), (2, 0), (3, 0)]))
    assert "tables.item_id.ids.capacity=2: " in str(caught.value)
    assert "set it to 3 or more" in str(caught.value)


def test_occupancy_is_flat_over_thirty_windows_of_a_drifting_catalogue(rng):
    """Ten new ids a day, each of interest for five days: about fifty are alive."""
    made = id_map(80, num_rows=400, after_days=1)
    used = []
    for day in range(30):
        alive = np.arange(max(1, 10 * (day - 4)), 10 * (day + 1))
        made.update(seen([(int(i), day * DAY) for i in rng.choice(alive, 400)]))
        used.append(made.num_used)
    assert set(used[6:]) == {60}  # the fifty, and those of the day before
    assert made.totals.admitted == 299 and made.totals.forgotten == 239
    assert made.totals.turned_away == 0


def test_a_stored_map_goes_on_as_it_was_and_ids_that_came_since_have_no_row(rng):
    windows = [[(int(i), day * DAY) for i in rng.integers(1, 9, 6)] for day in range(6)]
    whole, first = id_map(6, least_recent=True), id_map(6, least_recent=True)
    for window in windows[:3]:
        whole.update(seen(window, num_lookups=6, num_unknown=2))
        first.update(seen(window, num_lookups=6, num_unknown=2))
    rest = id_map(6, num_rows=NUM_IDS + 5, least_recent=True)
    rest.load(first.arrays())
    for window in windows[3:]:
        assert whole.update(seen(window)).tolist() == rest.update(seen(window)).tolist()
    assert rows_of(whole) == rows_of(rest) and whole.totals == rest.totals
    assert whole.totals.lookups == 18 and whole.totals.unknown == 6
    with pytest.raises(UserError, match="12 ids and rows up to 6; the data has 4 and .* is 6"):
        id_map(6, num_rows=4).load(whole.arrays())
