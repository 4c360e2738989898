"""Sections of many files: part files, patterns, Hive partitions, kinds, compressions, and their order."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.prepare.test_inputs import rows_of
from tests.data.small_log import INTERACTIONS, prepared, recipe, write_source

HEAD, *LINES = INTERACTIONS.splitlines()


def table(lines, **types):
    """Lines of the small log as a Parquet table; columns are text, or of the types given."""
    rows = [line.split(",") for line in lines]
    named = {name: [row[i] for row in rows] for i, name in enumerate(HEAD.split(","))}
    return pa.table({
        name: pa.array(values, pa.string()).cast(types.get(name, pa.string()))
        for name, values in named.items()
    })


def records(lines):
    names = HEAD.split(",")
    return "".join(json.dumps(dict(zip(names, x.split(","), strict=True))) + "\n" for x in lines)


def compressed(content, ending):
    if ending == ".zst":
        # Two frames, as tools that append write them.
        half = len(content) // 2
        frames = (content[:half], content[half:])
        return b"".join(pa.compress(frame, codec="zstd", asbytes=True) for frame in frames)
    return gzip.compress(content) if ending == ".gz" else content


def write_parts(folder, ending, *, sizes=(5, 3, 4)):
    """Write the small log in parts; names sort in another way than numbers do."""
    folder.mkdir(parents=True)
    names = ["part-0", "part-10", "part-2"]
    first = 0
    for name, size in zip(names, sizes, strict=True):
        lines = LINES[first : first + size]
        first += size
        path = folder / f"{name}{ending}"
        kind = ending.removesuffix(".gz").removesuffix(".zst")
        if kind == ".parquet":
            pq.write_table(table(lines), path)
        else:
            text = records(lines) if kind == ".jsonl" else "\n".join([HEAD, *lines, ""])
            text = text.replace(",", "\t") if kind == ".tsv" else text
            path.write_bytes(compressed(text.encode(), ending[len(kind) :]))
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.crc").touch()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The small log of one CSV file, prepared."""
    folder = tmp_path_factory.mktemp("plain")
    return prepared(folder, recipe(write_source(folder / "raw")))[0]


@pytest.mark.parametrize(
    ("ending", "name"),
    [
        (".csv", "log"),
        (".csv.gz", "log/part-*"),
        (".tsv.zst", "log"),
        (".jsonl", "**/part-*"),
        (".jsonl.gz", "log"),
        (".parquet", "l[o]g"),
    ],
)
def test_part_files_are_read_as_one_file_in_the_order_of_their_paths(tmp_path, plain, ending, name):
    source = write_source(tmp_path / "raw")
    write_parts(source / "log", ending)
    manifest, _ = prepared(tmp_path, recipe(source, interactions__file=name))
    assert manifest.checksums == plain.checksums


