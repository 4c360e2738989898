"""Raw files are found by their literal names and read as they are written: delimiters, quotes, bytes."""

import gzip
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys.schema import local_path
from tests.data.small_log import INTERACTIONS, ITEMS, prepared, recipe, write_source

OTHERS = INTERACTIONS.replace("ann", "wrong")


def users(workspace):
    """The ids of users.parquet, without row 0."""
    table = pq.read_table(workspace / "prepared" / "users.parquet")
    return sorted(filter(None, table["user_id"].to_pylist()))


def items(workspace):
    """The rows of items.parquet by id."""
    rows = pq.read_table(workspace / "prepared" / "items.parquet").to_pylist()
    return {row["item_id"]: row for row in rows}


# Names


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("raw[1]/log.csv", "raw1/log.csv"),
        ("raw/what?.csv", "raw/whatS.csv"),
        ("raw/log*.csv", "raw/log_old.csv"),
        ("raw/{a,b}.csv", "raw/a.csv"),
        ("raw/[!x].csv", "raw/y.csv"),
        ("raw/it's.csv", "raw/its.csv"),
        ("user_id=exp7/log.csv", "log.csv"),
        ("raw/time=5/log.parquet", "raw/log.parquet"),
        ("raw/LOG.CSV", "raw/Log.csv"),
        ("raw/log.TSV.GZ", "raw/log.tsv"),
        ("raw/log.Parquet", "raw/x.parquet"),
    ],
)
def test_file_is_read_by_its_literal_name_and_nothing_of_its_folders(tmp_path, name, beside):
    for place, text in ((beside, OTHERS), (name, INTERACTIONS)):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if place.lower().endswith(".parquet"):
            head, *lines = [line.split(",") for line in text.splitlines()]
            columns = dict(zip(head, zip(*lines, strict=True), strict=True))
            pq.write_table(pa.table({k: list(v) for k, v in columns.items()}), path)
        elif place.lower().endswith((".tsv", ".tsv.gz")):
            content = text.replace(",", "\t").encode()
            path.write_bytes(gzip.compress(content) if place.lower().endswith("gz") else content)
        else:
            path.write_text(text)
    write_source(tmp_path)
    plain, _ = prepared(tmp_path / "plain", recipe(tmp_path))
    if beside != "log.csv":
        manifest, _ = prepared(tmp_path / "made", recipe(tmp_path, interactions__file=name))
        assert manifest.checksums == plain.checksums
    else:
        manifest, workspace = prepared(tmp_path / "made", recipe(tmp_path, interactions__file=name))
        assert users(workspace) == ["ann", "bob", "cid"]


@pytest.mark.parametrize("place", ["ws[1]", "user_id=exp7", "a*b'"])
def test_workspace_and_source_may_be_called_like_patterns(tmp_path, place):
    plain, _ = prepared(tmp_path, recipe(write_source(tmp_path / "raw")))
    source = write_source(tmp_path / place / "raw")
    (source / "log.csv").write_bytes(INTERACTIONS.encode("utf-16"))  # copied into the workspace
    made = recipe(source, interactions__encoding="utf-16")
    assert prepared(tmp_path / place, made)[0].checksums == plain.checksums


def test_workspace_that_the_database_cannot_open_is_named(tmp_path):
    made = recipe(write_source(tmp_path / "raw"))
    with pytest.raises(ValueError, match=r"workspace=.*/a\?/w: a question mark"):
        prepared(tmp_path / "a?", made)
    assert not (tmp_path / "a?" / "w").exists()


