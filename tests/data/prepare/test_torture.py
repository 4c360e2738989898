"""Input as bad as it comes: prepare either makes the right thing of it, or says what is wrong and where.

Whatever the input, no row is lost silently: rows in = rows of the splits - rows drawn + rows dropped.
"""

import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from recsys.data.dataset import Dataset
from recsys.data.loader import Loader, ReadAhead
from recsys.schema import read_manifest
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source

ROWS = 30
COLUMNS = {
    "user_id": [f"u{i % 3}" for i in range(ROWS)],
    "item_id": [str([10, 20, 30][i % 3]) for i in range(ROWS)],
    "time": list(range(ROWS)),
    "rating": [5 - i % 5 for i in range(ROWS)],
}
GIVEN = {"train": "a.parquet", "valid": "b.parquet", "test": "c.parquet"}


def counted(manifest):
    """Rows used and rows dropped, which together are the rows that came in."""
    used = sum(split.num_rows for split in manifest.splits.values()) - manifest.rows_drawn
    assert manifest.rows_in == used + sum(manifest.rows_dropped.values())
    return used


def refused(tmp_path, made, *patterns):
    """Prepare is refused with these sentences, and leaves nothing."""
    with pytest.raises(ValueError, match="problem|recipe") as caught:
        prepared(tmp_path, made)
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), str(caught.value)
    assert not (tmp_path / "w").exists()


# Bytes


def parquet_bytes():
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(COLUMNS), sink)
    return sink.getvalue().to_pybytes()


LOGS = {"log.csv": INTERACTIONS.encode(), "log.parquet": parquet_bytes()}


def test_parquet_file_whose_footer_is_broken_is_refused_by_its_name(tmp_path):
    content = bytearray(LOGS["log.parquet"])
    # Before the length of the footer and the magic word: its end, which says what is where.
    content[-28:-8] = b"\xff" * 20
    source = write_source(tmp_path / "raw")
    file = source / "log.parquet"
    file.write_bytes(content)
    with pytest.raises(OSError, match="thrift"):
        pq.ParquetFile(file)
    refused(tmp_path, recipe(source, interactions__file=file.name), rf"{file}: cannot be read \(")


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("max_examples", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_broken_bytes_are_refused_or_every_row_is_accounted_for(tmp_path, name, max_examples):
    count = iter(range(10_000))

    @settings(
        max_examples=max_examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        content = bytearray(LOGS[name])
        change = data.draw(st.sampled_from(["cut", "replace", "insert", "all"]))
        place = data.draw(st.integers(0, len(content) - 1))
        junk = data.draw(st.binary(min_size=1, max_size=20))
        if change == "cut":
            del content[place:]
        elif change == "replace":
            content[place : place + len(junk)] = junk
        elif change == "insert":
            content[place:place] = junk
        else:
            content = bytearray(junk)
        folder = tmp_path / str(next(count))
        source = write_source(folder / "raw")
        (source / name).write_bytes(content)
        try:
            manifest, _ = prepared(folder, recipe(source, interactions__file=name))
        except ValueError as error:
            assert name in str(error) or "split" in str(error)
            assert not (folder / "w").exists()
        else:
            counted(manifest)

    check()


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("log.csv", os.urandom, r"log.csv: (cannot be read|empty|column)"),
        ("log.parquet", os.urandom, r"log.parquet: cannot be read"),
        ("log.csv.gz", lambda n: b"\x1f\x8b" + os.urandom(n), r"log.csv.gz: cannot be read"),
        ("log.csv", lambda n: INTERACTIONS.encode("utf-16"), r"log.csv: cannot be read .*utf-8"),
        ("log.xlsx", lambda n: b'{"user_id": 1}\n', r"log.xlsx: expected a .parquet, .csv"),
        ("log.jsonl", os.urandom, r"log.jsonl: cannot be read"),
        ("log.jsonl", lambda n: b"[1]\n2\n", r"log.jsonl: cannot be read .*records"),
        ("log.jsonl", lambda n: b"\n", r"log.jsonl: empty; expected lines"),
        ("log.csv", lambda n: b"user_id,item_id,time,rating\n", r"log.csv: no rows"),
    ],
    ids=["csv", "parquet", "gz", "utf16", "kind", "json", "no objects", "no lines", "header alone"],
)
def test_file_that_is_none_is_named(tmp_path, name, content, pattern):
    source = write_source(tmp_path / "raw")
    (source / name).write_bytes(content(300))
    refused(tmp_path, recipe(source, interactions__file=name), pattern)


