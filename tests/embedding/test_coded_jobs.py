"""The way of coded vectors by commands: from embed to a server that answers out of the bundle."""

import re

import pytest

from embedding.features.store import FeatureTable
from recsys.serving.server.process import OPENER
from recsys.sharding.plan import read_plan
from tests.serving import tiny
from tests.serving.server.running import Server
from tests.small_runs import losses


@pytest.mark.slow
def test_coded_vectors_are_embedded_trained_on_exported_and_served(tiny_workspace, job, tmp_path):
    place = ["data=demo", f"workspace={tiny_workspace}"]

    def done(name, *arguments, ranks=0):
        ended = job(name, *place, *arguments, ranks=ranks)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    # Vectors that are there in fp16 are coded, and none is encoded anew.
    assert "2 bits each" in done("embed", *tiny.ENCODERS, "vector_bits=2")
    tables = {
        n: FeatureTable(tiny_workspace / "features" / n) for n in ("semantic", "style", "text")
    }
    assert all(table.manifest.bits == 2 for table in tables.values())
    assert "nearest by text" in done("neighbours")
    tiny.train(tiny_workspace, job, "coded", "model.dropout=0")
    tiny.train(tiny_workspace, job, "by_two", "model.dropout=0", ranks=2)
    alone, by_two = (dict(losses(tiny_workspace, name)) for name in ("coded", "by_two"))
    assert alone == pytest.approx(by_two, abs=1e-4)
    plan = read_plan(tiny_workspace / "runs" / "coded" / "plan.json")
    assert {table.dtype for table in plan.tables if table.frozen} == {"2 bits"}
    assert "AUC" in done("evaluate", "run.name=coded")
    exported = done("export", "run.name=coded")
    (most,) = re.findall(r"probabilities differ by at most (\S+);", exported)
    assert float(most) < 1e-3  # fp16 of the bundle against decoded fp32
    bundle, log = tiny_workspace / "bundles" / "current", tmp_path / "log"
    with Server(bundle, log, opener=OPENER) as server:
        server.wait()
        answer = server.post("/v1/recommend", {"user": "u00001", "k": 3}).json
    assert len(answer["items"]) == 3
