"""Appended days are windows: the rows, histories and counts of one preparation, and frozen numbers."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recsys.data.dataset import Dataset
from recsys.schema import read_manifest
from tests.data.small_days import (
    appended,
    ids_of,
    prepared_base,
    recipe,
    rows_of,
    write_day,
)
from tests.reference.appended import window_rows

USERS, ITEMS = ["u1", "u2", "u3", "u4"], ["i1", "i2", "i3", "i4", "i5"]
ROW = st.tuples(
    st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(0, 3), st.integers(0, 1)
)
DAYS = st.lists(st.lists(ROW, min_size=1, max_size=8), min_size=2, max_size=3)
FIRST = [(f"u{1 + n % 2}", f"i{1 + n % 3}", n // 2, int(n % 5 < 3)) for n in range(20)]
"""Rows that every base has, so that it can be split in any way."""
RULES = [
    ("given", "past", (1, 1)),
    ("given", "train", (1, 1)),
    ("given", "past", (2, 3)),
    ("given", "train", (1, 2)),
    ("time", "past", None),
    ("per_user_time", "train", None),
    ("random", "past", None),
]
"""(split.strategy of the base, history.scope, least counts of users and items; None: they are listed)."""


def in_time(rows, last):
    """Rows with their seconds after `last`, which the first of them may share."""
    return [(user, item, last + second, label) for user, item, second, label in rows]


def days_of(later):
    """All days, the base first; the first rows of a day may share the last second before."""
    days = [FIRST]
    for rows in later:
        days.append(in_time(rows, max(row[2] for row in days[-1])))
    return days


def check_days(later, rule):
    """Append days one by one; hold each window to the slow reference, the whole to one preparation."""
    strategy, scope, min_counts = rule
    days = days_of(later)
    lengths = {"max_length": 3, "recent_length": 1, "negative_length": 2}
    changes = {"history": {**lengths, "scope": scope}}
    if min_counts:
        counts = zip(("user_min_count", "item_min_count"), min_counts, strict=True)
        changes["interactions"] = dict(counts)
    catalogues = () if min_counts else (USERS, ITEMS)
    with tempfile.TemporaryDirectory() as folder:
        source, workspace = Path(folder) / "raw", Path(folder) / "w"
        write_day(source, 0, FIRST)
        made = recipe(source, strategy=strategy, catalogues=catalogues, **changes)
        prepared_base(made, workspace)
        for number, rows in enumerate(days[1:], start=1):
            write_day(source, number, rows)
            before = {name: ids_of(workspace, name) for name in ("user_id", "item_id")}
            manifest = appended(made, workspace)
            for name, ids in before.items():
                assert ids_of(workspace, name)[: len(ids)] == ids
            found = rows_of(workspace, manifest.split_named("next"))
            expected = window_rows(
                days, number, scope=scope, lengths=(3, 2), min_counts=min_counts or (0, 0)
            )
            assert [row[:6] for row in found] == expected
        if scope == "past" and min_counts == (1, 1):
            whole = Path(folder) / "whole"
            prepared_base(made, whole)
            rows = [
                row for split in ("train", *windows(workspace)) for row in rows_of(workspace, split)
            ]
            assert rows == rows_of(whole, "train")
            for side in ("user", "item"):
                assert counts_of(workspace, side) == counts_of(whole, side)


def windows(workspace):
    return [name for name in read_manifest(workspace).splits_in_time if "window" in name]


def counts_of(workspace, side):
    """Training rows and rows of windows by id, as the array and as the vocabulary count them."""
    counts = np.load(workspace / "prepared" / f"{side}s" / "train_count.npy").tolist()
    return dict(zip(ids_of(workspace, f"{side}_id"), counts, strict=True))


def drawn_days(rng, num_days):
    """Days of a few rows, in any order of time."""
    return [
        [
            (str(rng.choice(USERS)), str(rng.choice(ITEMS)), int(second), int(rng.integers(2)))
            for second in rng.integers(0, 4, size=rng.integers(1, 9))
        ]
        for _ in range(num_days)
    ]


@pytest.mark.parametrize("rule", [RULES[0], RULES[3], RULES[5]], ids=["past", "rare", "listed"])
def test_appended_days_have_the_rows_and_histories_of_the_slow_reference(rng, rule):
    check_days(drawn_days(rng, 3), rule)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@settings(max_examples=100)
@given(DAYS, st.sampled_from(RULES))
def test_many_appended_days_have_the_rows_and_histories_of_the_slow_reference(later, rule):
    # A file with the content of another is refused as a day that was read already.
    assume(len(set(map(tuple, days_of(later)))) == len(later) + 1)
    check_days(later, rule)


def test_numbers_of_new_days_are_scaled_by_the_statistics_of_the_first(tmp_path):
    source, workspace = tmp_path / "raw", tmp_path / "w"
    write_day(source, 0, FIRST)
    (source / "ages").mkdir()
    (source / "ages" / "0.csv").write_text("user_id,age\nu1,20\nu2,40\n")
    numbers = {"features": {"place": {}, "moment": {"column": "time", "kind": "dense"}}}
    ages = {"file": "ages/*.csv", "features": {"age": {"kind": "dense"}}}
    made = recipe(source, interactions=numbers, users=ages)
    age, moment = prepared_base(made, workspace).dense
    assert (age.mean, age.deviation) == (30, 10)
    write_day(source, 1, [("u1", "i1", 50, 1), ("u3", "i2", 60, 0), ("u4", "i2", 70, 1)])
    (source / "ages" / "1.csv").write_text("user_id,age\nu1,25\nu3,60\n")
    manifest = appended(made, workspace)
    assert manifest.dense == (age, moment)
    name = manifest.split_named("next")
    data = Dataset(workspace / "prepared", manifest, split=name, features=["user_id", "moment"])
    rows = data.read(0, 3).sort_by("row_id").to_pydict()
    expected = [(second - moment.mean) / moment.deviation for second in (50, 60, 70)]
    assert rows["moment"] == pytest.approx(expected, rel=1e-6)
    ages = data.array("users/age.values").tolist()
    by_user = dict(zip(ids_of(workspace, "user_id"), ages, strict=True))
    # u4 has no age; no training row lacked one, so that it counts as the mean.
    assert by_user == {None: 0, "u1": -0.5, "u2": 1, "u3": 3, "u4": 0}


def test_a_list_of_which_the_weights_alone_are_new_is_described_anew(tmp_path, capsys):
    source, workspace = tmp_path / "raw", tmp_path / "w"
    write_day(source, 0, FIRST)
    (source / "tastes").mkdir()
    (source / "tastes" / "0.csv").write_text("user_id,likes\nu1,red:2|sky:1\nu2,red:3|sky:3\n")
    feature = {"kind": "id_list", "weight_separator": ":"}
    made = recipe(source, users={"file": "tastes/*.csv", "features": {"likes": feature}})
    prepared_base(made, workspace)
    write_day(source, 1, [("u1", "i1", 50, 1)])
    (source / "tastes" / "1.csv").write_text("user_id,likes\nu1,red:2|sky:5\nu2,red:3|sky:3\n")
    appended(made, workspace)
    assert "1 users described anew" in capsys.readouterr().out


def test_weights_of_new_lists_follow_and_those_of_described_users_are_replaced(tmp_path):
    source, workspace = tmp_path / "raw", tmp_path / "w"
    write_day(source, 0, FIRST)
    (source / "tastes").mkdir()
    (source / "tastes" / "0.csv").write_text("user_id,likes\nu1,red:2|sky:1\nu2,red\n")
    feature = {"kind": "id_list", "weight_separator": ":"}
    made = recipe(source, users={"file": "tastes/*.csv", "features": {"likes": feature}})
    prepared_base(made, workspace)
    write_day(source, 1, [("u1", "i1", 50, 1), ("u3", "i2", 60, 0), ("u4", "i2", 70, 1)])
    (source / "tastes" / "1.csv").write_text("user_id,likes\nu1,sky:5\nu3,mud:0.5|red:4\n")
    manifest = appended(made, workspace)
    name = manifest.split_named("next")
    data = Dataset(workspace / "prepared", manifest, split=name, features=["user_id", "likes"])
    (likes,) = (f for f in data.features if f.name == "likes")
    users, words = ids_of(workspace, "user_id"), ids_of(workspace, "likes")
    rows = np.arange(len(users))
    ids, lengths = data.side_ids(likes, rows)
    weights = np.split(data.side_weights(likes, rows), np.cumsum(lengths)[:-1])
    found = {
        user: {words[i]: float(w) for i, w in zip(part, weighed, strict=True)}
        for user, part, weighed in zip(
            users, np.split(ids, np.cumsum(lengths)[:-1]), weights, strict=True
        )
    }
    expected = {"u1": {"sky": 5}, "u2": {"red": 1}, "u3": {"mud": 0.5, "red": 4}, "u4": {}}
    assert found == {None: {}, **expected}
