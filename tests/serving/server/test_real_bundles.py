"""Real bundles that change under load: every answer is its bundle's own; broken ones are not served."""

import json
import os
import random
import shutil
import signal
from collections import Counter

import pytest

from recsys.bundle.chain import compact
from recsys.bundle.spec import check_bytes, point_to
from recsys.data.prepare.object_store import sync
from recsys.listing import write_listing
from recsys.serving.recommender import Recommender
from recsys.serving.server.process import OPENER
from tests.serving.server.load import Load
from tests.serving.server.running import Server
from tests.serving.server.test_survival import wait_for
from tests.serving.tiny import export, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
NUM_REQUESTS, NUM_SWAPS, NUM_KILLS = 10_000, 10, 5


@pytest.fixture(scope="module")
def other_bundle(tiny_workspace, tiny_bundle, job):
    """The bundle of another run on the same world, which scores otherwise."""
    train(tiny_workspace, job, "other", "run.seed=1")
    folder = export(tiny_workspace, job, "other", "precision=fp32", "thumbnail_pixels=0")
    point_to(tiny_bundle.parent, tiny_bundle.name)
    return folder


@pytest.fixture
def running(tiny_bundle, other_bundle, tmp_path):
    """A server of copies of both bundles, and the folder with `current`."""
    folder = tmp_path / "bundles"
    for bundle in (tiny_bundle, other_bundle):
        shutil.copytree(bundle, folder / bundle.name)
    point_to(folder, tiny_bundle.name)
    with Server(folder / "current", tmp_path / "log" / "log", opener=OPENER, workers=2) as server:
        server.wait(seconds=120)
        server.wait("worker ready", count=2, seconds=120)
        yield server, folder


def test_every_answer_is_that_of_the_bundle_it_names(running, tiny_bundle, other_bundle):
    server, folder = running
    names = [other_bundle.name, tiny_bundle.name]
    recommenders = {name: Recommender.open(folder / name) for name in names}
    vocabulary = recommenders[names[0]].bundle.vocabularies["user_id"]
    bodies = [{"user": vocabulary.id_of(row), "k": 8} for row in range(1, 41)]
    expected = {
        name: [
            {item.id: item.score for item in recommender.recommend(**body).items} for body in bodies
        ]
        for name, recommender in recommenders.items()
    }
    assert all(a != b for a, b in zip(*expected.values(), strict=True))
    load = Load(server.port, lambda n: bodies[n % len(bodies)], num_requests=NUM_REQUESTS)
    load.start()
    acts = ["swap"] * NUM_SWAPS + ["kill"] * NUM_KILLS
    random.Random(5).shuffle(acts)
    num_swaps = 0
    for number, act in enumerate(acts, start=1):
        wait_for(lambda n=number: load.num_sent >= n * NUM_REQUESTS // (len(acts) + 2), 600)
        if act == "kill":
            wait_for(server.workers)
            os.kill(server.workers()[-1], signal.SIGKILL)
            continue
        point_to(folder, names[num_swaps % 2])
        num_swaps += 1
        server.wait("bundle", count=1 + num_swaps, seconds=120)
    load.finish(600)
    assert load.failures == []
    assert len(load.answers) == NUM_REQUESTS
    assert min(load.versions[name] for name in names) > NUM_REQUESTS // 20
    for number, answer in load.answers:
        scores = {item["id"]: item["score"] for item in answer["items"]}
        assert scores == pytest.approx(expected[answer["version"]][number % len(bodies)], abs=1e-5)
    ended = Counter(line["is_expected"] for line in server.lines("worker ended"))
    assert ended[False] >= NUM_KILLS - 1, "one may have been about to end"


def test_a_broken_bundle_is_refused_by_name_and_the_old_one_goes_on(
    running, tiny_bundle, other_bundle
):
    server, folder = running
    request = {"k": 5, "diversity": 0}
    before = server.post("/v1/recommend", request).json

    def refused(name: str, count: int) -> str:
        point_to(folder, name)
        line = server.wait("bundle refused", count=count, seconds=120)
        assert line["folder"] == str(folder / name)
        assert server.post("/v1/recommend", request).json == before
        return line["reason"]

    table = folder / "changed" / "tables" / "item_id.values.npy"
    shutil.copytree(other_bundle, folder / "changed")
    content = bytearray(table.read_bytes())
    content[-5] ^= 1
    table.write_bytes(content)
    assert f"{table}: cannot be read (changed since it was written" in refused("changed", 1)
    shutil.copytree(other_bundle, folder / "cut")
    graph = folder / "cut" / "dense" / "score.pt2"
    graph.write_bytes(graph.read_bytes()[:-100])
    assert str(graph) in refused("cut", 2)
    shutil.copytree(other_bundle, folder / "newer")
    spec = folder / "newer" / "bundle.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "version": 7}))
    (folder / "newer" / "files.json").unlink()
    write_listing(folder / "newer")
    assert "bundle version 7, expected 1" in refused("newer", 3)
    point_to(folder, other_bundle.name)
    server.wait("bundle", count=2, seconds=120)
    # The other worker of the old bundle answers until it is replaced too.
    wait_for(lambda: server.post("/v1/recommend", request).json["version"] == other_bundle.name)


def test_a_delta_is_taken_over_under_load_and_answers_as_the_export(
    tiny_workspace, tiny_bundle, job, tmp_path
):
    """The delta of a real export, copied to another machine; versions that are open stay there."""
    workspace = shutil.copytree(tiny_workspace, tmp_path / "w")
    base, keys = workspace / "bundles" / tiny_bundle.name, ["precision=fp32", "thumbnail_pixels=64"]
    train(workspace, job, "later", "run.seed=2")
    made = export(workspace, job, "later", *keys, f"base={base}")
    folder = tmp_path / "bundles"
    shutil.copytree(base, folder / base.name)
    point_to(folder, base.name)
    expected = Recommender.open(made)
    bodies = [{"user": user, "k": 8} for user in list(expected.bundle.vocabularies["user_id"])[:40]]
    with Server(folder / "current", tmp_path / "log" / "log", opener=OPENER, workers=2) as server:
        server.wait(seconds=120)
        server.wait("worker ready", count=2, seconds=120)
        load = Load(server.port, lambda n: bodies[n % len(bodies)], num_requests=2000)
        load.start()
        wait_for(lambda: load.num_sent > 100)
        sync(str(workspace / "bundles" / "deltas"), str(folder / "deltas"))
        assert server.wait("bundle", count=2, seconds=120)["version"] == made.name
        load.finish(300)
        assert load.failures == []
        assert set(load.versions) <= {base.name, made.name}
        wait_for(lambda: server.ask("GET", "/v1/version").json["also"] == [], 120)
        for body in bodies[:5]:
            found = server.post("/v1/recommend", body).json
            assert found["version"] == made.name
            assert {item["id"]: item["score"] for item in found["items"]} == pytest.approx(
                {item.id: item.score for item in expected.recommend(**body).items}, abs=1e-5
            )
        check_bytes(folder / made.name)
        point_to(folder, base.name)
        server.wait("bundle", count=3, seconds=120)
        wait_for(lambda: server.ask("GET", "/v1/version").json["also"] == [], 120)
        wait_for(lambda: compact(folder, keep=0) == [made.name], 60)