def test_items_in_parts_of_json_lines_have_lists_and_numbers_as_they_are_written(tmp_path):
    source = write_source(tmp_path / "raw")
    lines = [
        {"item_id": 10, "genres": ["red", "a|b"], "year": 1990, "title": "\u732b", "x": {"y": 1}},
        {"item_id": 20, "genres": [], "year": 1.5, "title": 0.10},
        {"item_id": 12345678901234567890, "genres": None, "year": None},
        {"item_id": "30", "genres": ["red"]},
        {"item_id": "40", "title": True},
    ]
    (source / "items").mkdir()
    for number, part in enumerate((lines[:3], lines[3:])):
        text = "".join(json.dumps(line) + "\n" for line in part)
        (source / "items" / f"{number}.jsonl").write_text(text)
    items = {"file": "items", "title": "title", "features": {"genres": {"kind": "id_list"}}}
    items["features"]["year"] = {"kind": "numeric", "cuts": [1980]}
    manifest, workspace = prepared(tmp_path, recipe(source, items=items))
    rows = pq.read_table(workspace / "prepared" / "items.parquet").to_pylist()
    titles = {row["item_id"]: row["title"] for row in rows if row["item_id"]}
    assert titles == {
        "10": "\u732b", "20": "0.1", "12345678901234567890": None, "30": None, "40": "true",
    }  # fmt: skip
    assert manifest.table("genres").num_rows == 3
    with pytest.raises(ValueError, match=r"column 'x' \(items.title\) holds STRUCT; expected one"):
        prepared(tmp_path, recipe(source, items={"file": "items", "title": "x"}))


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl.gz"])
def test_folders_of_partitions_are_columns_and_may_be_the_time(tmp_path, ending):
    source = write_source(tmp_path / "raw")
    days = {"2026-11-26": LINES[:5], "2026-11-27": LINES[5:8], "2026-11-28": LINES[8:]}
    for day, lines in days.items():
        write_parts(
            source / "log" / f"date={day}" / "site=a%20b", ending, sizes=(2, 1, len(lines) - 3)
        )
    made = recipe(
        source,
        interactions__file="log",
        interactions__timestamp="date",
        interactions__features={"site": {}, "day": {"column": "date"}},
        split={"strategy": "time", "fractions": [0.4, 0.2, 0.4]},
    )
    manifest, workspace = prepared(tmp_path, made)
    rows = rows_of(workspace, manifest)
    seconds = [rows[number]["timestamp"] for number in range(12)]
    first = 1795651200  # 2026-11-26
    assert seconds == [first] * 5 + [first + 86400] * 3 + [first + 2 * 86400] * 4
    vocabulary = pq.read_table(workspace / "prepared" / "vocab" / "site.parquet").to_pylist()
    assert [line["id"] for line in vocabulary] == ["a b"]


def test_a_partition_with_another_schema_is_named_with_what_differs(tmp_path):
    source = write_source(tmp_path / "raw")
    for number in range(3):
        (source / "log" / f"day={number}").mkdir(parents=True)
    paths = [source / "log" / f"day={number}" / "p.parquet" for number in range(3)]
    pq.write_table(table(LINES[:4], rating=pa.int64()), paths[0])
    pq.write_table(table(LINES[4:8], rating=pa.float64()).append_column("x", [["a"] * 4]), paths[1])
    pq.write_table(table(LINES[8:]).drop(["rating"]), paths[2])
    with pytest.raises(ValueError) as caught:
        prepared(tmp_path, recipe(source, interactions__file="log", items__file="nothing.csv"))
    said = str(caught.value)
    assert (
        f"{paths[1]}: another schema than {paths[0]}: column 'x' is new, column 'rating' is" in said
    )
    assert "DOUBLE instead of INT64" in said
    assert f"{paths[2]}: another schema than {paths[0]}: column 'rating' is missing" in said
    assert "nothing.csv: no such file" in said  # everything at once


def test_a_text_file_with_another_header_is_named(tmp_path):
    source = write_source(tmp_path / "raw")
    write_parts(source / "log", ".csv")
    last = source / "log" / "part-2.csv"
    last.write_text(last.read_text().replace("time,rating", "rating,time", 1))
    with pytest.raises(
        ValueError, match=r"part-2.csv: another schema: its header is user_id, item_id, "
    ):
        prepared(tmp_path, recipe(source, interactions__file="log"))


def test_folders_that_do_not_agree_are_named(tmp_path):
    source = write_source(tmp_path / "raw")
    write_parts(source / "log" / "date=1", ".csv")
    write_parts(source / "log" / "month=1", ".csv")
    with pytest.raises(
        ValueError, match=r"month=1/part-0.csv: its folders name month, those of .*date"
    ):
        prepared(tmp_path, recipe(source, interactions__file="log"))
    write_parts(source / "own" / "rating=1", ".csv")
    with pytest.raises(
        ValueError, match=r"column 'rating' is in the file and in the name of a folder"
    ):
        prepared(tmp_path, recipe(source, interactions__file="own"))


