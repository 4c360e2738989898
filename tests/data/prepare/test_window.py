"""Windows in partitions, without Ray: the files of one process, day after day, whoever appends which."""

import shutil

import pytest

from recsys.data.prepare.window import whole_window
from recsys.errors import UserError
from tests.data.prepare.drawn_days import (
    VARIANTS,
    appended,
    check_days,
    content_of,
    prepared,
    recipe,
    write,
    write_day,
)
from tests.data.prepare.partitions_here import window_here


@pytest.mark.parametrize("variant", ["few features", "dislikes"])
def test_a_day_appended_in_partitions_is_that_of_one_process(tmp_path, rng, variant):
    """A day with drawn negatives and rare sites, and one with histories of negatives."""
    check_days(tmp_path, variant, rng, {"two": [window_here(2)]}, num_days=1)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_days_of_every_kind_are_equal_for_1_2_3_and_5_partitions(tmp_path, rng, variant):
    holds = {str(count): [window_here(count)] * 3 for count in (1, 2, 3, 5)}
    holds["mixed"] = [window_here(2), whole_window, window_here(5)]
    check_days(tmp_path, variant, rng, holds)


@pytest.mark.slow
def test_refusals_in_partitions_are_those_of_one_process(tmp_path, rng):
    """Rows before the end of the prepared data, and rows of unknown items alone."""
    source = tmp_path / "raw"
    made = recipe(source, "dropped")
    write_day(source, 0, rng)
    prepared(made, tmp_path / "w")
    before = content_of(tmp_path / "w")
    head = "user,item,time,label,site,words,price"
    for rows in (["u1,i1,3,1,s,w,1", "u2,i2,70,1,s,w,1", "u1,i3,2,0,s,w,1"], ["u1,new,80,1,s,w,1"]):
        write(source / "log", 1, [head, *rows])
        messages = []
        for hold in (whole_window, window_here(3)):
            with pytest.raises(UserError) as error:
                appended(made, tmp_path / "w", hold)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
        assert content_of(tmp_path / "w") == before
    assert messages[0].endswith("no rows to append (1 unknown item)")


@pytest.mark.slow
def test_new_rows_of_a_log_that_has_grown_begin_at_since(tmp_path, rng):
    made = recipe(tmp_path / "raw", "listed")
    write_day(tmp_path / "raw", 0, rng)
    prepared(made, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with open(tmp_path / "raw" / "log" / "0.csv", "a") as log:
        log.write("".join(f"u{n},i{n},{20 + n},1,s{n},w,3\n" for n in range(4)))
    one = appended(made, tmp_path / "one", since="21")
    assert one.splits["window_0001"].num_rows == 3
    two = appended(made, tmp_path / "two", window_here(3), since="21")
    assert two == one and content_of(tmp_path / "two") == content_of(tmp_path / "one")
    assert two.rows_dropped["earlier than since"] == 61
