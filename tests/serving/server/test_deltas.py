"""Deltas that arrive at a running server: taken over without a lost request, or refused by name."""

import json
import os
import signal

import pytest

from tests.bundle.chains import chain, copy_base, delta_folder, send
from tests.serving.server.double import OPENER
from tests.serving.server.load import Load
from tests.serving.server.running import Server
from tests.serving.server.test_survival import body, check_whole, wait_for

NUM_DELTAS = 4


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of bundles v0 to v4 of an exporting machine."""
    bundles = tmp_path_factory.mktemp("exported") / "bundles"
    chain(bundles, NUM_DELTAS)
    return bundles


@pytest.fixture
def remote(exported, tmp_path):
    """A server on another machine, which has v0, and its folder of bundles."""
    bundles = copy_base(exported, tmp_path / "bundles")
    log = tmp_path / "log" / "log"
    with Server(bundles / "current", log, opener=OPENER, workers=2, keep=1) as server:
        server.wait()
        yield server, bundles


def test_no_request_is_lost_while_deltas_arrive_and_a_worker_dies(exported, remote):
    server, bundles = remote
    num_requests = 1200
    load = Load(server.port, body, num_requests=num_requests)
    load.start()
    for number in range(1, NUM_DELTAS + 1):
        wait_for(lambda n=number: load.num_sent >= n * num_requests // (NUM_DELTAS + 2))
        send(exported, bundles, number)
        server.wait("bundle", count=number + 1)
        if number == 2:
            wait_for(server.workers)
            os.kill(server.workers()[-1], signal.SIGKILL)
    load.finish()
    check_whole(load, {f"v{number}" for number in range(NUM_DELTAS + 1)})
    assert len(load.answers) == num_requests
    assert [line["version"] for line in server.lines("bundle")] == ["v0", "v1", "v2", "v3", "v4"]
    assert [line["versions"] for line in server.lines("deltas applied")] == [
        [f"v{number}"] for number in range(1, NUM_DELTAS + 1)
    ]
    wait_for(lambda: server.ask("GET", "/v1/version").json["version"] == "v4")
    # keep=1: the one before stays; the double has nothing open.
    wait_for(lambda: sorted(p.name for p in bundles.glob("v*")) == ["v0", "v3", "v4"])


def test_a_delta_out_of_order_is_refused_by_name_and_the_old_one_goes_on(exported, remote):
    server, bundles = remote
    send(exported, bundles, 2)
    reason = server.wait("delta refused")["reason"]
    assert "000002-v2: delta 2 follows v1, which is not here; v0 is number 0 of its chain" in reason
    version = server.ask("GET", "/v1/version").json
    assert (version["version"], version["refused"]) == ("v0", {str(bundles / "deltas"): reason})
    assert server.post("/v1/recommend", {}).json["version"] == "v0"
    send(exported, bundles, 1)
    server.wait("bundle", count=2)
    wait_for(lambda: server.ask("GET", "/v1/version").json["refused"] == {})
    wait_for(lambda: server.post("/v1/recommend", {}).json["version"] == "v2")


def test_a_damaged_delta_and_one_of_another_schema_are_refused_and_a_whole_copy_is_taken(
    exported, remote
):
    server, bundles = remote
    send(exported, bundles, 1)
    server.wait("bundle", count=2)
    folder = delta_folder(exported, 2)
    copied = bundles / "deltas" / folder.name
    copied.mkdir()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (payload,) = [name for name in files if name.endswith("values.npy")]

    def copy(name: str, content: bytes) -> None:
        (copied / f".{name}.part").write_bytes(content)
        (copied / f".{name}.part").replace(copied / name)

    for name in sorted(files):
        copy(name, files[name][:-1] + b"x" if name == payload else files[name])
    assert f"{payload}: cannot be read (its sha256" in server.wait("delta refused")["reason"]
    other = {**json.loads(files["delta.json"]), "version": 9}
    copy("delta.json", json.dumps(other).encode())
    wait_for(lambda: "delta version 9, expected 1" in server.lines("delta refused")[-1]["reason"])
    assert server.post("/v1/recommend", {}).json["version"] == "v1"
    copy("delta.json", files["delta.json"])
    copy(payload, files[payload])
    server.wait("bundle", count=3)
    wait_for(lambda: server.post("/v1/recommend", {}).json["version"] == "v2")
