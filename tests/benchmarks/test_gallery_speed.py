"""Times of the gallery on the drawn world, by Chromium's own clock: first picture, moves of a dial.

    make train serve        # once; stop the server
    python -m pytest tests/benchmarks/test_gallery_speed.py -m bench -s

DEMO_BUNDLE names another bundle than that of `make serve`.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from recsys.serving.server.process import OPENER
from tests.conftest import REPOSITORY
from tests.serving.server.running import Server

FIRST_PICTURE_MS = 1000
DIAL_MS = 100
MOVES = 20
PEOPLE = ("u00007", "u00042", "u00404")
PICTURES = """() => performance.getEntriesByType("resource")
  .filter((entry) => entry.name.includes("/picture")).map((entry) => entry.responseEnd)"""
MOVED = """() => performance.getEntriesByName("re-rank").map((entry) => entry.duration)"""

pytestmark = [pytest.mark.bench, pytest.mark.browser]


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory):
    bundle = Path(os.environ.get("DEMO_BUNDLE", REPOSITORY / "workspaces/demo/bundles/current"))
    if not bundle.exists():
        pytest.skip(f"no bundle at {bundle}: make train serve")
    log = tmp_path_factory.mktemp("gallery_speed") / "log"
    with Server(bundle.resolve(), log, opener=OPENER, workers=1) as running:
        running.wait(seconds=120)
        yield running


def test_the_first_picture_and_a_dial_are_quick(demo_server, chromium):
    first, moves = [], []
    for person in PEOPLE:
        context = chromium.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{demo_server.port}/#person={person}")
        page.wait_for_function(
            """() => [...document.images].some((image) => image.src.includes("/picture")
              && image.complete && image.naturalWidth > 0)"""
        )
        first.append(min(page.evaluate(PICTURES)))
        page.wait_for_selector("#dials label")
        page.wait_for_timeout(1000)
        for move in range(MOVES):
            page.locator("#dials input[name=style]").focus()
            page.keyboard.press("ArrowRight" if move % 4 < 2 else "ArrowLeft")
            page.wait_for_timeout(400)
        moves += page.evaluate(MOVED)
        context.close()
    within = np.percentile(moves, 95)
    print(
        f"\nfirst picture after {', '.join(f'{ms:.0f}' for ms in first)} ms; {len(moves)} moves of a "
        f"dial: median {np.median(moves):.0f} ms, 95 % within {within:.0f} ms, longest "
        f"{max(moves):.0f} ms"
    )
    assert max(first) < FIRST_PICTURE_MS
    assert len(moves) >= len(PEOPLE) * MOVES // 2
    assert within < DIAL_MS
