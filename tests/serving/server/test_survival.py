"""Nothing is lost: workers that die, bundles that change, a server that ends."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import pytest

from recsys.serving.server.process import _drop_new_connections
from tests.processes import children_of, family_of
from tests.serving.server.double import make_bundle, point_to
from tests.serving.server.load import Load

RANDOM = random.Random(18)


def body(number: int) -> dict:
    return {"user": f"u{number % 50}", "k": 5, "likes": [f"i{number % 1000:05d}"]}


def check_whole(load: Load, versions: set[str]) -> None:
    """Every answer is one bundle's, and belongs to its request."""
    assert load.failures == []
    assert set(load.versions) <= versions
    for number, answer in load.answers:
        assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
        assert f"i{number % 1000:05d}" not in [item["id"] for item in answer["items"]]
        assert answer["history"] == 1


def wait_for(seen, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def swap_and_kill(server, folder, *, num_requests: int, num_swaps: int, num_kills: int) -> None:
    load = Load(server.port, body, num_requests=num_requests)
    load.start()
    acts = ["swap"] * num_swaps + ["kill"] * num_kills
    RANDOM.shuffle(acts)
    versions = ["a"]
    for number, act in enumerate(acts, start=1):
        wait_for(lambda n=number: load.num_sent >= n * num_requests // (len(acts) + 2))
        if act == "kill":
            wait_for(server.workers)
            os.kill(server.workers()[-1], signal.SIGKILL)
            continue
        versions.append(f"v{number}")
        point_to(folder / "current", make_bundle(folder / versions[-1], versions[-1]))
        wait_for(lambda: server.lines("bundle")[-1]["version"] == versions[-1])
    load.finish()
    assert len(load.answers) == num_requests
    check_whole(load, set(versions))
    assert {line["version"] for line in server.lines("bundle")} == set(versions)
    # A worker of an older bundle may have been killed that was about to end anyhow.
    lost = [line for line in server.lines("worker ended") if not line["is_expected"]]
    assert num_kills > 0
    assert len(lost) >= num_kills - 1
    wait_for(lambda: server.ask("GET", "/v1/version").json["version"] == versions[-1])


def test_no_request_is_lost_while_bundles_change_and_workers_die(started, tmp_path):
    server = started(workers=2)
    swap_and_kill(server, tmp_path / "bundles", num_requests=1500, num_swaps=3, num_kills=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_thousand_requests_survive_ten_bundles_and_five_kills(started, tmp_path):
    server = started(workers=2)
    swap_and_kill(server, tmp_path / "bundles", num_requests=10_000, num_swaps=10, num_kills=5)


def test_sigterm_under_load_loses_no_request(started):
    for _ in range(3):
        server = started(workers=2)
        load = Load(server.port, body, num_clients=16)
        load.start()
        wait_for(lambda load=load: len(load.answers) > 300)
        assert server.terminate() == 0
        load.finish()
        check_whole(load, {"a"})
        assert len(load.answers) == load.num_sent
        assert server.lines("ended")


@pytest.mark.skipif(sys.platform != "linux", reason="a filter of Linux")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_new_connections_are_passed_over_and_those_begun_are_accepted(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, 0), family=family)
    except OSError as error:
        pytest.skip(f"no {host} on this machine ({error.strerror})")
    with listening as listener:
        address = listener.getsockname()
        with socket.create_connection(address[:2], timeout=5) as begun:
            _drop_new_connections(listener)
            with pytest.raises(TimeoutError):
                socket.create_connection(address[:2], timeout=0.2)
            accepted, _ = listener.accept()
            with accepted:
                begun.sendall(b"a request")
                assert accepted.recv(100) == b"a request"


def test_sigterm_waits_for_a_slow_request(started):
    server = started(workers=1)
    load = Load(server.port, lambda _: {"user": "slow", "k": 5}, num_requests=3, num_clients=3)
    load.start()
    time.sleep(0.1)
    assert server.terminate() == 0
    load.finish()
    assert (load.failures, len(load.answers)) == ([], 3)


def test_a_request_that_kills_its_workers_is_given_up_and_others_are_answered(started):
    server = started(workers=2)
    load = Load(server.port, body, num_requests=600)
    load.start()
    answer = server.post("/v1/recommend", {"user": "poison"}, X_Request_ID="the-poison")
    assert answer.status == 500
    assert answer.json["request_id"] == "the-poison"
    load.finish()
    check_whole(load, {"a"})
    assert len(load.answers) == 600


def test_a_bundle_that_cannot_be_opened_is_refused_by_name_and_the_old_one_goes_on(
    started, tmp_path
):
    server = started(workers=1)
    folder = tmp_path / "bundles"
    point_to(folder / "current", make_bundle(folder / "bad", "bad", damaged=True))
    line = server.wait("bundle refused")
    assert line["folder"].endswith("/bad")
    assert "tables/item_id.npy: damaged" in line["reason"]
    version = server.ask("GET", "/v1/version").json
    assert version["version"] == "a"
    assert version["refused"] == {
        str(folder / "bad"): f"{folder / 'bad'}/tables/item_id.npy: damaged"
    }
    assert server.post("/v1/recommend", {}).json["version"] == "a"
    # One that kills its worker is tried three times.
    point_to(folder / "current", make_bundle(folder / "deadly", "deadly", deadly=True))
    assert server.wait("bundle refused", count=2)["folder"].endswith("/deadly")
    assert server.post("/v1/recommend", {}).json["version"] == "a"
    point_to(folder / "current", make_bundle(folder / "good", "good"))
    server.wait("bundle", count=2)
    wait_for(lambda: server.post("/v1/recommend", {}).json["version"] == "good")


def test_a_bundle_with_a_changed_byte_is_refused_by_name_and_the_old_one_goes_on(started, tmp_path):
    server = started(workers=1)
    folder = tmp_path / "bundles"
    changed = make_bundle(folder / "changed", "changed", colour="red")
    file = changed / "bundle.json"
    file.write_text(file.read_text().replace("red", "rad"))
    point_to(folder / "current", changed)
    line = server.wait("bundle refused")
    assert f"{file}: cannot be read (changed since it was written" in line["reason"]
    assert line["serving"].endswith("/a")
    (make_bundle(folder / "unlisted", "unlisted") / "files.json").unlink()
    point_to(folder / "current", folder / "unlisted")
    assert "files.json: missing" in server.wait("bundle refused", count=2)["reason"]
    assert server.post("/v1/recommend", {}).json["version"] == "a"
    assert len(server.workers()) == 1


def test_a_current_that_leads_nowhere_changes_nothing(started, tmp_path):
    server = started(workers=1)
    (tmp_path / "bundles" / "current").unlink()
    time.sleep(1.0)
    assert server.post("/v1/recommend", {}).json["version"] == "a"
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait("worker ready", count=2)
    assert server.post("/v1/recommend", {}).json["version"] == "a"


def test_a_first_bundle_that_cannot_be_opened_ends_the_server_with_its_sentence(started, tmp_path):
    make_bundle(tmp_path / "bundles" / "a", "a", damaged=True)
    point_to(tmp_path / "bundles" / "current", tmp_path / "bundles" / "a")
    server = started(wait=False)
    assert server.process.wait(timeout=60) != 0
    assert "UserError" in server.said()
    assert "tables/item_id.npy: damaged" in server.said()


def test_requests_wait_while_the_first_bundle_is_opened(started, tmp_path):
    make_bundle(tmp_path / "bundles" / "a", "a", seconds=1.0)
    point_to(tmp_path / "bundles" / "current", tmp_path / "bundles" / "a")
    server = started(wait=False)
    server.wait("listening")
    assert server.ask("GET", "/livez").status == 200
    assert server.ask("GET", "/readyz").status == 503
    assert server.post("/v1/recommend", {}).status == 200
    assert server.ask("GET", "/readyz").status == 200


def test_a_killed_front_process_leaves_no_process_behind(started):
    server = started(workers=2)
    server.wait("worker ready", count=2)
    family = family_of(server.process.pid)
    assert len(family) == 5, "front, zygote, the bundle's process, two workers"
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in family[1:]), 15)