def test_huge_text_is_shown_cut_and_with_its_reason(tmp_path):
    log = INTERACTIONS.replace("ann,10,100", "a" * 3_000_000 + ",10,100")
    source = write_source(tmp_path / "raw", interactions=log)
    refused(tmp_path, recipe(source), r"Line: 2; .*a\.\.\. .*Maximum line size")
    source = write_source(source, interactions=INTERACTIONS.replace("ann", "a" * 100_000))
    assert counted(prepared(tmp_path, recipe(source))[0]) == 12


# Columns


def given_files(source, change, **more):
    for name, columns in zip(GIVEN.values(), (COLUMNS, COLUMNS, change(COLUMNS)), strict=True):
        pq.write_table(pa.table(columns), source / name)
    split = {"split": {"strategy": "given"}, "interactions__file": None}
    return recipe(source, **split, interactions__files=GIVEN, **more)


def test_files_whose_types_and_order_of_columns_drift_are_read_as_one(tmp_path):
    def drift(columns):
        texts = {**columns, "item_id": [int(i) for i in columns["item_id"]]}
        texts["time"] = [str(t) for t in columns["time"]]
        return dict(reversed(texts.items()))

    made = given_files(write_source(tmp_path / "raw"), drift)
    manifest, _ = prepared(tmp_path, made)
    assert counted(manifest) == 3 * ROWS and manifest.rows_unknown == {}


def test_file_that_lost_a_column_is_named(tmp_path):
    made = given_files(
        write_source(tmp_path / "raw"),
        lambda columns: {k: v for k, v in columns.items() if k != "rating"},
    )
    refused(tmp_path, made, r"c.parquet: column 'rating' \(interactions.label\) is missing")


@pytest.mark.parametrize("unknown_items", ["error", "keep", "drop"])
def test_ids_that_became_floats_are_not_taken_for_others(tmp_path, unknown_items):
    def floats(columns):
        ids = [float(i) for i in columns["item_id"]]
        return {**columns, "item_id": [*ids[:-1], float("nan")]}

    source = write_source(tmp_path / "raw")
    rule = {"interactions__unknown_items": unknown_items}
    made = given_files(source, floats, **rule)
    refused(tmp_path, made, r"c.parquet: column 'item_id': null id: 1 row, first at data row 29")
    made = given_files(source, lambda columns: {**columns, "item_id": [10.0] * ROWS}, **rule)
    refused(
        tmp_path,
        made,
        r"c.parquet: column 'item_id': an id that elsewhere is written '10': 30 rows, first at data "
        r"row 0 \('10.0'\); write ids the same way everywhere",
    )


@pytest.mark.parametrize(
    ("kind", "bits"), [(pa.float64(), 53), (pa.float32(), 24), (pa.int64(), None), ("csv", 53)]
)
def test_ids_in_floats_that_no_longer_tell_neighbours_apart_are_refused(tmp_path, kind, bits):
    source = write_source(tmp_path / "raw")
    big = 2 ** (bits or 60)

    def log(ids):
        if kind == "csv":
            lines = [line.split(",") for line in INTERACTIONS.splitlines()[1:]]
            rows = [f"{i}.0,{','.join(line[1:])}" for i, line in zip(ids, lines, strict=True)]
            (source / "ids.csv").write_text("\n".join(["user_id,item_id,time,rating", *rows]))
            return recipe(source, interactions__file="ids.csv")
        table = pa.table({**COLUMNS, "user_id": pa.array(ids, kind)})
        pq.write_table(table, source / "log.parquet")
        return recipe(source, interactions__file="log.parquet")

    num_rows = 12 if kind == "csv" else ROWS
    below = [big - 2 + i % 2 for i in range(num_rows)]
    manifest, _ = prepared(tmp_path, log(below))
    assert manifest.num_user_rows == 3
    if bits:
        made = log([*below[:7], big, *below[8:]])
        message = rf"'user_id': an id in floating point of 2\^{bits} or more.*: 1 row, .*row 7"
        with pytest.raises(ValueError, match=message):
            prepared(tmp_path, made)