def test_columns_of_folders_above_the_source_are_none_of_the_data(tmp_path, plain):
    source = write_source(tmp_path / "run=7" / "raw")
    write_parts(source / "log" / "site=a", ".csv")
    made = recipe(source, interactions__file="log")
    assert prepared(tmp_path / "a", made)[0].checksums == plain.checksums
    write_parts(source / "twice" / "run=8", ".csv")
    with pytest.raises(
        ValueError, match=r"folders above and below data.source name the same column"
    ):
        prepared(tmp_path / "c", recipe(source, interactions__file="twice"))
    with pytest.raises(ValueError, match="column 'run' .* is missing"):
        prepared(
            tmp_path / "b", recipe(source, interactions__file="log", interactions__user_id="run")
        )


@pytest.mark.parametrize("ending", [".parquet", ".csv.gz", ".jsonl"])
def test_a_bad_row_is_named_with_its_own_file_and_its_row_there(tmp_path, ending):
    source = write_source(tmp_path / "raw")
    write_parts(source / "log", ending)
    bad = [LINES[5], LINES[6].replace("70", "soon"), LINES[7].replace("80", "never")]
    path = source / "log" / f"part-10{ending}"
    if ending == ".parquet":
        pq.write_table(table(bad), path)
    else:
        text = records(bad) if ending == ".jsonl" else "\n".join([HEAD, *bad, ""])
        path.write_bytes(compressed(text.encode(), ".gz" if ending.endswith("gz") else ""))
    with pytest.raises(ValueError) as caught:
        prepared(tmp_path, recipe(source, interactions__file="log"))
    said = str(caught.value)
    assert f"{path}: column 'time': not a time" in said
    assert f"2 rows of {source / 'log'}, first at data row 1 ('soon')" in said


@pytest.mark.parametrize("ending", [".parquet", ".csv.zst", ".jsonl"])
def test_a_broken_part_is_named(tmp_path, ending):
    source = write_source(tmp_path / "raw")
    write_parts(source / "log", ending)
    (source / "log" / f"part-10{ending}").write_bytes(b'{"user_id": "x"\n{' * 3)
    with pytest.raises(ValueError, match=f"part-10{ending}.*|cannot be read"):
        prepared(tmp_path, recipe(source, interactions__file="log"))


def test_line_ends_and_encodings_of_parts_change_nothing(tmp_path, plain):
    source = write_source(tmp_path / "raw")
    write_parts(source / "log" / "site=a", ".csv")
    path = source / "log" / "site=a" / "part-2.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    made = recipe(source, interactions__file="log")
    assert prepared(tmp_path / "a", made)[0].checksums == plain.checksums
    for path in (source / "log").rglob("*.csv"):
        path.write_bytes(path.read_bytes().decode().encode("utf-16"))
    made = recipe(
        source, interactions__file="log", interactions__encoding="utf-16",
        interactions__features={"site": {}},
    )  # fmt: skip
    manifest, _ = prepared(tmp_path / "b", made)
    assert manifest.rows_in == 12 and manifest.table("site").num_rows == 2


def test_atomic_files_of_recbole_are_read_as_they_are(tmp_path):
    source = tmp_path / "raw"
    source.mkdir()
    rows = [
        f"{user}\t{item}\t{3 + (user + item) % 2}\t{100 * user + item}"
        for user in (1, 2)
        for item in range(10, 20)
    ]
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (source / "ml.inter").write_text("\n".join([head, *rows]) + "\n")
    items = [f"{item}\tA film, no. {item}\tDrama War" for item in range(10, 20)]
    head = "item_id:token\tmovie_title:token_seq\tclass:token_seq"
    (source / "ml.item").write_text("\n".join([head, *items]) + "\n")
    made = recipe(
        source,
        interactions__file="ml.inter",
        interactions__timestamp="timestamp",
        items={
            "file": "ml.item",
            "title": "movie_title",
            "features": {"genres": {"column": "class", "kind": "id_list", "separator": " "}},
        },
    )
    manifest, workspace = prepared(tmp_path, made)
    assert manifest.table("genres").num_rows == 3
    titles = pq.read_table(workspace / "prepared" / "items.parquet").column("title").to_pylist()
    assert "A film, no. 12" in titles
