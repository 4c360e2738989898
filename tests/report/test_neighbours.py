"""The page of nearest neighbours: the real command, and what its page, sheet and JSON say."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from embedding.features.catalogue import Catalogue
from embedding.features.queries import rows_of, spread_rows
from embedding.features.store import FeatureTable
from launch.neighbours import KEYS
from launch.neighbours import job as neighbours
from recsys.job import typed_arguments
from recsys.report import sheet
from recsys.report.items import Item
from recsys.report.neighbour_answers import Answer, known_marks, neighbour, summarise
from recsys.report.neighbours import write_neighbours
from recsys.report.sheet import draw_sheet
from recsys.schema import Manifest, read_manifest, write_manifest
from tests.feature_tables import write_table

ARTISTS, CONTENTS = ("Ada", "Ben", "Cleo"), ("cat", "dog", "fox", "owl")
HOSTILE = "<script>alert('x')</script> & \"quotes\""
NUM_ITEMS = len(ARTISTS) * len(CONTENTS)
NO_PICTURE = 5


def one_hot(indices, width, rng):
    """A row of zeros, then a direction of its own for each index, a little shaken."""
    vectors = np.eye(width)[indices] + rng.normal(scale=0.05, size=(len(indices), width))
    return np.vstack([np.zeros(width), vectors]).astype(np.float16)


def write_world(workspace, rng, *, pictures=True, artists=True):
    """Every artist draws every content; style tells the artist, semantics the content."""
    pairs = [(artist, content) for content in CONTENTS for artist in ARTISTS]
    (workspace / "images").mkdir(parents=True)
    (workspace / "prepared").mkdir()
    for index in range(NUM_ITEMS):
        Image.new("RGB", (30, 40), (20 * index, 90, 120)).save(
            workspace / "images" / f"{index}.png"
        )
    titles = [f"{content} by {artist}" for artist, content in pairs]
    titles[0] = HOSTILE
    rows = {
        "item_row": range(NUM_ITEMS + 1),
        "item_id": [None, *(f"i{index}" for index in range(NUM_ITEMS))],
        "title": [None, *titles],
        "artist": [None, *(artist if artists else None for artist, _ in pairs)],
        "content": [None, *(content if artists else None for _, content in pairs)],
        "image": [None, *(f"{index}.png" if pictures else None for index in range(NUM_ITEMS))],
        "tags": [None, *([content, "animal"] for _, content in pairs)],
    }
    text = pa.string()
    kinds = [pa.int64(), text, text, text, text, text, pa.list_(text)]
    columns = {n: pa.array(v, k) for (n, v), k in zip(rows.items(), kinds, strict=True)}
    pq.write_table(pa.table(columns), workspace / "prepared" / "items.parquet", row_group_size=5)
    write_manifest(
        workspace / "prepared",
        Manifest(
            name="tiny",
            tables=(),
            features=(),
            splits={},
            num_user_rows=0,
            num_item_rows=NUM_ITEMS + 1,
            has_images=pictures,
            has_texts=True,
            image_root=str(workspace / "images") if pictures else None,
            items_checksum="c",
            recipe={"items": {"artist": "a", "content": "c"} if artists else {}},
        ),
    )
    by_content = np.repeat(np.arange(len(CONTENTS)), len(ARTISTS))
    by_artist = np.tile(np.arange(len(ARTISTS)), len(CONTENTS))
    write_table(workspace / "features" / "text", rng.normal(size=(NUM_ITEMS + 1, 6)))
    if pictures:
        semantic, style = one_hot(by_content, 4, rng), one_hot(by_artist, 3, rng)
        for vectors in (semantic, style):
            vectors[1 + NO_PICTURE] = 0
        write_table(workspace / "features" / "semantic", semantic)
        write_table(workspace / "features" / "style", style)
        (workspace / "images" / f"{NO_PICTURE}.png").unlink()
    return workspace


@pytest.fixture
def world(tmp_path, rng):
    return write_world(tmp_path / "w", rng)


class Texts(HTMLParser):
    """What a reader of a page sees, and what the page would load."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags, self.sources = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def run(repository, capsys):
    """Run the job here, with the configuration a user's arguments give; return what it says."""

    def here(workspace, *arguments):
        folder = str(repository / "configs")
        with initialize_config_dir(version_base=None, config_dir=folder):
            given = typed_arguments([f"workspace={workspace}", *arguments], KEYS)
            neighbours(compose("neighbours", overrides=given))
        return capsys.readouterr().out

    return here


