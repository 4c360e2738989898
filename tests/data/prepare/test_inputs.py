"""Raw files as they come: odd columns, odd times, pictures, lists, users unheard of, broken lines."""

import errno
import gzip
import hashlib

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys.data.prepare import pipeline as pipeline_file
from recsys.data.prepare.pictures import leaves_root
from recsys.data.prepare.pipeline import prepare
from recsys.schema import leaves_folder, read_manifest
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source


def rows_of(workspace, manifest):
    """All rows of all splits by row id."""
    rows = {}
    for spec in manifest.splits.values():
        for file in spec.files:
            rows |= {
                row["row_id"]: row
                for row in pq.read_table(workspace / "prepared" / file).to_pylist()
            }
    return rows


def vocabulary(workspace, table):
    lines = pq.read_table(workspace / "prepared" / "vocab" / f"{table}.parquet").to_pylist()
    return {line["id"]: line["row"] for line in lines}


def array(workspace, name):
    return np.load(workspace / "prepared" / f"{name}.npy")


# Files


def test_columns_of_the_items_file_may_be_called_like_ours(tmp_path):
    items = "id,row,key,value,tags\n10,a,1|2,x,red\n20,b,,y,\n30,,2,z,red|blue\n40,a,3,,\n"
    made = recipe(
        write_source(tmp_path / "raw", items=items),
        items={
            "file": "items.csv",
            "item_id": "id",
            "title": "row",
            "text": ["tags", "value"],
            "tags": {"tags": {"kind": "id_list"}},
            "features": {"row": {}, "key": {"kind": "id_list"}, "value": {}},
        },
    )
    manifest, workspace = prepared(tmp_path, made)
    items = pq.read_table(workspace / "prepared" / "items.parquet").to_pylist()
    thirty = next(item for item in items if item["item_id"] == "30")
    assert thirty["text"] == "red|blue. z" and thirty["tags"] == ["blue", "red"]
    assert manifest.table("key").num_rows == 4


def test_gzip_tabs_and_a_log_without_header(tmp_path):
    source = write_source(tmp_path / "raw")
    text = INTERACTIONS.split("\n", 1)[1].replace(",", "\t")
    (source / "log.tsv.gz").write_bytes(gzip.compress(text.encode()))
    plain, _ = prepared(tmp_path / "a", recipe(source))
    made = recipe(
        source,
        interactions={
            "file": "log.tsv.gz",
            "delimiter": "\t",
            "header": ["user_id", "item_id", "time", "rating"],
            "user_id": "user_id",
            "item_id": "item_id",
            "timestamp": "time",
            "label": "rating >= 4",
        },
    )
    assert prepared(tmp_path / "b", made)[0].checksums == plain.checksums


def test_line_breaks_and_quotes_inside_of_a_field_are_kept(tmp_path):
    items = ITEMS.replace("10,Ten", '10,"Ten, ""X""\nsecond line"')
    source = write_source(tmp_path / "raw", items=items)
    _, workspace = prepared(tmp_path, recipe(source))
    titles = pq.read_table(workspace / "prepared" / "items.parquet")["title"].to_pylist()
    assert 'Ten, "X"\nsecond line' in titles


def test_line_ends_of_windows_and_a_byte_order_mark_change_nothing(tmp_path):
    source = write_source(tmp_path / "raw")
    plain, _ = prepared(tmp_path / "a", recipe(source))
    for name, text in (("log", INTERACTIONS), ("items", ITEMS)):
        content = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
        (source / f"{name}.csv").write_bytes(content)
    assert prepared(tmp_path / "b", recipe(source))[0].checksums == plain.checksums