def test_float_ids_of_items_users_and_features_are_looked_at_and_texts_like_numbers_are_not(
    tmp_path,
):
    source = write_source(tmp_path / "raw")
    (source / "users.csv").write_text("user_id,club\nann,9.3e+15\nbob,123456e7\n1e+17,1234e567\n")
    (source / "items.csv").write_text(ITEMS.replace("50,", "1e+16,").replace("1990", "9e+15"))
    made = recipe(
        source,
        users={"file": "users.csv", "features": {"club": {}}},
        items={"file": "items.csv", "features": {"year": {"kind": "numeric"}, "genres": {}}},
    )
    refused(
        tmp_path,
        made,
        r"^3 problems",
        r"items.csv: column 'item_id': an id in floating .*: 1 row, first at data row 4 \('1e\+16'",
        r"users.csv: column 'user_id': an id in floating .*: 1 row, first at data row 2 \('1e\+17'",
        r"users.csv: column 'club': an id in floating .*: 1 row, first at data row 0 \('9.3e\+15'",
    )


def test_users_that_differ_by_a_space_are_named_without_a_users_file(tmp_path):
    source = write_source(tmp_path / "raw", interactions=INTERACTIONS.replace("ann,30", "ann ,30"))
    refused(
        tmp_path, recipe(source), r"'user_id': an id .* written 'ann': 1 row, .* row 2 \('ann '"
    )


@pytest.mark.parametrize(
    ("values", "kind"),
    [([["u1"]] * ROWS, r"VARCHAR\[\]"), ([{"a": 1}] * ROWS, r"STRUCT")],
    ids=["lists", "structs"],
)
def test_ids_of_several_values_are_refused(tmp_path, values, kind):
    source = write_source(tmp_path / "raw")
    pq.write_table(pa.table({**COLUMNS, "user_id": values}), source / "log.parquet")
    made = recipe(source, interactions__file="log.parquet")
    refused(tmp_path, made, rf"column 'user_id' \(interactions.user_id\) holds {kind}")


@pytest.mark.parametrize("twin", ["TIME", "source_row"])
def test_columns_that_cannot_be_told_apart_are_refused(tmp_path, twin):
    source = write_source(tmp_path / "raw")
    pq.write_table(pa.table({**COLUMNS, twin: COLUMNS["time"]}), source / "log.parquet")
    made = recipe(source, interactions__file="log.parquet")
    refused(tmp_path, made, rf"{twin}.*: (a name is given twice|the name is taken); rename")


# Values


@pytest.mark.parametrize("given", ["1700000000000", "1e18", "290000-01-01"])
def test_time_after_the_year_9999_is_refused_and_the_year_9999_is_not(tmp_path, given):
    log = INTERACTIONS.replace("ann,10,100,5", f"ann,10,{given},5")
    source = write_source(tmp_path / "raw", interactions=log)
    refused(tmp_path, recipe(source), r"'time': a time after the year 9999; .*row 0")
    write_source(source, interactions=INTERACTIONS.replace("ann,10,100", "ann,10,9999-12-31"))
    manifest, _ = prepared(tmp_path, recipe(source))
    assert counted(manifest) == 12 and manifest.splits["test"].timestamp_max == 253_402_214_400


def test_rows_of_the_future_are_kept_and_said(tmp_path, capsys):
    log = INTERACTIONS.replace("ann,10,300", "ann,10,2999-01-01").replace(
        "cid,30,40", "cid,30,9e10"
    )
    manifest, _ = prepared(tmp_path, recipe(write_source(tmp_path / "raw", interactions=log)))
    assert counted(manifest) == 12
    assert "column 'time': 2 rows lie in the future; they are kept" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["nan", "", "four"])
def test_label_that_is_no_number_is_no_positive(tmp_path, given):
    log = INTERACTIONS.replace("ann,10,100,5", f"ann,10,100,{given}")
    source = write_source(tmp_path / "raw", interactions=log)
    refused(tmp_path, recipe(source), r"column 'rating': not a number: 1 row, first at data row 0")


