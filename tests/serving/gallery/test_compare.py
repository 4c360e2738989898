"""Two models side by side in Chromium and over HTTP: blind lists, choices, their tally."""

import pytest

from recsys.serving.choices import is_swapped
from recsys.serving.recommender import Recommender
from tests.serving.server.running import Server
from tests.serving.tiny import export, train

pytestmark = pytest.mark.slow

OPENER = "recsys.serving.recommender:Recommender"


@pytest.fixture(scope="module")
def second_bundle(tiny_bundle, tiny_workspace, job):
    """The bundle of another run; `current` names the first one again."""
    train(tiny_workspace, job, "other", "run.seed=1")
    folder = export(tiny_workspace, job, "other", "thumbnail_pixels=0", "encoders=false")
    (tiny_workspace / "bundles" / "current").write_text(tiny_bundle.name)
    return folder


@pytest.fixture(scope="module")
def comparing(tiny_bundle, second_bundle, tmp_path_factory):
    """A server of two bundles."""
    folder = tmp_path_factory.mktemp("comparing")
    keys = {"compare": str(second_bundle), "request_seconds": 60}
    with Server(tiny_bundle, folder / "log", opener=OPENER, **keys) as running:
        running.wait("serving", seconds=120, count=2)
        yield running


def test_a_server_of_one_bundle_compares_nothing(server):
    assert server.ask("GET", "/v1/comparison").status == 404
    assert server.post("/v1/comparison/lists", {"user": "u"}).status == 404
    assert server.ask("GET", "/v1/gallery").json["comparison"] is False


def test_lists_of_both_models_are_on_the_sides_that_the_coin_says(
    comparing, tiny_bundle, second_bundle, bundle
):
    recommender = Recommender.open(tiny_bundle)
    ids = [bundle.vocabularies["user_id"].id_of(row) for row in range(1, 9)]
    models = (tiny_bundle.name, second_bundle.name)
    assert {is_swapped(user, models) for user in ids} == {True, False}
    for user in ids:
        own = recommender.recommend(user=user, k=12).items
        answer = comparing.post("/v1/comparison/lists", {"user": user})
        assert answer.status == 200, answer.body
        assert not any(name.encode() in answer.body for name in models)
        side = "right" if is_swapped(user, models) else "left"
        assert [i["id"] for i in answer.json[side]] == [item.id for item in own]
        assert answer.json["left"] != answer.json["right"]


def test_a_choice_counts_for_the_model_of_its_side_once_a_person(
    comparing, tiny_bundle, second_bundle
):
    models = [tiny_bundle.name, second_bundle.name]

    def choose(user, choice):
        answer = comparing.post("/v1/comparison/choices", {"user": user, "choice": choice})
        assert answer.status == 200, answer.body
        return answer.json

    before = comparing.ask("GET", "/v1/comparison").json
    assert before["models"] == models
    first_side = "right" if is_swapped("judge", tuple(models)) else "left"
    found = choose("judge", first_side)
    assert found["wins"] == [before["wins"][0] + 1, before["wins"][1]]
    assert choose("judge", first_side)["wins"] == found["wins"]
    found = choose("judge", "left" if first_side == "right" else "right")
    assert found["wins"] == [before["wins"][0], before["wins"][1] + 1]
    found = choose("judge", "neither")
    assert (found["wins"], found["ties"]) == (before["wins"], before["ties"] + 1)
    assert comparing.post("/v1/comparison/choices", {"user": "j", "choice": "a"}).status == 422


def test_people_choose_by_click_and_by_key_and_see_the_tally(
    page, comparing, tiny_bundle, serious_findings
):
    page.address = f"http://127.0.0.1:{comparing.port}/"
    before = comparing.ask("GET", "/v1/comparison").json
    page.goto(page.address)
    page.locator("#views a", has_text="Two models").click()
    page.locator(".verdict").wait_for()
    assert page.locator(".sides section").count() == 2
    assert page.locator(".sides .tile").count() == 24
    assert tiny_bundle.name not in page.locator(".sides").inner_html()
    with page.expect_response("**/v1/comparison/choices") as stored:
        page.get_by_role("button", name="Left is better").click()
    assert sum(stored.value.json()["wins"]) >= sum(before["wins"])
    page.get_by_text("Stored: left is better").wait_for()
    with page.expect_response("**/v1/comparison/choices") as stored:
        page.keyboard.press("2")
    assert stored.value.request.post_data_json["choice"] == "neither"
    page.get_by_text("Stored: no difference").wait_for()
    assert page.locator(".tally").inner_text().count(tiny_bundle.name) >= 1
    assert not serious_findings(page)
