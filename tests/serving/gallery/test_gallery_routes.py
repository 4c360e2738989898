"""Routes of the gallery: its files and their headers, thumbnails, users."""

import asyncio
import base64
import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from recsys.demo.world import oracle_of
from recsys.serving.server import gallery
from recsys.serving.server.gallery import PAGES


def test_the_front_process_reads_a_bundle_without_torch(tiny_bundle):
    code = """
import sys
from pathlib import Path
import recsys.serving.server.app
from recsys.serving.shown import Shown
shown = Shown(Path(sys.argv[1]))
assert shown.picture(shown.history(shown.people("", 1)[0].id)[0])
assert not {"torch", "torchrec", "duckdb"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tiny_bundle)], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_the_pages_forbid_everything_from_elsewhere(server):
    for path in ("/", "/gallery/app.js", "/gallery/style.css"):
        answer = server.ask("GET", path)
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_file_that_a_page_names_is_served_and_no_other(server):
    for page in PAGES.iterdir():
        for name in re.findall(r'"(?:\./|/gallery/)([\w.-]+)"', page.read_text()):
            assert server.ask("GET", f"/gallery/{name}").status == 200, name
    for name in ("gallery.py", "..%2Fstore.py", "nothing.js"):
        assert server.ask("GET", f"/gallery/{name}").status == 404


def test_files_of_the_gallery_belong_to_the_package():
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    endings = {path.suffix for path in PAGES.iterdir() if path.is_file()}
    assert all(f'"gallery/*{ending}"' in pyproject for ending in endings)


def test_a_thumbnail_is_the_bundles_and_is_not_sent_twice(server, bundle):
    row = next(r for r in range(1, len(bundle.items)) if bundle.catalogue.picture(r))
    path = f"/v1/items/{bundle.item_id(row)}/picture"
    answer = server.ask("GET", path)
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.body == bundle.catalogue.picture(row)
    assert "max-age" in answer.headers["cache-control"]
    again = server.ask("GET", path, If_None_Match=answer.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert server.ask("GET", path, If_None_Match='"another"').status == 200


def test_an_item_without_a_picture_has_a_placeholder_and_an_unknown_one_nothing(server):
    added = server.post("/v1/items", {"id": "words/only", "text": "a red house"})
    assert added.status == 201, added.body
    answer = server.ask("GET", "/v1/items/words%2Fonly/picture")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert b"No picture" in answer.body
    assert server.ask("GET", "/v1/items/words%2Fonly").json["id"] == "words/only"
    unknown = server.ask("GET", "/v1/items/nothing/picture")
    assert unknown.status == 404
    assert "'nothing' given" in unknown.json["detail"]


def test_users_are_found_by_prefix_and_by_chance(server, bundle):
    ids = [bundle.vocabularies["user_id"].id_of(row) for row in range(1, bundle.users.num_rows)]
    prefix = ids[0][:-1]
    expected = [id for id in ids if id.startswith(prefix)][:5]
    found = server.ask("GET", f"/v1/users?prefix={prefix}&limit=5").json
    assert [user["id"] for user in found["users"]] == expected
    assert found["users"][0]["likes"] == len(bundle.users.history(1))
    assert server.ask("GET", "/v1/users?prefix=nobody").json["users"] == []
    drawn = server.ask("GET", "/v1/users?order=chance&limit=7").json["users"]
    assert len({user["id"] for user in drawn}) == 7
    assert {user["id"] for user in drawn} <= set(ids)
    assert server.ask("GET", "/v1/users?limit=0").status == 422


def test_a_user_has_a_history_which_later_likes_lead(server, bundle):
    user = bundle.vocabularies["user_id"].id_of(1)
    before = server.ask("GET", f"/v1/users/{user}").json
    history = [bundle.item_id(int(row)) for row in bundle.users.history(1)]
    assert [item["id"] for item in before["likes"]] == list(dict.fromkeys(reversed(history)))
    liked = next(bundle.item_id(r) for r in range(1, 121) if bundle.item_id(r) not in history)
    event = {"user": user, "item": liked, "kind": "liked"}
    assert server.post("/v1/events", {"events": [event]}).status == 200
    after = server.ask("GET", f"/v1/users/{user}").json
    assert [item["id"] for item in after["likes"]] == [liked, *dict.fromkeys(reversed(history))]
    assert after["known"]
    unknown = server.ask("GET", "/v1/users/nobody")
    assert unknown.status == 404
    assert "'nobody' given" in unknown.json["detail"]


def test_an_added_picture_is_shown_as_a_thumbnail_of_its_own(server):
    stream = io.BytesIO()
    Image.new("RGB", (300, 200), (200, 40, 40)).save(stream, "PNG")
    picture = base64.b64encode(stream.getvalue()).decode()
    added = server.post("/v1/items", {"id": "added/red", "picture": picture})
    assert added.status == 201, added.body
    answer = server.ask("GET", "/v1/items/added%2Fred/picture")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    shown = Image.open(io.BytesIO(answer.body))
    assert shown.size == (256, 256)
    assert all(abs(a - b) < 8 for a, b in zip(shown.getpixel((9, 9)), (200, 40, 40), strict=True))
    again = server.ask("GET", "/v1/items/added%2Fred/picture", If_None_Match=answer.headers["etag"])
    assert again.status == 304


def test_likers_of_an_item_are_those_whose_history_holds_it_and_later_ones_first(server, bundle):
    item = bundle.item_id(int(bundle.users.history(2)[-1]))
    row = int(bundle.users.history(2)[-1])
    ids = [bundle.vocabularies["user_id"].id_of(u) for u in range(1, bundle.users.num_rows)]
    expected = [i for u, i in enumerate(ids, 1) if row in bundle.users.history(u)]
    found = server.ask("GET", f"/v1/items/{item}/likers?limit=100").json
    assert (found["count"], found["users"]) == (len(expected), expected)
    event = {"user": "a new reader", "item": item, "kind": "liked"}
    assert server.post("/v1/events", {"events": [event]}).status == 200
    found = server.ask("GET", f"/v1/items/{item}/likers?limit=2").json
    assert found["count"] == len(expected) + 1
    assert found["users"] == ["a new reader", *expected][:2]
    assert server.ask("GET", "/v1/items/nothing/likers").status == 404


def test_a_hidden_item_is_not_recommended_again_until_it_is_liked(server, bundle):
    def recommended():
        answer = server.post("/v1/recommend", {"user": "hider", "k": 100})
        return [item["id"] for item in answer.json["items"]]

    first = recommended()[0]
    events = [{"user": "hider", "item": first, "kind": "hidden"}]
    assert server.post("/v1/events", {"events": events}).status == 200
    assert first not in recommended()
    person = server.ask("GET", "/v1/users/hider").json
    assert (person["hidden"], person["likes"]) == ([first], [])
    others = server.post("/v1/recommend", {"user": "another", "k": 100}).json["items"]
    assert first in [item["id"] for item in others]
    events[0]["kind"] = "liked"
    assert server.post("/v1/events", {"events": events}).status == 200
    person = server.ask("GET", "/v1/users/hider").json
    assert (person["hidden"], person["likes"][0]["id"]) == ([], first)


def test_the_catalogue_is_listed_by_pages(server, bundle):
    found = server.ask("GET", "/v1/items?start=117&limit=100").json
    assert found["total"] == 120
    assert [item["id"] for item in found["items"]] == [bundle.item_id(r) for r in (118, 119, 120)]
    assert server.ask("GET", "/v1/items?start=120").json["items"] == []
    assert server.ask("GET", "/v1/gallery").json["items"] == 120


def test_the_truth_of_a_user_is_the_oracles_of_all_items_but_the_history(
    server, bundle, tiny_workspace
):
    user = bundle.vocabularies["user_id"].id_of(3)
    oracle = oracle_of(tiny_workspace)
    logits = oracle.items @ oracle.users[oracle.user_ids.index(user)]
    expected = dict(zip(oracle.item_ids, 1 / (1 + np.exp(-logits)), strict=True))
    for row in bundle.users.history(3).tolist():
        expected.pop(bundle.item_id(row), None)
    found = server.ask("GET", f"/v1/users/{user}/truth").json["items"]
    assert {item["id"] for item in found} == set(expected)
    for item in found:
        assert abs(item["probability"] - expected[item["id"]]) < 1e-6
    some = server.ask("GET", f"/v1/users/{user}/truth?limit=10").json["items"]
    assert 5 <= len(some) <= 10
    assert server.ask("GET", "/v1/users/nobody/truth").status == 404


def test_the_thumbnail_of_an_added_item_is_decoded_once(monkeypatch):
    decoded = []

    async def read(function):
        return function(SimpleNamespace(item=lambda id: None if id == "none" else added))

    def decode(request):
        decoded.append(request)
        return b"jpeg" if request == b"picture" else None

    added = SimpleNamespace(request=b"picture")
    front = SimpleNamespace(thumbnails={}, read=read)
    monkeypatch.setattr(gallery, "thumbnail_of", decode)
    monkeypatch.setattr(gallery, "MAX_THUMBNAILS", 2)

    def asked(item):
        return asyncio.run(gallery._added_thumbnail(front, item))

    assert [asked(item) for item in ("a", "a", "none", "b", "a")] == [b"jpeg"] * 2 + [None] + [
        b"jpeg"
    ] * 2
    assert len(decoded) == 2
    assert asked("c") == b"jpeg"
    assert list(front.thumbnails) == ["b", "c"], "the oldest makes place"
    added.request = b"words"
    assert asked("d") is None
    assert list(front.thumbnails) == ["b", "c"], "no picture may come later"