def test_rows_that_repeat_are_kept_and_rows_dropped_are_counted(tmp_path):
    log = INTERACTIONS + INTERACTIONS.split("\n", 1)[1] * 2
    log = log.replace("cid,30,40", "cid,77,40")
    source = write_source(tmp_path / "raw", interactions=log)
    manifest, workspace = prepared(tmp_path, recipe(source, interactions__unknown_items="drop"))
    assert manifest.rows_dropped == {"unknown item": 3} and counted(manifest) == 33
    assert read_manifest(workspace).rows_dropped == manifest.rows_dropped


def test_rows_drawn_are_no_rows_that_came_in(tmp_path):
    items = ITEMS + "".join(f"{i},Item {i},x.png,,\n" for i in range(60, 90))
    source = write_source(tmp_path / "raw", items=items)
    made = recipe(source, interactions__label=None, interactions__negatives={"per_positive": 2})
    manifest, _ = prepared(tmp_path, made)
    assert manifest.rows_drawn == 24 and counted(manifest) == 12


def test_user_with_very_many_rows_takes_no_quadratic_time(tmp_path):
    """100,000 rows: 7 s where the time grows with the square of them, else less than 1."""
    count = 100_000
    table = pa.table({
        "user_id": ["ann"] * count,
        "item_id": np.resize(["10", "20", "30"], count),
        "time": np.arange(count) // 3,
        "rating": np.resize([5, 1, 4, 2], count),
    })
    source = write_source(tmp_path / "raw")
    pq.write_table(table, source / "log.parquet")
    manifest, workspace = prepared(tmp_path, recipe(source, interactions__file="log.parquet"))
    assert counted(manifest) == count
    rows = pa.concat_tables([
        pq.read_table(workspace / "prepared" / file) for file in manifest.splits["train"].files
    ]).sort_by("row_id")
    # Of three rows of a second, each sees the positives of the seconds before.
    positives = np.concatenate([[0], np.cumsum(table.column("rating").to_numpy() >= 4)])
    row_id = rows.column("row_id").to_numpy()
    expected = positives[row_id // 3 * 3]
    np.testing.assert_array_equal(rows.column("history_end").to_numpy(), expected)


# Paths


@pytest.mark.parametrize(
    "change",
    [
        {"interactions__file": "../log.csv"},
        {"interactions__file": "/etc/hostname.csv"},
        {"interactions__file": "memory://log.csv"},
        {"items__image_root": ".."},
        {"items__file": "sub/../../items.csv"},
        {"pairs": [{"file": "../pairs.csv"}]},
    ],
    ids=str,
)
def test_recipe_does_not_leave_its_source(tmp_path, change):
    source = write_source(tmp_path / "raw")
    with pytest.raises(ValueError, match="expected a path below data.source"):
        recipe(source, **change)


# Loading


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    manifest, workspace = prepared(folder, recipe(write_source(folder / "raw")))
    return manifest, workspace / "prepared"


@pytest.mark.parametrize("world_size", [1, 2, 8, 70])
def test_fewer_rows_and_row_groups_than_ranks_leave_no_rank_without_steps(small, world_size):
    """Three rows in one row group: most ranks hold padding alone, and all take equally many steps."""
    manifest, folder = small
    assert manifest.splits["valid"].num_rows == 3
    dataset = Dataset(folder, manifest, split="valid", features=[f.name for f in manifest.features])
    seen, steps = [], set()
    for rank in range(world_size):
        loader = Loader(
            dataset,
            global_batch_size=64,
            rank=rank,
            world_size=world_size,
            num_lanes=8,
            shuffle=True,
            seed=0,
            ahead=ReadAhead(num_prefetch=0),
        )
        batches = list(loader.batches(0))
        steps.add(len(batches))
        for batch in batches:
            assert batch.global_rows == 3 and len(batch.labels_B) == -(-64 // world_size)
            assert torch_all_finite(batch)
            seen += batch.row_id_B[batch.weights_B > 0].tolist()
    assert steps == {1} and len(seen) == len(set(seen)) == 3


def torch_all_finite(batch):
    return bool(batch.labels_B.isfinite().all() and (batch.features.sparse.values() >= 0).all())