def test_a_place_without_files_of_one_kind_is_named_as_what_it_is(tmp_path):
    source = write_source(tmp_path / "raw")
    (source / "log").mkdir()
    with pytest.raises(ValueError, match=r"raw/log: a folder without files; interactions expects"):
        prepared(tmp_path, recipe(source, interactions__file="log"))
    for part in ("part-0.parquet", "part-1.parquet", "_SUCCESS", ".part-0.parquet.crc", "x.crc"):
        (source / "log" / part).write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"raw/log: files of several kinds \(1 .crc, 2 .parquet\); interactions expects files of "
        r"one.*by a pattern, such as folder/\*.parquet",
    ):
        prepared(tmp_path, recipe(source, interactions__file="log"))
    with pytest.raises(ValueError, match=r"x\*.csv: no file matches this pattern; check"):
        prepared(tmp_path, recipe(source, interactions__file="x*.csv"))
    with pytest.raises(ValueError, match=r"log.xls: expected a .parquet, .csv"):
        (source / "log.xls").write_bytes(b"any")
        prepared(tmp_path, recipe(source, interactions__file="log.xls"))
    with pytest.raises(ValueError, match=r"items.file: missing, a file below data.source"):
        prepared(tmp_path, recipe(source, items={"item_id": "item_id"}))


def test_home_is_expanded_in_every_path_and_nothing_else_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert local_path("~/ws", "workspace") == tmp_path / "ws"
    assert local_path("ws/~", "workspace") == tmp_path / "ws" / "~"
    assert local_path(2024, "workspace") == tmp_path / "2024"
    for bad in ("", " ", "a\0b"):
        with pytest.raises(ValueError, match=r"workspace=.*: expected a path"):
            local_path(bad, "workspace")
    with pytest.raises(ValueError, match=r"out=~nobody-of-that-name/x: .*write the path in full"):
        local_path("~nobody-of-that-name/x", "out")


def test_every_path_that_a_job_takes_goes_through_one_function(repository):
    for path in [*(repository / "launch").glob("*.py"), *(repository / "embedding").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "expanduser" not in text and "Path(cfg." not in text, path


# Bytes


def test_binary_parquet_text_is_read_as_utf8(tmp_path):
    source = write_source(tmp_path / "raw")
    plain, _ = prepared(tmp_path / "a", recipe(source))
    lines = [line.split(",") for line in ITEMS.replace("Ten", "Caf\u00e9").splitlines()]
    head, *rows = lines
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    binary = {k: [v.encode() or None for v in values] for k, values in columns.items()}
    binary["genres"] = [v.split(b"|") if v else [] for v in binary["genres"]]
    binary["cover"] = [b"\xff\xd8"] * 5  # that nobody reads
    pq.write_table(pa.table(binary), source / "items.parquet")
    write_source(source, items=ITEMS.replace("Ten", "Caf\u00e9"))
    texts, one = prepared(tmp_path / "b", recipe(source))
    manifest, two = prepared(tmp_path / "c", recipe(source, items__file="items.parquet"))
    assert items(two)["10"]["title"] == "Caf\u00e9" and items(two)["30"]["tags"] == [
        "blue",
        "red",
        "round",
    ]
    assert manifest.items_checksum == texts.items_checksum == plain.items_checksum
    assert [r["title"] for r in items(one).values()] == [r["title"] for r in items(two).values()]


def test_bytes_that_are_no_text_are_refused_with_column_and_row(tmp_path):
    source = write_source(tmp_path / "raw")
    columns = {
        "item_id": [b"10", b"20", b"30", b"40"],
        "title": [b"a", b"\xff", None, "\u00fc".encode("latin-1")],
        "genres": [[b"red"], None, [b"red", b"\xfe"], []],
        "image": ["a.png"] * 4,
        "year": [1990] * 4,
    }
    pq.write_table(pa.table(columns), source / "items.parquet")
    with pytest.raises(ValueError, match=r"2 problems|[3-9] problems") as caught:
        prepared(tmp_path, recipe(source, items__file="items.parquet"))
    message = str(caught.value)
    assert re.search(
        r"items.parquet: column 'title' \(items.title\): bytes that are not UTF-8 text: 2 rows, first "
        r"at data row 1",
        message,
    )
    assert re.search(r"'genres' \(.*\): bytes that are not UTF-8 text: 1 row, .*row 2", message)


# Text files


@pytest.mark.parametrize("section", ["interactions", "items", "users", "pairs"])
def test_every_section_has_a_format_of_its_own(tmp_path, section):
    source = write_source(tmp_path / "raw")
    (source / "users.csv").write_text("user_id,age\nann,30\nbob,\nd\u00e9,40\n", encoding="utf-8")
    (source / "pairs.csv").write_text(
        "anchor,positive\nred,'rot'\nblue,b\u00e9u\n", encoding="utf-8"
    )
    node = {
        "users": {"file": "users.csv", "features": {"age": {}}},
        "pairs": [{"file": "pairs.csv", "perspective": "relation"}],
    }
    plain, _ = prepared(tmp_path / "a", recipe(source, **node))
    file = {"interactions": "log.csv"}.get(section, f"{section}.csv")
    text = (source / file).read_text(encoding="utf-8")
    head, body = text.split("\n", 1)
    (source / file).write_bytes(body.replace(",", ";").encode("latin-1"))
    written = {"delimiter": ";", "encoding": "latin-1", "header": head.split(","), "quote": ""}
    if section == "pairs":
        node["pairs"][0] |= written
    elif section == "users":
        node["users"] |= written
    else:
        node |= {f"{section}__{key}": value for key, value in written.items()}
    assert prepared(tmp_path / "b", recipe(source, **node))[0].checksums == plain.checksums


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("delimiter", "::", r"items.delimiter='::': expected one character"),
        ("quote", "''", r"items.quote=\"''\": expected one character, or '' for no quoting"),
        ("quote", ",", r"items.quote=',': expected one character"),
        ("encoding", "klingon", r"items.encoding='klingon': expected a text encoding"),
        ("encoding", "zip", r"items.encoding='zip': expected a text encoding"),
        ("header", ["item_id", "ITEM_ID"], r"items.header=.*a name is given twice"),
    ],
)
def test_format_that_cannot_be_is_refused_with_its_key(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, recipe(write_source(tmp_path / "raw"), **{f"items__{key}": value}))


