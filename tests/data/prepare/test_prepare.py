"""prepare: numbering, splits, features, and every kind of bad input with its sentence."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys.files import sha256_of
from recsys.schema import read_manifest
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source


def rows_of(workspace, manifest, split):
    tables = [pq.read_table(workspace / "prepared" / f) for f in manifest.splits[split].files]
    return pa.concat_tables(tables).to_pylist()


def vocabulary(workspace, table):
    lines = pq.read_table(workspace / "prepared" / "vocab" / f"{table}.parquet").to_pylist()
    return {line["id"]: line["row"] for line in lines}


def test_rows_are_split_by_each_users_time_with_ties_by_item(tmp_path):
    manifest, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    split_of = {
        row["row_id"]: name
        for name in manifest.splits
        for row in rows_of(workspace, manifest, name)
    }
    # ann: times 100, 200 (item 20 before 30), 200, 300; bob and cid in file order.
    expected = ["train", "train", "valid", "test"] * 3
    assert [split_of[i] for i in range(12)] == expected
    assert manifest.rows_in == 12 == sum(s.num_rows for s in manifest.splits.values())


def test_labels_follow_the_rule(tmp_path):
    manifest, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    labels = {
        row["row_id"]: row["label"]
        for name in manifest.splits
        for row in rows_of(workspace, manifest, name)
    }
    assert [labels[i] for i in range(12)] == [1, 0, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1]
    assert manifest.splits["train"].num_positives == 4


def test_items_cover_the_catalogue_and_row_zero_is_unknown(tmp_path):
    manifest, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    items = pq.read_table(workspace / "prepared" / "items.parquet").to_pylist()
    assert manifest.num_item_rows == 6 and len(items) == 6
    assert items[0] == dict.fromkeys(items[0]) | {"item_row": 0}
    by_id = {item["item_id"]: item for item in items[1:]}
    assert by_id["30"]["image"] is None and by_id["30"]["text"] == "Thirty. blue|round|red"
    assert by_id["30"]["tags"] == ["blue", "red", "round"]
    counts = np.load(workspace / "prepared" / "items" / "train_count.npy")
    assert counts[by_id["50"]["item_row"]] == 0 and counts.sum() == 6
    digest = hashlib.sha256(b"".join(i["item_id"].encode() + b"\0" for i in items[1:]))
    assert manifest.items_checksum == digest.hexdigest()


def test_column_checksums_are_those_of_texts_and_pictures_alone(tmp_path):
    source = write_source(tmp_path / "raw")
    manifest, workspace = prepared(tmp_path, recipe(source))
    items = pq.read_table(workspace / "prepared" / "items.parquet").to_pylist()
    texts = hashlib.sha256("".join(f"{i['text'] or ''}\0" for i in items).encode()).hexdigest()
    assert manifest.column_checksums["text"] == texts
    file = next(source.glob("items*"))
    file.write_text(file.read_text().replace("Thirty", "Three tens"))
    changed, _ = prepared(tmp_path, recipe(source))
    assert changed.column_checksums["text"] != texts
    assert changed.column_checksums.get("image") == manifest.column_checksums.get("image")
    assert changed.items_checksum == manifest.items_checksum
    # What a model reads beside its feature tables is the same.
    assert changed.identity == manifest.identity != ""


def test_a_longer_log_has_another_identity(tmp_path):
    source = write_source(tmp_path / "raw")
    before, _ = prepared(tmp_path, recipe(source))
    file = next(source.glob("log*"))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[-1]]) + "\n")
    after, _ = prepared(tmp_path, recipe(source))
    assert after.items_checksum == before.items_checksum
    assert after.identity != before.identity


def test_item_features_are_arrays_by_row(tmp_path):
    manifest, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    rows, genres = vocabulary(workspace, "item_id"), vocabulary(workspace, "genres")
    folder = workspace / "prepared" / "items"
    values, offsets = np.load(folder / "genres.values.npy"), np.load(folder / "genres.offsets.npy")
    of_30 = values[offsets[rows["30"]] : offsets[rows["30"] + 0] + 3]
    assert of_30.tolist() == [genres["blue"], genres["round"], genres["red"]]
    assert offsets[rows["40"]] == offsets[rows["40"] + 1]
    # Buckets: 0 unknown, 1 up to 1980, 2 up to 2000, 3 beyond.
    year = np.load(folder / "year.values.npy")
    assert [year[rows[i]] for i in ("10", "20", "30", "40")] == [2, 3, 0, 1]
    assert manifest.table("year").num_rows == 4


def test_id_below_min_count_maps_to_row_zero(tmp_path):
    features = {"main": {"column": "title"}, "genre": {"column": "genres", "min_count": 2}}
    made = recipe(write_source(tmp_path / "raw"), items__features=features)
    manifest, workspace = prepared(tmp_path, made)
    assert manifest.table("genre").num_rows == 1
    assert np.load(workspace / "prepared" / "items" / "genre.values.npy").tolist() == [0] * 6
    assert manifest.table("main").num_rows == 6


def test_hashed_table_has_the_rows_asked_for(tmp_path):
    features = {"title": {"hash_rows": 7}}
    made = recipe(write_source(tmp_path / "raw"), items__features=features)
    manifest, workspace = prepared(tmp_path, made)
    values = np.load(workspace / "prepared" / "items" / "title.values.npy")
    assert manifest.table("title").num_rows == 7 and values[0] == 0
    assert set(values[1:]) <= set(range(1, 7))


def test_time_split_has_one_clock(tmp_path):
    made = recipe(
        write_source(tmp_path / "raw"),
        split={"strategy": "time", "fractions": [0.5, 0.25, 0.25]},
    )
    manifest, _ = prepared(tmp_path, made)
    train, valid, test = (manifest.splits[n] for n in ("train", "valid", "test"))
    assert train.timestamp_max < valid.timestamp_min and valid.timestamp_max < test.timestamp_min


def test_user_known_from_test_alone_is_unknown(tmp_path):
    log = INTERACTIONS + "zoe,10,999,5\n"
    made = recipe(
        write_source(tmp_path / "raw", interactions=log),
        split={"strategy": "time", "fractions": [0.5, 0.25, 0.25]},
    )
    manifest, workspace = prepared(tmp_path, made)
    assert "zoe" not in vocabulary(workspace, "user_id")
    last = [r for r in rows_of(workspace, manifest, "test") if r["row_id"] == 12]
    assert last[0]["user_row"] == 0 and last[0]["history_end"] == 0


def test_preparing_again_gives_the_same_bytes_for_any_number_of_threads(tmp_path):
    from recsys.data.prepare.pipeline import prepare

    made = recipe(write_source(tmp_path / "raw"))
    first = prepare(made, tmp_path / "a", memory_limit="500MB", threads=1)
    second = prepare(made, tmp_path / "b", memory_limit="500MB", threads=2)
    assert first.checksums == second.checksums and len(first.checksums) > 8
    path = tmp_path / "a" / "prepared" / "items.parquet"
    assert first.checksums["items.parquet"] == sha256_of(path)


def test_manifest_round_trips(tmp_path):
    manifest, workspace = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    read = read_manifest(workspace)
    assert json.dumps(read.recipe) == json.dumps(manifest.recipe)
    assert read.splits == manifest.splits and read.features == manifest.features


def test_given_split_reads_three_files_without_users_or_items(tmp_path):
    source = tmp_path / "raw"
    source.mkdir()
    for name, text in (
        ("train", "label,site,price\n1,a,1\n0,b,2\n1,a,3\n0,c,4\n"),
        ("valid", "label,site,price\n1,a,2.5\n"),
        ("test", "label,site,price\n0,new,\n"),
    ):
        (source / f"{name}.csv").write_text(text)
    features = {"site": {}, "price": {"kind": "numeric", "quantiles": 2}}
    made = recipe(
        source,
        items=None,
        interactions={
            "files": {n: f"{n}.csv" for n in ("train", "valid", "test")},
            "label": "label",
            "features": features,
        },
        split={"strategy": "given"},
        history={"max_length": 0, "recent_length": 0},
    )
    manifest, workspace = prepared(tmp_path, made)
    assert [s.num_rows for s in manifest.splits.values()] == [4, 1, 1]
    assert manifest.num_user_rows == manifest.num_item_rows == 0 and manifest.history is None
    (row,) = rows_of(workspace, manifest, "test")
    # A value that training has not seen, and a missing number, are row 0.
    assert row["site"] == 0 and row["price"] == 0 and row["row_id"] == 5


BAD_LOGS = {
    "missing column": (
        INTERACTIONS.replace("rating", "stars"),
        {},
        r"log.csv: column 'rating' \(interactions.label\) is missing; the file has user_id",
    ),
    "wrong type": (
        INTERACTIONS.replace("bob,20,50,4", "bob,20,50,four"),
        {},
        r"column 'rating': not a number: 1 row, first at data row 4 \('four'\)",
    ),
    "bad time": (
        INTERACTIONS.replace("cid,40,10,4", "cid,40,soon,4"),
        {},
        r"column 'time': not a time in whole seconds: expected seconds since 1970, or a date .*: "
        r"1 row, first at data row 8 \('soon'\)",
    ),
    "null id": (
        INTERACTIONS.replace("ann,10,100", ",10,100"),
        {},
        r"column 'user_id': null id: 1 row, first at data row 0",
    ),
    "unknown item": (
        INTERACTIONS.replace("cid,30,40", "cid,77,40").replace("cid,20,30", "cid,78,30"),
        {},
        r"item is not in items.csv .*: 2 rows, first at data row 10 \('78'\)",
    ),
    "label other than 0/1": (
        INTERACTIONS,
        {"interactions__label": "rating"},
        r"column 'rating': label other than 0/1 .*: 10 rows, first at data row 0 \('5'\)",
    ),
    "empty split": (
        INTERACTIONS,
        {"split": {"strategy": "time", "fractions": [1.0, 0.0, 0.0]}},
        r"split 'valid' is empty with split.strategy=time",
    ),
    "no rows": ("user_id,item_id,time,rating\n", {}, r"log.csv: no rows"),
}


@pytest.mark.parametrize("case", BAD_LOGS)
def test_bad_log_is_refused_with_its_sentence_and_leaves_nothing(tmp_path, case):
    log, changes, message = BAD_LOGS[case]
    source = write_source(tmp_path / "raw", interactions=log)
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, recipe(source, **changes))
    assert not (tmp_path / "w").exists()


def test_duplicate_item_id_is_refused(tmp_path):
    source = write_source(tmp_path / "raw", items=ITEMS + "20,Again,x.png,,\n")
    with pytest.raises(ValueError, match=r"column 'item_id': duplicate id: 1 id, .*row 1 \('20'\)"):
        prepared(tmp_path, recipe(source))


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "sub/../../x.png"])
def test_picture_path_that_leaves_the_root_is_refused(tmp_path, path):
    source = write_source(tmp_path / "raw", items=ITEMS.replace("b.png", path))
    with pytest.raises(ValueError, match="picture path leaves items.image_root='.': 1 row"):
        prepared(tmp_path, recipe(source))


def test_all_problems_are_reported_at_once(tmp_path):
    log = INTERACTIONS.replace("bob,20,50,4", "bob,20,x,four").replace("ann,10,100", ",10,100")
    source = write_source(tmp_path / "raw", interactions=log, items=ITEMS + "20,Again,x.png,,\n")
    with pytest.raises(ValueError) as caught:
        prepared(tmp_path, recipe(source))
    text = str(caught.value)
    assert text.startswith("4 problems with the input data:")
    for part in ("null id", "not a time", "not a number", "duplicate id"):
        assert part in text


def test_truncated_parquet_is_named(tmp_path):
    source = write_source(tmp_path / "raw")
    whole = pa.table({"user_id": ["a"] * 500, "item_id": ["10"] * 500})
    pq.write_table(whole, source / "log.parquet")
    content = (source / "log.parquet").read_bytes()
    (source / "log.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"log.parquet: cannot be read"):
        prepared(tmp_path, recipe(source, interactions__file="log.parquet"))


def test_missing_file_is_named(tmp_path):
    source = write_source(tmp_path / "raw")
    with pytest.raises(ValueError, match=r"other.csv: no such file; check data.source"):
        prepared(tmp_path, recipe(source, interactions__file="other.csv"))


def test_failed_prepare_keeps_the_earlier_result(tmp_path):
    source = write_source(tmp_path / "raw")
    manifest, workspace = prepared(tmp_path, recipe(source))
    write_source(source, interactions=INTERACTIONS.replace("ann,10,100", ",10,100"))
    with pytest.raises(ValueError, match="null id"):
        prepared(tmp_path, recipe(source))
    assert read_manifest(workspace).checksums == manifest.checksums


def test_unknown_items_can_be_dropped_and_are_counted(tmp_path):
    log = INTERACTIONS.replace("cid,30,40", "cid,77,40")
    source = write_source(tmp_path / "raw", interactions=log)
    manifest, _ = prepared(tmp_path, recipe(source, interactions__unknown_items="drop"))
    assert manifest.rows_dropped == {"unknown item": 1}
    assert manifest.rows_in == 12 == sum(s.num_rows for s in manifest.splits.values()) + 1


def test_unknown_recipe_key_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.interactions.lable: unknown key; expected one of"):
        recipe(tmp_path, interactions__lable="rating")


def test_contradicting_recipe_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="interactions.timestamp: missing, split.strategy=per_user"
    ):
        prepared(tmp_path, recipe(write_source(tmp_path / "raw"), interactions__timestamp=None))


def test_command_prints_one_sentence_and_fails(tmp_path, job):
    source = write_source(tmp_path / "raw")
    done = job("prepare", "data=movielens", f"data.source={source}", f"workspace={tmp_path / 'w'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ratings.csv: no such file" in done.stderr


@pytest.mark.slow
def test_real_movielens_prepares_as_documented(tmp_path, job, real_data):
    done = job(
        "prepare",
        "data=movielens",
        f"data.source={real_data / 'movielens'}",
        f"workspace={tmp_path / 'w'}",
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "w")
    assert manifest.rows_in == 100_836 and manifest.num_item_rows == 9_743
    assert manifest.splits["train"].num_rows == 80_419