def read_json(workspace):
    return json.loads((workspace / "neighbours" / "neighbours.json").read_text(encoding="utf-8"))


def test_style_finds_the_hand_and_semantics_the_content(world, job):
    """As a user types it, from another folder."""
    done = job("neighbours", "data=demo", f"workspace={world}", "k=2", "num_queries=12")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nearest by style: 22 shown, same artist 100%, same content 0%" in done.stdout
    assert (
        "results:" in done.stdout
        and f"open {world / 'neighbours' / 'neighbours.html'}" in done.stdout
    )
    failed = job("neighbours", "data=demo", f"workspace={world}", "items=[zebra]")
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith(
        "error: items: 'zeb"
    )
    found = read_json(world)
    assert found["summary"]["semantic"]["content"] > 0.9
    assert found["summary"]["semantic"]["artist"] == 0
    asked = {query["item_id"]: query for query in found["queries"]}
    assert set(asked) == {f"i{index}" for index in range(NUM_ITEMS)} - {f"i{NO_PICTURE}"}
    for query in asked.values():
        assert list(query["neighbours"]) == ["semantic", "style", "text"]
        for name, group in query["neighbours"].items():
            alike = [near["similarity"] for near in group]
            assert len(group) == 2 and alike == sorted(alike, reverse=True)
            ids = {near["item_id"] for near in group}
            assert query["item_id"] not in ids
            assert name == "text" or f"i{NO_PICTURE}" not in ids
            for near in group:
                assert near["same_artist"] == (near["artist"] == query["artist"])
                assert near["shared_tags"] == (2 if near["content"] == query["content"] else 1)
    assert {p.name for p in (world / "neighbours").iterdir()} == {
        "sheet.png",
        "neighbours.html",
        "neighbours.json",
    }
    assert not list(world.glob(".neighbours*"))
    with Image.open(world / "neighbours" / "sheet.png") as picture:
        assert picture.width == 1400 and 1500 < picture.height < 4000


def test_the_page_is_whole_escaped_and_loads_nothing(world, run):
    run(world, f"items=[i0,i{NO_PICTURE}]", "k=3")
    content = (world / "neighbours" / "neighbours.html").read_text(encoding="utf-8")
    page = Texts(content)
    assert HOSTILE in page.texts and "script" not in page.tags
    assert "http:" not in content.replace("http-equiv", "") and "https:" not in content
    assert page.sources and all(s.startswith("data:image/jpeg;base64,") for s in page.sources)
    for source in page.sources:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
            assert picture.format == "JPEG" and max(picture.size) <= 336
    assert "no picture" in page.texts and "It has no vector of this kind." in page.texts
    assert "prefers-color-scheme:dark" in content


def test_a_data_set_without_pictures_gives_a_page_of_titles(tmp_path, rng, run):
    workspace = write_world(tmp_path / "w", rng, pictures=False, artists=False)
    said = run(workspace, "data=anime", "items=[i3]", "k=4")
    assert "Left out: semantic and style (the data set has no pictures)." in said
    names = {p.name for p in (workspace / "neighbours").iterdir()}
    assert names == {"neighbours.html", "neighbours.json"}
    page = Texts((workspace / "neighbours" / "neighbours.html").read_text(encoding="utf-8"))
    assert "img" not in page.tags
    (query,) = read_json(workspace)["queries"]
    for near in query["neighbours"]["text"]:
        assert near["title"] in page.texts and f"{near['similarity']:.2f}" in page.texts
        assert not near["same_artist"] and not near["same_content"]