def test_text_that_is_not_utf8_says_which_key_names_the_encoding(tmp_path):
    source = write_source(tmp_path / "raw")
    for text in ("b\xf6b", "user_id"):
        content = INTERACTIONS.replace("bob", "b\xf6b").replace("time", "t\xedme")
        (source / "log.csv").write_bytes(content.replace("user_id", text).encode("latin-1"))
        with pytest.raises(ValueError, match=r"log.csv: cannot be read .*interactions.encoding"):
            prepared(tmp_path, recipe(source, interactions__timestamp="t\xedme"))


@pytest.mark.parametrize("compressed", [False, True])
def test_line_ends_of_both_kinds_in_one_file_end_lines(tmp_path, compressed):
    text = ITEMS.replace("Ten", '"Ten, ""X""\r\nsecond"').replace("Forty", '"For\nty"')
    source = write_source(tmp_path / "raw")
    (source / "items.csv").write_bytes(text.encode())
    plain, workspace = prepared(tmp_path / "a", recipe(source))
    assert items(workspace)["10"]["title"] == 'Ten, "X"\r\nsecond'
    mixed = (
        text.replace("2005\n", "2005\r\n").replace("id,title,image,genres,year\n", "\\g").encode()
    )
    mixed = mixed.replace(b"\\g", b"id,title,image,genres,year\r\n")
    name = "items.csv.gz" if compressed else "items.csv"
    (source / name).write_bytes(gzip.compress(mixed) if compressed else mixed)
    assert (
        prepared(tmp_path / "b", recipe(source, items__file=name))[0].checksums == plain.checksums
    )


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(["\n", "\r\n"]), min_size=12, max_size=12))
def test_any_mix_of_line_ends_gives_the_same_data(tmp_path_factory, ends):
    tmp_path = tmp_path_factory.mktemp("mix")
    source = write_source(tmp_path / "raw")
    lines = INTERACTIONS.splitlines()
    text = "".join(line + end for line, end in zip(lines, [*ends, "\n"], strict=True))
    (source / "log.csv").write_bytes(text.encode())
    manifest, workspace = prepared(tmp_path, recipe(source))
    assert manifest.rows_in == 12 and users(workspace) == ["ann", "bob", "cid"]
