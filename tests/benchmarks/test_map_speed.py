"""Frames a second of the gallery's map: 100,000 points at 1280x800, without a graphics processor.

    python -m pytest tests/benchmarks/test_map_speed.py -m bench -s

The pages are the real ones; the arrays are drawn here and answered within the browser, so that nothing
but the page is measured. It is panned by keys while one layout becomes another.
"""

import json
import re
import shutil

import numpy as np
import pytest

from recsys.serving.server.gallery import MEDIA_TYPES, PAGE_HEADERS, PAGES

NUM_ITEMS = 100_000
WIDTH, HEIGHT = 1280, 800
LEAST_FRAMES = 50
SECONDS = 8
ADDRESS = "http://map.test"
FLAGS = {
    "Chromium's own choice": ["--no-sandbox", "--enable-unsafe-swiftshader"],
    "SwiftShader": ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
}
"""Without a graphics processor Chromium puts the page together by itself; told to, by SwiftShader."""
MOVE = """async (seconds) => {
  const canvas = document.getElementById("map");
  const layouts = ["style", "text", "semantic"];
  const keys = ["ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"];
  const times = [];
  const end = performance.now() + 1000 * seconds;
  let turn = 0;
  const pan = setInterval(() => {
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: keys[turn % 4] }));
    const layout = layouts[turn / 8 % 3 | 0];
    if (turn++ % 8 === 0) document.querySelector(`#map-layouts [value=${layout}]`).click();
  }, 150);
  await new Promise((resolve) => {
    const count = (now) => {
      times.push(now);
      if (now < end) requestAnimationFrame(count);
      else resolve();
    };
    requestAnimationFrame(count);
  });
  clearInterval(pan);
  return times;
}"""
"""Pan by a key every 150 ms, each of which glides for 220 ms, and morph anew every 1.2 s."""

pytestmark = [pytest.mark.bench, pytest.mark.browser]


@pytest.fixture(scope="module")
def answers():
    """Bytes and type of every address of the page, by path."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 60, NUM_ITEMS)
    found = {f"/gallery/{p.name}": (p.read_bytes(), MEDIA_TYPES[p.suffix]) for p in PAGES.iterdir()}
    names = ["semantic", "style", "text"]
    for name in names:
        centres = rng.uniform(0.1, 0.9, (60, 2))
        places = centres[group] + rng.normal(0, 0.03, (NUM_ITEMS, 2))
        content = (places.clip(0, 1) * 65_534).astype("<u2").tobytes()
        found[f"/v1/map/drawn/layouts/{name}"] = content, "application/octet-stream"
    members = np.where(group < 12, 1 << group.clip(0, 12), 0).astype("<u2")
    found["/v1/map/drawn/groups/artist"] = members.tobytes(), "application/octet-stream"
    groups = [{"name": f"Artist {i}", "count": int((group == i).sum())} for i in range(12)]
    card = {"version": "drawn", "items": NUM_ITEMS, "layouts": names, "groups": {"artist": groups}}
    found["/v1/map"] = json.dumps(card).encode(), "application/json"
    return found


def answer(route, answers):
    path = re.sub(r"[?#].*", "", route.request.url.removeprefix(ADDRESS))
    if path.endswith("/items"):
        rows = re.findall(r"\d+", route.request.url.partition("rows=")[2])
        shown = {"title": None, "artist": None, "tags": [], "has_picture": False}
        body = json.dumps({"version": "drawn", "items": [{"id": row, **shown} for row in rows]})
        return route.fulfill(body=body, content_type="application/json")
    path = "/gallery/masked.svg" if path.endswith("/picture") else path
    content, kind = answers[path]
    return route.fulfill(body=content, headers={**PAGE_HEADERS, "Content-Type": kind})


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("drawn", ["processor", "webgl"])
def test_a_map_of_a_hundred_thousand_points_moves_and_morphs(answers, drawn, flags):
    """As people see it, at fifty frames a second; the other combinations are measured alone."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS[flags])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        errors = []
        page.on("console", lambda said: said.type == "error" and errors.append(said.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.route("**/*", lambda route: answer(route, answers))
        page.goto(f"{ADDRESS}/gallery/map.html#drawn={drawn}")
        page.locator("#map-message").wait_for(state="hidden")
        for name in ("style", "text", "semantic"):  # loaded and drawn once before they are measured
            page.locator(f"#map-layouts [value={name}]").click()
            page.wait_for_timeout(1500)
        times = np.array(page.evaluate(MOVE, SECONDS))
        browser.close()
    gaps = np.diff(times)
    frames = 1000 / gaps.mean()
    print(
        f"\n{NUM_ITEMS:,} points, {WIDTH}x{HEIGHT}, points by {drawn}, page by {flags}: "
        f"{frames:.1f} frames/s over {len(times)} frames, "
        f"95 % of them within {np.percentile(gaps, 95):.1f} ms"
    )
    assert not errors
    if drawn == "processor" and flags == next(iter(FLAGS)):
        assert frames >= LEAST_FRAMES