def test_a_killed_zygote_is_replaced_with_its_workers(started):
    server = started(workers=2)
    server.wait("worker ready", count=2)
    (zygote,) = children_of(server.process.pid)
    load = Load(server.port, body, num_requests=1000)
    load.start()
    os.kill(zygote, signal.SIGKILL)
    load.finish()
    check_whole(load, {"a"})


@pytest.mark.parametrize(
    "num_kills", [5, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_every_acknowledged_event_is_stored_once_whatever_is_killed_when(
    started, tmp_path, num_kills
):
    from recsys.serving.store import Store

    acknowledged: set[str] = set()
    maybe: set[str] = set()
    for number in range(num_kills):
        server = started(workers=1)
        load = Load(
            server.port,
            lambda n, k=number: {
                "events": [
                    {"user": f"u{n % 7}", "item": f"i{n}", "kind": "liked", "id": f"{k}/{n}/{e}"}
                    for e in range(3)
                ]
            },
            path="/v1/events",
        )
        load.start()
        time.sleep(RANDOM.uniform(0.0, 0.7))
        if number % 3 == 2:  # a worker first: the front process is killed while it is replaced
            os.kill(server.workers()[0], signal.SIGKILL)
            time.sleep(RANDOM.uniform(0.0, 0.1))
        server.kill()
        load.finish()
        ids = {n: {f"{number}/{n}/{e}" for e in range(3)} for n in range(load.num_sent)}
        acknowledged |= {id for n, _ in load.answers for id in ids[n]}
        maybe |= {id for each in ids.values() for id in each}
    store = Store.open(tmp_path / "events.db")
    stored = [event.id for page in store.events_between(0, 1e12) for event in page]
    store.close()
    assert len(acknowledged) > num_kills * 10
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored) <= maybe


def test_events_of_an_earlier_life_are_in_histories_after_a_restart(started):
    server = started(workers=1)
    event = {"user": "u", "item": "i00999", "kind": "liked"}
    assert server.post("/v1/events", {"events": [event]}).status == 200
    server.kill()
    server = started(workers=1)
    answer = server.post("/v1/recommend", {"user": "u", "k": 1}).json
    assert (answer["history"], answer["items"][0]["id"]) == (1, "i00998")


def test_events_up_to_the_bundles_own_time_are_left_to_the_bundle(started, tmp_path):
    server = started(workers=1)
    events = [
        {"user": "u", "item": f"i{n:05d}", "kind": "liked", "time": float(n)} for n in range(4)
    ]
    assert server.post("/v1/events", {"events": events}).status == 200
    assert server.post("/v1/recommend", {"user": "u"}).json["history"] == 3, "time 0 is not newer"
    folder = tmp_path / "bundles"
    point_to(folder / "current", make_bundle(folder / "b", "b", since=2.0))
    wait_for(lambda: server.post("/v1/recommend", {}).json["version"] == "b")
    assert server.post("/v1/recommend", {"user": "u"}).json["history"] == 1
    # Back to the one before: its histories are shorter again.
    point_to(folder / "current", folder / "a")
    wait_for(lambda: server.post("/v1/recommend", {"user": "u"}).json["history"] == 3)


@pytest.mark.slow
def test_an_added_item_survives_a_restart_and_a_change_of_bundles(started, tmp_path):
    server = started(workers=1)
    assert server.post("/v1/items", {"id": "new", "text": "a red house"}).status == 201
    server.kill()
    server = started(workers=1)
    assert server.post("/v1/recommend", {"k": 1}).json["items"][0]["id"] == "new"
    folder = tmp_path / "bundles"
    point_to(folder / "current", make_bundle(folder / "b", "b"))
    wait_for(lambda: server.post("/v1/recommend", {}).json["version"] == "b")
    assert server.post("/v1/recommend", {"k": 1}).json["items"][0]["id"] == "new"


@pytest.mark.slow
def test_two_servers_of_one_store_follow_each_other(started):
    one, other = started(workers=1), started(workers=1, wait=False)
    other.wait()
    event = {"user": "u", "item": "i00999", "kind": "liked"}
    assert one.post("/v1/events", {"events": [event]}).status == 200
    assert one.post("/v1/items", {"id": "new", "text": "t"}).status == 201
    time.sleep(1.0)
    answer = other.post("/v1/recommend", {"user": "u", "k": 2}).json
    assert [item["id"] for item in answer["items"]] == ["new", "i00998"]


def test_a_port_that_is_taken_is_named(started, tmp_path):
    server = started()
    code = (
        "from recsys.serving.server.config import ServeConfig\n"
        "from recsys.serving.server.process import serve\n"
        f"serve(ServeConfig(bundle={json.dumps(str(tmp_path / 'bundles' / 'a'))}, "
        f"port={server.port}, events='{tmp_path}/other.db'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert f"port={server.port}: cannot listen there" in done.stderr


def test_workers_are_forks_of_the_process_that_opened_their_bundle(started, tmp_path):
    """So that a bundle is in memory once; it goes with the last of its workers."""
    server = started(workers=2)
    server.wait("worker ready", count=2)
    (zygote,) = children_of(server.process.pid)
    (opened,) = children_of(zygote)
    assert sorted(children_of(opened)) == sorted(server.workers())
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait("worker ready", count=3)
    assert sorted(children_of(opened)) == sorted(server.workers())
    folder = tmp_path / "bundles"
    point_to(folder / "current", make_bundle(folder / "b", "b"))
    server.wait("worker ready", count=5)
    wait_for(lambda: opened not in children_of(zygote))
    (newer,) = children_of(zygote)
    assert sorted(children_of(newer)) == sorted(server.workers())
    # Without it, its workers are gone; the bundle is opened again.
    os.kill(newer, signal.SIGKILL)
    server.wait("worker ready", count=7)
    assert server.post("/v1/recommend", {}).json["version"] == "b"
