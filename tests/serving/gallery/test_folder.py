"""The gallery as a folder: written by an export, opened from a disk in Chromium without a server."""

import base64
import json
import shutil

import pytest

from recsys.errors import UserError
from recsys.export.gallery import GalleryConfig, write_gallery
from recsys.export.script import classic_script
from recsys.serving.recommender import Recommender
from recsys.serving.server.gallery import PAGES
from recsys.serving.shown import Shown


@pytest.fixture(scope="module")
def folder(tiny_bundle, tmp_path_factory):
    """A gallery of five people and all pictures."""
    made = tmp_path_factory.mktemp("folder") / "gallery"
    assert write_gallery(tiny_bundle, made, GalleryConfig(gallery_people=5)) == (5, 120)
    return made


def data(folder, name):
    text = (folder / "data" / f"{name}.js").read_text(encoding="utf-8")
    start = f'TESSERA.take("{name}",'
    assert text.startswith(start) and text.endswith(");\n")
    return json.loads(text[len(start) : -3])


def test_lists_and_neighbours_of_a_folder_are_the_recommenders(folder, tiny_bundle):
    recommender = Recommender.open(tiny_bundle)
    index = data(folder, "index")
    user = index["people"][0]["id"]
    person = data(folder, "person-0")
    own = recommender.recommend(user=user, k=200).items
    assert [item["id"] for item in person["lists"]["own"]] == [item.id for item in own]
    none = recommender.recommend(user=user, k=48, dials={"style": 0}).items
    assert [item["id"] for item in person["lists"]["style:0"]] == [item.id for item in none]
    entry = data(folder, "items-0")[3]
    near = recommender.similar(index["items"][3], by="style", k=6).items
    assert entry["near"]["style"] == [item.id for item in near]
    assert (folder / "pictures" / "3.jpg").read_bytes().startswith(b"\xff\xd8")


def test_the_map_of_a_folder_is_the_bundles(folder, tiny_bundle):
    shown = Shown(tiny_bundle)
    assert shown.map.layouts and data(folder, "index")["map"]["layouts"] == shown.map.layouts
    points = base64.b64decode(data(folder, f"map-layouts-{shown.map.layouts[0]}")["bytes"])
    assert points == shown.map.places(shown.map.layouts[0]).tobytes()
    scores = base64.b64decode(data(folder, "person-0")["taste"]["bytes"])
    assert len(scores) == 4 * 120


def test_a_small_folder_has_the_pictures_of_its_lists_and_names_no_other(tiny_bundle, tmp_path):
    size = GalleryConfig(gallery_people=1, gallery_items=1)
    people, items = write_gallery(tiny_bundle, tmp_path / "small", size)
    index = data(tmp_path / "small", "index")
    assert index["map"]["layouts"] == [] or items == 120
    assert (people, items) == (1, len(index["items"]))
    for entry in data(tmp_path / "small", "items-0"):
        assert set(sum(entry["near"].values(), [])) <= set(index["items"])
        assert set(entry["likers"]["users"]) <= {index["people"][0]["id"]}


def test_a_folder_that_is_no_gallery_is_left_alone(tiny_bundle, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there and is no gallery"):
        write_gallery(tiny_bundle, tmp_path, GalleryConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_script_of_modules_refuses_other_forms_and_circles(tmp_path):
    (tmp_path / "a.js").write_text('import { b as c } from "./b.js";\nexport const a = c + 1;\n')
    (tmp_path / "b.js").write_text("export function b() {}\n")
    script = classic_script(tmp_path, ("a",))
    assert script.index("module_b =") < script.index("module_a =")
    assert "const { b: c } = module_b;" in script and "return { a };" in script
    (tmp_path / "c.js").write_text('export { a } from "./a.js";\n')
    assert "return { a: module_a.a };" in classic_script(tmp_path, ("c",))
    (tmp_path / "b.js").write_text('import { a } from "./a.js";\nexport const b = a;\n')
    with pytest.raises(AssertionError, match="import each other: a > b > a"):
        classic_script(tmp_path, ("a",))
    (tmp_path / "b.js").write_text("export default 1;\n")
    with pytest.raises(AssertionError, match="export default"):
        classic_script(tmp_path, ("a",))
    assert classic_script(PAGES, ("folder", "app"))


def test_the_folder_opens_from_a_disk(folder, chromium, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "a folder")
    index = data(folder, "index")
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, offline=True)
    page = context.new_page()
    page.set_default_timeout(30_000)
    errors, asked = [], []
    page.on("console", lambda said: said.type in ("error", "warning") and errors.append(said.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    user = index["people"][1]["id"]
    page.goto((moved / "index.html").as_uri() + f"#person={user}")
    page.wait_for_selector("#dials label")
    own = [item["id"] for item in data(folder, "person-1")["lists"]["own"]]

    def shown():
        return page.eval_on_selector_all("#grid .tile", "all => all.map(t => t.dataset.id)")

    assert shown() == own[: len(shown())]
    page.wait_for_function("document.querySelector('#grid img').naturalWidth > 1")
    assert not page.locator("#visitor").is_visible()
    # A dial at its end is the list of the export.
    page.locator("#dials input[name=style]").press("Home")
    none = [item["id"] for item in data(folder, "person-1")["lists"]["style:0"]]
    page.wait_for_function(
        "id => document.querySelector('#grid .tile').dataset.id == id", arg=none[0]
    )
    page.get_by_role("button", name="Own weights").click()
    # A picture, what is near, and an artist's pictures.
    page.locator("#grid .open").first.focus()
    page.keyboard.press("Enter")
    page.locator("section[aria-label='Near by style'] img").nth(5).wait_for(state="attached")
    page.locator("#dialog .by a").click()
    page.locator("#marks li").wait_for()
    # Hidden pictures go; words are found in titles.
    page.go_back()
    page.locator("#marks li").wait_for(state="detached")
    page.wait_for_selector("#dials label")
    first = shown()[0]
    page.locator("#grid .hide").first.press("Enter")
    page.wait_for_function("id => !document.querySelector(`#grid [data-id='${id}']`)", arg=first)
    title = page.locator("#grid .caption b").first.inner_text().split(" / ")[0]
    page.locator("#words").fill(title)
    page.keyboard.press("Enter")
    page.get_by_text("nearest first").wait_for()
    assert all(title in text for text in page.locator("#grid .caption b").all_inner_texts())
    page.goto((moved / "index.html").as_uri() + "#view=all")
    page.locator("#grid li[aria-setsize='120'] .open").first.wait_for()
    # The map, with the person's taste.
    page.get_by_role("link", name="Map").click()
    page.locator("#map-legend li, #map-legend span").first.wait_for()  # the first colours are there
    page.goto((moved / "map.html").as_uri() + f"#colour=taste&person={user}")
    page.locator("#map-legend", has_text=user).wait_for()
    page.locator("#map").focus()
    page.keyboard.press("Enter")
    page.locator("#dialog h2").wait_for()
    context.close()
    assert not errors
    assert all(url.startswith("file:") for url in asked)
