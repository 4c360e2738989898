"""Routes of the map: arrays by address of the bundle, items by row, and a person's taste."""

import json
import shutil

import numpy as np
import pytest

from recsys.bundle.bundle import Bundle
from recsys.bundle.map import NO_PLACE
from recsys.serving import taste
from recsys.serving.recommender import Recommender
from recsys.serving.requests import VisitorRequest
from recsys.serving.server.map import MAX_ROWS
from recsys.serving.shown import Shown


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return Bundle.open(tiny_bundle)


@pytest.fixture(scope="module")
def address(server, bundle):
    return f"/v1/map/{bundle.version}"


def test_the_map_says_what_it_has(server, bundle):
    card = server.ask("GET", "/v1/map").json
    assert card["version"] == bundle.version
    assert card["items"] == 120
    assert card["layouts"] == ["semantic", "style", "text"]
    for name, groups in card["groups"].items():
        counts = [group["count"] for group in groups]
        assert counts == sorted(counts, reverse=True) and 0 < len(groups) <= 12
        values = bundle.catalogue.column(name).to_pylist()
        of_first = [value for value in values if groups[0]["name"] in (value or [])]
        assert len(of_first) == counts[0]


def test_layouts_and_groups_are_sent_as_stored_and_kept_for_good(server, bundle, address):
    for name in ("semantic", "style", "text"):
        answer = server.ask("GET", f"{address}/layouts/{name}")
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        sent = np.frombuffer(answer.body, "<u2").reshape(-1, 2)
        stored = np.load(bundle.folder / f"map/{name}.npy")[1:]
        assert sent / 32_767 - 1 == pytest.approx(stored, abs=1e-4)
        assert sent.max() < NO_PLACE
    sent = np.frombuffer(server.ask("GET", f"{address}/groups/artist").body, "<u2")
    assert np.array_equal(sent, np.load(bundle.folder / "map/artist.npy")[1:])


def test_items_are_named_by_row(server, bundle, address):
    found = server.ask("GET", f"{address}/items?rows=7,1,120").json["items"]
    assert [item["id"] for item in found] == [bundle.item_id(row) for row in (7, 1, 120)]
    assert found[0]["title"] == bundle.catalogue.card(7)["title"]


@pytest.mark.parametrize(
    "rows", ["", "0", "121", "1,,2", "a", "-1", ",".join(["1"] * (MAX_ROWS + 1))]
)
def test_rows_that_there_are_not_are_refused(server, address, rows):
    answer = server.ask("GET", f"{address}/items?rows={rows}")
    assert answer.status == 422
    assert "expected numbers from 1 to 120, separated by commas" in answer.json["detail"]


def test_another_bundles_map_and_unknown_names_are_told(server, address):
    answer = server.ask("GET", "/v1/map/older-1-2/layouts/style")
    assert answer.status == 404 and "load the map again" in answer.json["detail"]
    assert server.ask("GET", "/v1/map/older-1-2/taste?user=u").status == 404
    assert "'colour' given" in server.ask("GET", f"{address}/layouts/colour").json["detail"]
    assert server.ask("GET", f"{address}/groups/..%2Fartist").status == 404
    assert server.ask("GET", f"{address}/taste").status == 422


def test_a_taste_is_the_full_models_score_of_every_item(server, bundle, address):
    user = bundle.vocabularies["user_id"].id_of(2)
    answer = server.ask("GET", f"{address}/taste?user={user}")
    assert (answer.headers["x-taste-by"], answer.headers["cache-control"]) == ("full", "no-store")
    found = np.frombuffer(answer.body, "<f4")
    items = [bundle.item_id(row) for row in range(1, 121)]
    scores = server.post("/v1/score", {"user": user, "items": items}).json["items"]
    assert found == pytest.approx([item["score"] for item in scores], abs=1e-6)


def test_a_like_changes_the_taste_at_once(server, bundle, address):
    before = server.ask("GET", f"{address}/taste?user=visitor-map").body
    event = {"user": "visitor-map", "item": bundle.item_id(5), "kind": "liked"}
    assert server.post("/v1/events", {"events": [event]}).status == 200
    assert server.ask("GET", f"{address}/taste?user=visitor-map").body != before


def test_a_large_catalogue_is_scored_by_the_direct_term(tiny_bundle, monkeypatch):
    monkeypatch.setattr(taste, "FULL_ITEMS", 50)
    recommender = Recommender.open(tiny_bundle)
    user = recommender.bundle.vocabularies["user_id"].id_of(2)
    found = recommender.taste(VisitorRequest(user=user))
    assert (found.by, found.scores_N.shape) == ("direct", (120,))
    row = int(found.scores_N.argmax()) + 1
    terms = recommender.explain(user, recommender.bundle.item_id(row)).terms
    direct = sum(value for name, value in terms.items() if name != "deep")
    of_user = direct - found.scores_N[row - 1]
    # The item's own direct terms; the user's first-order weight is the same for every item.
    other = int(found.scores_N.argmin()) + 1
    terms = recommender.explain(user, recommender.bundle.item_id(other)).terms
    direct = sum(value for name, value in terms.items() if name != "deep")
    assert direct - found.scores_N[other - 1] == pytest.approx(of_user, abs=1e-3)


def test_a_bundle_without_a_map_is_served_and_says_so(tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    shutil.rmtree(folder / "map")
    content = json.loads((folder / "bundle.json").read_text())
    content["sizes"] = {n: b for n, b in content["sizes"].items() if not n.startswith("map/")}
    (folder / "bundle.json").write_text(json.dumps(content))
    assert Shown(folder).map.layouts == []
    assert Recommender.open(folder).recommend(k=3).items
