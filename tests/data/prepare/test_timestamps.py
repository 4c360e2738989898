"""Times as people write them: none becomes a second of 1970 without a word."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.data.prepare.timestamps import DATES
from tests.data.small_log import INTERACTIONS, prepared, recipe, write_source

LINES = [line.split(",") for line in INTERACTIONS.splitlines()]
DAYS = [datetime(2014, 10, day + 1, day % 24, 30, tzinfo=UTC) for day in range(len(LINES) - 1)]
YEARS = [datetime(1990 + index, 1, 1, tzinfo=UTC) for index in range(len(LINES) - 1)]


def log_of(times):
    rows = [",".join([u, i, str(t), r]) for (u, i, _, r), t in zip(LINES[1:], times, strict=True)]
    return "\n".join(["user_id,item_id,time,rating", *rows, ""])


def span(manifest):
    splits = manifest.splits.values()
    return min(s.timestamp_min for s in splits), max(s.timestamp_max for s in splits)


@pytest.mark.parametrize("written", DATES)
@pytest.mark.parametrize("as_floats", [False, True])
def test_dates_among_numbers_are_refused_until_they_are_named(tmp_path, written, as_floats):
    days = DAYS if "d" in written else YEARS
    times = [day.strftime(written) for day in days]
    log = log_of([f"{t}.0" for t in times] if as_floats else times)
    source = write_source(tmp_path / "raw", interactions=log)
    with pytest.raises(
        ValueError,
        match=rf"log.csv: column 'time' \(interactions.timestamp\): numbers such as {times[0]} look "
        rf"like dates; set interactions.timestamp_format='{written}', or seconds if they are",
    ):
        prepared(tmp_path, recipe(source))
    named = recipe(source, interactions__timestamp_format=written)
    parsed = [datetime.strptime(t, written).replace(tzinfo=UTC).timestamp() for t in times]
    assert span(prepared(tmp_path, named)[0]) == (min(parsed), max(parsed))


def test_numbers_that_look_like_dates_may_be_seconds(tmp_path):
    source = write_source(tmp_path / "raw", interactions=log_of(range(1990, 2002)))
    made = recipe(source, interactions__timestamp_format="seconds")
    assert span(prepared(tmp_path, made)[0]) == (1990, 2001)


@pytest.mark.parametrize("given", ["milliseconds", "%d.%m.%Y %H:%M", "%Y-%m-%dT%H:%M:%S%z"])
def test_other_ways_to_write_times_are_named(tmp_path, given):
    times = [day.strftime(given) for day in DAYS]
    if given == "milliseconds":
        times = [int(day.timestamp() * 1000) for day in DAYS]
    source = write_source(tmp_path / "raw", interactions=log_of(times))
    made = recipe(source, interactions__timestamp_format=given)
    assert span(prepared(tmp_path, made)[0]) == (DAYS[0].timestamp(), DAYS[-1].timestamp())
    write_source(source, interactions=log_of([*times[:-1], "soon"]))
    with pytest.raises(ValueError, match=r"not a time in whole seconds: expected .*data row 11"):
        prepared(tmp_path, made)


@pytest.mark.parametrize("given", ["hours", "%Q", ""])
def test_format_that_is_none_is_refused_with_its_key(tmp_path, given):
    made = recipe(write_source(tmp_path / "raw"), interactions__timestamp_format=given)
    with pytest.raises(ValueError, match=rf"interactions.timestamp_format='{given}': "):
        prepared(tmp_path, made)


def test_dates_of_parquet_are_dates_and_few_odd_numbers_are_none(tmp_path, capsys):
    source = write_source(tmp_path / "raw")
    columns = dict(zip(LINES[0], zip(*LINES[1:], strict=True), strict=True))
    days = [day.replace(tzinfo=None) for day in DAYS]
    for kind in (pa.date32(), pa.timestamp("ns"), pa.timestamp("us", tz="UTC")):
        table = pa.table({**columns, "time": pa.array(days).cast(kind, safe=False)})
        pq.write_table(table, source / "log.parquet")
        made = recipe(source, interactions__file="log.parquet")
        first = DAYS[0].timestamp() - (1800 if pa.types.is_date(kind) else 0)
        assert span(prepared(tmp_path, made)[0])[0] == first
    assert "1979" not in capsys.readouterr().out
    write_source(source, interactions=log_of([*range(1, 8), 1990, 1991, 1992, 20140101, 8]))
    prepared(tmp_path, recipe(source))
    assert "column 'time': no row is later than 1979" in capsys.readouterr().out


UNITS = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_numbers_is_recognised_and_said_or_declared(tmp_path, unit, capsys):
    # A whole second less one of the unit: rounding up would be seen.
    times = [int(day.timestamp() + 1) * UNITS[unit] - 1 for day in DAYS]
    source = write_source(tmp_path / "raw", interactions=log_of(times))
    found = span(prepared(tmp_path / "a", recipe(source))[0])
    assert found == (DAYS[0].timestamp(), DAYS[-1].timestamp())
    assert f"column 'time': its numbers are taken for {unit} since 1970" in capsys.readouterr().out
    declared = recipe(source, interactions__timestamp_format=unit)
    assert span(prepared(tmp_path / "b", declared)[0]) == found
    assert "are taken for" not in capsys.readouterr().out


def test_numbers_of_two_units_are_refused(tmp_path):
    times = [int(day.timestamp()) * 1000 for day in DAYS]
    source = write_source(tmp_path / "raw", interactions=log_of([*times[:-1], times[-1] // 1000]))
    with pytest.raises(ValueError, match=r"number of a larger unit than the milliseconds .*row 11"):
        prepared(tmp_path, recipe(source))
    source = write_source(tmp_path / "raw", interactions=log_of([*times[:-1], times[-1] * 10**6]))
    with pytest.raises(ValueError, match=r"a time after the year 9999; expected milliseconds"):
        prepared(tmp_path, recipe(source))


@pytest.mark.parametrize("written", [None, "%Y-%m-%d %H:%M:%S"])
def test_dates_without_a_zone_are_of_the_named_one(tmp_path, written):
    times = [day.strftime("%Y-%m-%d %H:%M:%S") for day in DAYS]
    if written is None:
        times[-1] += "+00:00"  # says its own
    source = write_source(tmp_path / "raw", interactions=log_of(times))
    made = recipe(
        source, interactions__timestamp_format=written, interactions__timestamp_zone="Asia/Tokyo"
    )
    nine_hours = 9 * 3600
    last = DAYS[-1].timestamp() - (nine_hours if written else 0)
    assert span(prepared(tmp_path, made)[0]) == (DAYS[0].timestamp() - nine_hours, last)


@pytest.mark.parametrize(
    ("zone", "written", "said"),
    [
        ("Mars/Base", None, "timestamp_zone='Mars/Base': expected the name of a time zone"),
        ("Asia/Tokyo", "seconds", "seconds since 1970 have no zone"),
    ],
)
def test_a_zone_that_cannot_be_is_refused(tmp_path, zone, written, said):
    source = write_source(tmp_path / "raw")
    made = recipe(source, interactions__timestamp_format=written, interactions__timestamp_zone=zone)
    with pytest.raises(ValueError, match=said):
        prepared(tmp_path, made)


@settings(max_examples=10)
@given(st.lists(st.integers(473_385_600, 1_893_455_999), min_size=12, max_size=12))
def test_seconds_from_1985_to_2030_never_look_like_dates(tmp_path_factory, seconds):
    tmp_path = tmp_path_factory.mktemp("seconds")
    source = write_source(tmp_path / "raw", interactions=log_of(seconds))
    made = recipe(source, split={"strategy": "random", "fractions": [0.5, 0.25, 0.25]})
    assert span(prepared(tmp_path, made)[0]) == (min(seconds), max(seconds))