def test_excluded_content_leaves_the_hand(world, run):
    run(world, "items=[i0]", "k=3", "exclude_same=content")
    (query,) = read_json(world)["queries"]
    assert all(n["content"] != "cat" for group in query["neighbours"].values() for n in group)
    assert {n["artist"] for n in query["neighbours"]["style"]} == {"Ada"}
    page = Texts((world / "neighbours" / "neighbours.html").read_text(encoding="utf-8"))
    assert any("Items of the same content are left out." in text for text in page.texts)
    assert "same content" not in page.texts


def test_a_request_that_cannot_be_met_says_why_and_leaves_the_old_page(world, run):
    run(world, "items=[i1]")
    before = read_json(world)
    for arguments, expected in (
        (["items=[i1,zebra,99]"], r"items: 'zebra', '99': not in .*such as 'i0', 'i1'"),
        (["k=12"], "k=12: expected 1 to 11; .* has 12 items"),
        (["k=0", "num_queries=0"], r"num_queries=0: expected 1 or more\n.*k=0: expected 1 or"),
        (["exclude_same=mood"], "exclude_same='mood': expected none, artist or content"),
        (["sheet_width=300"], "sheet_width=300: leaves .* smaller k"),
        (["k=many"], "configuration: k: 'many' does not fit"),
    ):
        with pytest.raises(ValueError, match=expected):
            run(world, *arguments)
    assert read_json(world) == before and not list(world.glob(".neighbours*"))


def test_a_page_that_fails_half_way_leaves_the_old_one(world, run, monkeypatch):
    run(world, "items=[i1]")
    before = read_json(world)

    def fail(**_):
        raise OSError("disk full")

    monkeypatch.setattr("launch.neighbours.draw_sheet", fail)
    with pytest.raises(OSError, match="disk full"):
        run(world, "items=[i2]")
    assert read_json(world) == before and not list(world.glob(".neighbours*"))


def test_no_features_say_to_run_embed_and_some_are_enough(tmp_path, rng, run):
    workspace = write_world(tmp_path / "w", rng, artists=False)
    (workspace / "features" / "text" / "manifest.json").unlink()
    assert "Left out: text (not embedded yet)." in run(workspace, "k=2")
    assert read_json(workspace)["summary"]["style"]["artist"] is None
    with pytest.raises(ValueError, match="the recipe does not map items.artist"):
        run(workspace, "exclude_same=artist")
    (workspace / "features").rename(workspace / "elsewhere")
    with pytest.raises(ValueError, match="no features here; run launch/embed.py"):
        run(workspace)
    text = workspace / "features" / "text"
    write_table(text, np.ones((NUM_ITEMS + 1, 3)), items_checksum="other")
    with pytest.raises(ValueError, match="made for other items"):
        run(workspace)