BROKEN_FILES = {
    "row longer than the header": (
        INTERACTIONS.replace("ann,10,100,5", "ann,10,100,5,9").encode(),
        r"log.csv: cannot be read .*Line: 2.*ann,10,100,5,9.*Number of Columns: 4 Found: 5",
    ),
    "every row longer than the header": (
        INTERACTIONS.replace("\n", ",9\n").replace("rating,9", "rating").encode(),
        r"log.csv: cannot be read .*Line: 2.*Number of Columns: 4 Found: 5",
    ),
    "row shorter than the header": (
        INTERACTIONS.replace("bob,30,60,2", "bob,30").encode(),
        r"log.csv: cannot be read .*Line: 7.*bob,30.*Number of Columns: 4 Found: 2",
    ),
    "column named twice": (
        INTERACTIONS.replace("time,rating", "time,Time").encode(),
        r"log.csv: columns time, Time: a name is given twice; rename one",
    ),
    "not UTF-8": (
        INTERACTIONS.replace("bob", "b\xf6b").encode("latin-1"),
        r"log.csv: cannot be read \(.*(utf-8|unicode)",
    ),
    "empty": (b"", r"log.csv: empty; expected a header line with column names"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_csv_is_named_with_its_line_once(tmp_path, case):
    content, message = BROKEN_FILES[case]
    source = write_source(tmp_path / "raw")
    (source / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        prepared(tmp_path, recipe(source))
    assert str(caught.value).startswith("1 problem with the input data:")
    assert "Possible fixes" not in str(caught.value)


def test_page_broken_inside_of_a_parquet_file_is_named(tmp_path):
    source = write_source(tmp_path / "raw")
    table = pa.table({
        "user_id": [f"user {i}" for i in range(3000)],
        "item_id": ["10"] * 3000,
        "time": range(3000),
        "rating": [5] * 3000,
    })
    pq.write_table(table, source / "log.parquet", compression="none", use_dictionary=False)
    content = bytearray((source / "log.parquet").read_bytes())
    content[100:400] = b"\xff" * 300
    (source / "log.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"log.parquet: cannot be read"):
        prepared(tmp_path, recipe(source, interactions__file="log.parquet"))


# Values


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("100", 100),
        ("100.9", 100),
        ("1970-01-02", 86_400),
        ("1970-01-02 00:00:01", 86_401),
        ("1970-01-02T02:00:00+02:00", 86_400),
    ],
)
def test_time_is_a_number_of_seconds_or_a_date(tmp_path, given, seconds):
    log = INTERACTIONS.replace("ann,10,100,5", f"ann,10,{given},5")
    manifest, workspace = prepared(
        tmp_path, recipe(write_source(tmp_path / "raw", interactions=log))
    )
    assert rows_of(workspace, manifest)[0]["timestamp"] == seconds


@pytest.mark.parametrize("given", ["", "soon", "inf", "nan", "-5", "1970-13-45"])
def test_bad_time_is_refused(tmp_path, given):
    log = INTERACTIONS.replace("bob,30,60,2", f"bob,30,{given},2")
    with pytest.raises(
        ValueError, match=r"column 'time': not a time .*: 1 row, first at data row 5"
    ):
        prepared(tmp_path, recipe(write_source(tmp_path / "raw", interactions=log)))


def test_lists_of_a_parquet_file_need_no_separator(tmp_path):
    source = write_source(tmp_path / "raw")
    genres = [["red", "round"], [], None, ["red", "a|b"]]
    pq.write_table(pa.table({"item_id": [10, 20, 30, 40], "genres": genres}), source / "i.parquet")
    features = {"genres": {"kind": "id_list", "separator": ","}}
    made = recipe(source, items={"file": "i.parquet", "features": features})
    _, workspace = prepared(tmp_path, made)
    assert set(vocabulary(workspace, "genres")) == {"red", "round", "a|b"}
    rows = vocabulary(workspace, "item_id")
    lengths = np.diff(array(workspace, "items/genres.offsets"))
    assert [lengths[rows[i]] for i in ("10", "20", "30", "40")] == [2, 0, 0, 2]


def test_numbers_that_are_none_share_row_zero_and_cuts_are_exact(tmp_path):
    prices = ["0.30000000000000004", "0.1", "nan", "inf", ""]
    items = "item_id,price\n" + "".join(f"{10 * (i + 1)},{p}\n" for i, p in enumerate(prices))
    features = {"price": {"kind": "numeric", "cuts": [0.1, 0.30000000000000004]}}
    made = recipe(
        write_source(tmp_path / "raw", items=items),
        items={"file": "items.csv", "features": features},
    )
    _, workspace = prepared(tmp_path, made)
    rows = vocabulary(workspace, "item_id")
    buckets = array(workspace, "items/price.values")
    assert [buckets[rows[str(10 * i)]] for i in range(1, 6)] == [2, 1, 0, 3, 0]


def test_quantiles_of_a_log_feature_are_those_of_training_rows(tmp_path):
    features = {"price": {"column": "time", "kind": "numeric", "quantiles": 2}}
    made = recipe(write_source(tmp_path / "raw"), interactions__features=features)
    manifest, workspace = prepared(tmp_path, made)
    # Training times are 10, 20, 50, 60, 100, 200: the median is 50.
    rows = rows_of(workspace, manifest).values()
    assert all(row["price"] == (1 if row["timestamp"] <= 50 else 2) for row in rows)


def test_ids_of_a_log_feature_known_from_test_alone_are_unknown(tmp_path):
    log = INTERACTIONS.replace("rating\n", "rating,site\n", 1)
    sites = ["a", "b", "new", "newer"] * 3
    first, *lines = log.strip().split("\n")
    log = "\n".join([first, *(f"{line},{site}" for line, site in zip(lines, sites, strict=True))])
    made = recipe(
        write_source(tmp_path / "raw", interactions=log + "\n"), interactions__features={"site": {}}
    )
    manifest, workspace = prepared(tmp_path, made)
    # Rows 2, 6, 10 validate and 3, 7, 11 test.
    assert set(vocabulary(workspace, "site")) == {"a", "b"}
    rows = rows_of(workspace, manifest)
    assert [rows[i]["site"] for i in (2, 3, 6, 7)] == [0, 0, 0, 0]


def test_hashed_row_is_md5_of_the_id(tmp_path):
    made = recipe(write_source(tmp_path / "raw"), items__features={"title": {"hash_rows": 1000}})
    _, workspace = prepared(tmp_path, made)
    rows, values = vocabulary(workspace, "item_id"), array(workspace, "items/title.values")
    for item_id, title in (("10", "Ten"), ("50", "Never seen")):
        number = int.from_bytes(hashlib.md5(title.encode()).digest()[8:], "little")
        assert values[rows[item_id]] == 1 + number % 999


# Users and items


def test_users_file_need_not_list_everyone(tmp_path):
    source = write_source(tmp_path / "raw")
    (source / "users.csv").write_text("user_id,age\nann,30\nzoe,40\n")
    made = recipe(source, users={"file": "users.csv", "features": {"age": {}}})
    manifest, workspace = prepared(tmp_path, made)
    rows = vocabulary(workspace, "user_id")
    assert set(rows) == {"ann", "bob", "cid", "zoe"} and manifest.num_user_rows == 5
    ages = array(workspace, "users/age.values")
    assert ages[rows["bob"]] == 0 and ages[rows["ann"]] != ages[rows["zoe"]] != 0
    assert all(row["user_row"] for row in rows_of(workspace, manifest).values())


def test_unknown_items_can_be_kept_and_are_counted(tmp_path):
    log = INTERACTIONS.replace("cid,30,40", "cid,77,40").replace("bob,30", "bob,78")
    source = write_source(tmp_path / "raw", interactions=log)
    manifest, workspace = prepared(tmp_path, recipe(source, interactions__unknown_items="keep"))
    rows = rows_of(workspace, manifest)
    assert [row for row, content in sorted(rows.items()) if content["item_row"] == 0] == [5, 11]
    assert manifest.rows_unknown == {"item_id": 2} and manifest.rows_dropped == {}


def test_duplicate_user_id_and_null_item_id_are_refused_together(tmp_path):
    source = write_source(tmp_path / "raw", items=ITEMS.replace("\n40,", "\n,"))
    (source / "users.csv").write_text("user_id,age\nann,30\nann,40\n")
    made = recipe(source, users={"file": "users.csv", "features": {"age": {}}})
    with pytest.raises(ValueError, match="with the input data:") as caught:
        prepared(tmp_path, made)
    assert "users.csv: column 'user_id': duplicate id: 1 id, first at data row 0" in str(
        caught.value
    )
    assert "items.csv: column 'item_id': null id: 1 row, first at data row 3" in str(caught.value)


# Pictures


def test_missing_pictures_are_counted_and_no_error(tmp_path):
    source = write_source(tmp_path / "raw")
    (source / "sub").mkdir()
    for name in ("a.png", "sub/d.png"):
        (source / name).write_bytes(b"any")
    manifest, _ = prepared(tmp_path, recipe(source))
    # b.png and e.png are not there, and item 30 has no path.
    assert manifest.missing_images == 3


def test_picture_pattern_is_filled_in_and_may_not_climb_out(tmp_path):
    source = write_source(tmp_path / "raw")
    _, workspace = prepared(tmp_path, recipe(source, items__image="p/{item_id}-{title}.png"))
    images = pq.read_table(workspace / "prepared" / "items.parquet")["image"].to_pylist()
    assert "p/10-Ten.png" in images
    write_source(source, items=ITEMS.replace("20,Twenty", "20,x/../../y"))
    with pytest.raises(
        ValueError, match=r"picture path leaves .*: 1 row, first at data row 1 \('20'|x/../../y"
    ):
        prepared(tmp_path, recipe(source, items__image="p/{item_id}-{title}.png"))


@pytest.mark.parametrize("through", ["file", "folder"])
def test_picture_behind_a_link_out_of_the_root_is_refused(tmp_path, through):
    source = write_source(tmp_path / "raw")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "d.png").write_bytes(b"secret")
    if through == "file":
        (source / "a.png").symlink_to(outside / "d.png")
    else:
        (source / "sub").symlink_to(outside)
    row, path = (0, "a.png") if through == "file" else (3, "sub/d.png")
    with pytest.raises(
        ValueError, match=f"through a symbolic link: 1 row, first at data row {row} \\('{path}'\\)"
    ):
        prepared(tmp_path, recipe(source))


def test_link_inside_of_the_root_and_a_linked_root_are_fine(tmp_path):
    source = write_source(tmp_path / "raw")
    (source / "real.png").write_bytes(b"any")
    (source / "a.png").symlink_to(source / "real.png")
    (tmp_path / "link").symlink_to(source)
    manifest, _ = prepared(tmp_path, recipe(tmp_path / "link"))
    assert manifest.missing_images == 4


@pytest.mark.parametrize("image", ["image", "{image}", "sub\\{item_id}.png"])
def test_folders_of_a_picture_path_may_be_parted_by_backslashes(tmp_path, image):
    items = "item_id,image\n40,sub\\d.png\n20,b.png\n10,\n30,\n"
    source = write_source(tmp_path / "raw", items=items)
    (source / "sub").mkdir()
    for name in ("d.png", "40.png"):
        (source / "sub" / name).write_bytes(b"any")
    made = recipe(source, items={"file": "items.csv", "image": image})
    _, workspace = prepared(tmp_path, made)
    rows = pq.read_table(workspace / "prepared" / "items.parquet").to_pylist()
    images = {row["item_id"]: row["image"] for row in rows}
    assert images["40"] == ("sub/40.png" if "item_id" in image else "sub/d.png")
    for outside in ("..\\..\\x.png", "C:\\x.png", "\\\\host\\x.png", "a/..\\x.png", "/x.png"):
        write_source(source, items=items.replace("sub\\d.png", outside))
        with pytest.raises(ValueError, match=r"picture path leaves items.image_root"):
            prepared(tmp_path, recipe(source, items={"file": "items.csv", "image": "image"}))


@given(st.lists(st.sampled_from(["/", "\\", "..", ".", "a", "C:", "C", ":", "b c"]), max_size=6))
def test_paths_are_judged_alike_in_sql_and_in_python(pieces):
    path = "".join(pieces)
    slashed = path.replace("\\", "/")
    found = duckdb.execute(f"SELECT {leaves_root('$1')}", [slashed]).fetchall()[0][0]
    assert found == leaves_folder(path) == leaves_folder(slashed)


def test_missing_image_root_is_named(tmp_path):
    made = recipe(write_source(tmp_path / "raw"), items__image_root="posters")
    with pytest.raises(ValueError, match=r"raw/posters: no such folder; check items.image_root"):
        prepared(tmp_path, made)


# Negatives

MANY_ITEMS = ITEMS + "".join(f"{i},Item {i},x.png,,\n" for i in range(60, 90))


def test_a_drawn_negative_has_its_positives_context_time_and_split(tmp_path):
    made = recipe(
        write_source(tmp_path / "raw"),
        interactions__label=None,
        interactions__negatives={"per_positive": 1},
        interactions__features={"stars": {"column": "rating", "min_count": 2}},
        items={"file": "items.csv"},
    )
    write_source(tmp_path / "raw", items=MANY_ITEMS)
    manifest, workspace = prepared(tmp_path, made)
    rows = rows_of(workspace, manifest)
    assert sorted(rows) == list(range(24))
    assert all(row["label"] == (row_id < 12) for row_id, row in rows.items())

    def contexts(row_ids):
        names = ("user_row", "timestamp", "stars", "history_end")
        return sorted(tuple(rows[row_id][name] for name in names) for row_id in row_ids)

    assert contexts(range(12)) == contexts(range(12, 24))
    assert len({row["stars"] for row in rows.values()}) > 1
    # min_count counts input rows: one training row has 2 stars, drawn twice it is still one.
    assert "2" not in vocabulary(workspace, "stars")


def test_drawn_negatives_do_not_make_an_item_known_to_training(tmp_path):
    made = recipe(
        write_source(tmp_path / "raw"),
        interactions__label=None,
        interactions__negatives={"per_positive": 1},
    )
    manifest, workspace = prepared(tmp_path, made)
    row = vocabulary(workspace, "item_id")["50"]
    drawn = [r for r in rows_of(workspace, manifest).values() if r["item_row"] == row]
    assert drawn, "item 50 is drawn"
    assert array(workspace, "items/train_count")[row] == 0
    assert array(workspace, "items/train_count").sum() == 6


# The machine


def test_memory_limit_that_is_none_is_refused(tmp_path):
    made = recipe(write_source(tmp_path / "raw"))
    with pytest.raises(ValueError, match="memory_limit='12 apples', run.threads=1: .*apples"):
        prepare(made, tmp_path / "w", memory_limit="12 apples", threads=1)


def test_too_little_memory_says_what_to_change(tmp_path):
    made = recipe(write_source(tmp_path / "raw"))
    with pytest.raises(
        ValueError, match="memory_limit=1MB .*raise memory_limit or lower run.threads"
    ):
        prepare(made, tmp_path / "w", memory_limit="1MB", threads=1)


def test_a_failure_at_the_last_step_keeps_the_earlier_result(tmp_path, monkeypatch):
    source = write_source(tmp_path / "raw")
    manifest, workspace = prepared(tmp_path, recipe(source))

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(pipeline_file, "write_manifest", full)
    with pytest.raises(OSError, match=r"w/prepared: .* disk is full .* before is unchanged"):
        prepared(tmp_path, recipe(source, history__max_length=2))
    assert read_manifest(workspace).checksums == manifest.checksums
    assert [path.name for path in workspace.iterdir()] == ["prepared"]


def test_preparing_over_an_earlier_result_leaves_the_new_one_alone(tmp_path):
    source = write_source(tmp_path / "raw")
    prepared(tmp_path, recipe(source))
    stale = tmp_path / "w" / "prepared" / "stale.txt"
    stale.write_text("old")
    manifest, workspace = prepared(tmp_path, recipe(source))
    assert not stale.exists() and [path.name for path in workspace.iterdir()] == ["prepared"]
    files = {p.relative_to(workspace / "prepared").as_posix() for p in workspace.rglob("*.*")}
    assert {*manifest.checksums, "manifest.json"} == {f for f in files if "." in f}


def test_files_of_many_row_groups_have_the_same_bytes_for_any_number_of_threads(tmp_path, rng):
    num_rows = 150_000
    source = write_source(tmp_path / "raw")
    table = {
        "user_id": rng.integers(0, 3000, num_rows),
        "item_id": 10 * rng.integers(1, 6, num_rows),
        "time": rng.integers(0, 10**6, num_rows),
        "rating": rng.integers(1, 6, num_rows),
        "price": rng.random(num_rows),
    }
    pq.write_table(pa.table(table), source / "log.parquet", row_group_size=20_000)
    made = recipe(
        source,
        interactions__file="log.parquet",
        interactions__features={"price": {"kind": "numeric"}},
    )
    one, three = (
        prepare(made, tmp_path / f"{threads}", memory_limit="1GB", threads=threads)
        for threads in (1, 3)
    )
    assert one.checksums == three.checksums
    part = pq.ParquetFile(tmp_path / "1" / "prepared" / one.splits["train"].files[0])
    groups = [part.metadata.row_group(i).num_rows for i in range(part.num_row_groups)]
    assert groups == [65_536, one.splits["train"].num_rows - 65_536]


def test_list_feature_of_the_log_that_nobody_has_is_empty_everywhere(tmp_path):
    log = INTERACTIONS.replace("rating\n", "rating,words,kind,more\n").replace("\n", ",,k,x|y\n")
    log = log.replace("more,,k,x|y\n", "more\n")
    features = {"words": {"kind": "id_list"}, "kind": {}, "more": {"kind": "id_list"}}
    made = recipe(write_source(tmp_path / "raw", interactions=log), interactions__features=features)
    manifest, workspace = prepared(tmp_path, made)
    rows = rows_of(workspace, manifest).values()
    assert {tuple(row["words"]) for row in rows} == {()}
    more = vocabulary(workspace, "more")
    assert {tuple(row["more"]) for row in rows} == {(more["x"], more["y"])}
    assert {row["kind"] for row in rows} == {1}
