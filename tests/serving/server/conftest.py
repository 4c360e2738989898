"""Servers of the double for the tests of this folder."""

import pytest

from recsys.serving.server.process import OPENER as RECOMMENDER
from tests.serving.server.double import OPENER, make_bundle, point_to
from tests.serving.server.running import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with two workers that a module's tests share."""
    folder = tmp_path_factory.mktemp("served")
    bundle = make_bundle(folder / "bundles" / "a", "a")
    with Server(bundle, folder / "log", opener=OPENER, workers=2) as running:
        running.wait()
        running.wait("worker ready", count=2)
        yield running


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a server on `bundles/current`, which leads to bundle `a`."""
    servers = []

    def start(*, wait: bool = True, **keys) -> Server:
        bundles = tmp_path / "bundles"
        if not bundles.exists():
            make_bundle(bundles / "a", "a")
            point_to(bundles / "current", bundles / "a")
        keys = {"events": str(tmp_path / "events.db"), **keys}
        log = tmp_path / f"log{len(servers)}" / "log"
        running = Server(bundles / "current", log, opener=OPENER, **keys)
        servers.append(running)
        if wait:
            running.wait()
        return running

    yield start
    for running in servers:
        running.kill()


@pytest.fixture(scope="session")
def tiny_server(tiny_bundle, tmp_path_factory):
    """A server of the tiny bundle with two workers."""
    folder = tmp_path_factory.mktemp("tiny_server")
    with Server(tiny_bundle, folder / "log", opener=RECOMMENDER, workers=2) as running:
        running.wait(seconds=120)
        running.wait("worker ready", count=2)
        yield running