@pytest.mark.slow
def test_the_drawn_world_from_its_raw_files(tmp_path, rng, job):
    """demo, prepare, neighbours; under torchrun one of two processes does it."""
    base = f"workspace={tmp_path}"
    sizes = ["world.num_items=60", "world.num_users=20", "world.num_exposures=300"]
    for name, arguments in (("demo", ["processes=1", *sizes]), ("prepare", ["data=demo"])):
        done = job(name, base, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    manifest = read_manifest(tmp_path)
    for name in ("semantic", "style", "text"):
        vectors = rng.normal(size=(manifest.num_item_rows, 8))
        vectors[0] = 0
        write_table(tmp_path / "features" / name, vectors, items_checksum=manifest.items_checksum)
    done = job("neighbours", "data=demo", base, "items=[i00007,i00012]", ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("results:") == 1
    found = read_json(tmp_path)
    assert [query["item_id"] for query in found["queries"]] == ["i00007", "i00012"]
    assert (tmp_path / "neighbours" / "sheet.png").is_file()


# ---------------------------------------------------------------------------- the items asked about


def test_a_sample_is_seeded_and_spread_over_artists_and_contents(world):
    catalogue = Catalogue(world / "prepared")
    tables = {
        name: FeatureTable(world / "features" / name) for name in ("semantic", "style", "text")
    }
    for seed in range(5):
        rows = spread_rows(catalogue, tables, 3, seed)
        assert len(set(catalogue.column("artist", sorted(rows)))) == 3
        assert len(set(catalogue.column("content", sorted(rows)))) == 3
        assert 1 + NO_PICTURE not in rows and 0 not in rows
        assert rows == spread_rows(catalogue, tables, 3, seed)
    assert len({tuple(spread_rows(catalogue, tables, 3, seed)) for seed in range(5)}) > 1
    assert sorted(spread_rows(catalogue, tables, 99, 0)) == sorted(
        set(range(1, NUM_ITEMS + 1)) - {1 + NO_PICTURE}
    )


def test_items_are_found_in_the_order_asked_across_row_groups(world, monkeypatch):
    monkeypatch.setattr("embedding.features.queries.PIECE_ROWS", 4)
    assert rows_of(Catalogue(world / "prepared"), ["i11", "i0", "i4"]) == [12, 1, 5]


# ---------------------------------------------------------------------------- what is said


def item(item_id, **known):
    return Item(item_id=item_id, **known)


def answer(asked, *others, name="style"):
    return Answer(item=asked, groups={name: [neighbour(asked, other, 0.5) for other in others]})


def test_the_unknown_is_shared_by_none():
    near = neighbour(item("a"), item("b"), 0.5)
    assert not near.same_artist and not near.same_content and near.shared_tags == 0


def test_shares_count_only_where_the_item_asked_about_is_known():
    answers = [
        answer(
            item("a", artist="A", tags=("x", "y")), item("b", artist="A"), item("c", tags=("x",))
        ),
        answer(item("d"), item("e", artist="A")),
    ]
    assert summarise(answers)["style"] == {
        "neighbours": 3,
        "artist": 0.5,
        "content": None,
        "tags": 0.25,
    }
    assert known_marks(answers) == ["artist", "tags"]
    assert known_marks(answers, "artist") == ["tags"]


def test_every_text_of_the_data_set_is_escaped(tmp_path):
    known = {"title": HOSTILE, "artist": HOSTILE, "content": HOSTILE, "tags": (HOSTILE,)}
    asked = item(HOSTILE, **known)
    write_neighbours(
        tmp_path,
        title=HOSTILE,
        notes=[HOSTILE],
        answers=[answer(asked, item("b", **known), item("c", title="x" * 10_000))],
        marks=["artist", "content", "tags"],
        settings={},
    )
    content = (tmp_path / "neighbours.html").read_text(encoding="utf-8")
    page = Texts(content)
    assert "<script" not in content and set(page.tags) <= {
        *("html", "meta", "title", "style", "main", "h1", "p", "span", "div", "table", "tr", "th"),
        *("td", "section", "h2", "h3", "small", "b", "ol", "li"),
    }
    assert len(content) < 20_000


def test_a_sheet_grows_with_its_rows_and_keeps_its_width():
    asked = item("a", title="a long title of many words " * 5, artist="A")
    picture = Image.new("RGB", (40, 40), (200, 30, 40))
    answers = [answer(asked, item("b", picture=picture), item("c"))] * 30
    drawn = draw_sheet(title="t", notes=["n"], answers=answers, marks=["artist"], width=900)
    one = draw_sheet(title="t", notes=["n"], answers=answers[:1], marks=["artist"], width=900)
    assert drawn.width == one.width == 900
    assert drawn.height > 20 * (one.height - 150)
    colours = {colour for _, colour in drawn.getcolors(1 << 20)}
    assert (200, 30, 40) in colours


def test_a_title_no_font_has_letters_for_gives_way_to_the_id(monkeypatch):
    monkeypatch.setattr(sheet, "_wide_fonts", list)
    cat = item("i7", title="\u732b")
    assert sheet._shown(cat.name, cat) == "i7"
    assert sheet._shown("Stra\u00dfe \u0416", cat) == "Stra\u00dfe \u0416"


def test_text_is_cut_to_its_width():
    font = sheet._font("x", 12, False)
    for text in ("short", "a title that is far too long for its place", "x" * 300):
        lines = sheet._wrapped(text, 12, 80, 2, bold=False)
        assert 1 <= len(lines) <= 2
        assert all(font.getlength(line) <= 80 for line in lines)
    assert sheet._wrapped("one two", 12, 300, 2, bold=False) == ["one two"]
