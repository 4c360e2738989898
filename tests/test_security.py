"""Files from strangers: nothing in them is run, none leads out of its folder, none is shown unescaped.

SECURITY.md says what is promised. Pictures have tests of their own
(tests/embedding/image/test_pictures.py), pages of items, users and runs too (tests/report/).
"""

import ast
import dataclasses
import io
import json
import os
import pickle
import time
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from embedding.features.store import FeatureTable, finished_shard
from embedding.image.backbone import build_backbone
from embedding.image.config import ImageConfig
from embedding.text.encoder import load_text_encoder
from recsys.config import from_config
from recsys.config_files import check_config_folder
from recsys.data.recipe import Recipe
from recsys.job import check_config_arguments, with_local_config_folder
from recsys.report.plan_page import write_plan_page
from recsys.run.assembly import build_plannable, plan_model
from recsys.run.config import read_run_config
from recsys.schema import name_problems, read_manifest, write_manifest
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.plan import read_plan, write_plan
from recsys.study.suite import SuiteConfig
from tests import tiny_world
from tests.feature_tables import write_table
from tests.test_broken_configs import broken
from tests.test_tree import SOURCES, name_of, tree_of


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


# What the code may not call


def calls():
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                yield f"{name_of(path)}:{node.lineno}", ast.unparse(node.func), keywords


def test_no_code_unpickles_evaluates_or_starts_a_shell():
    found = []
    num_loads = 0
    for where, name, keywords in calls():
        last = name.rsplit(".", 1)[-1]
        if name == "torch.load":
            num_loads += 1
            found += [where] * (keywords.get("weights_only") != "True")
        elif name in ("np.load", "numpy.load"):
            num_loads += 1
            found += [where] * (keywords.get("allow_pickle", "False") != "False")
        elif name == "yaml.load":
            found += [where] * (keywords.get("Loader") != "_Loader")
        elif name in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load"):
            found.append(where)
        elif last in ("instantiate", "read_pickle", "get_class", "get_object"):
            found.append(where)
        found += [where] * ("trust_remote_code" in keywords or keywords.get("shell") == "True")
    modules = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                found += [name_of(path)] * bool(modules & {n.split(".")[0] for n in names})
    assert num_loads > 5
    # Messages between the processes of one server, over socket pairs that nobody else can open.
    assert found == ["recsys/serving/server/frames.py"]


# Files that hold code


def test_array_file_that_holds_code_is_refused_and_not_run(tmp_path):
    folder = tmp_path / "features" / "text"
    write_table(folder, np.ones((10, 3), dtype=np.float16))
    shard = next(folder.glob("shard-?????.npy"))
    mark = tmp_path / "mark"
    np.save(shard, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"shard-00000.npy: cannot be read .*Python objects"):
        FeatureTable(folder)
    assert not mark.exists()


@pytest.mark.parametrize("form", ["plain pickle", "torch archive"])
def test_weights_file_that_holds_code_is_refused_and_not_run(tmp_path, form):
    mark, weights = tmp_path / "mark", tmp_path / "weights.pt"
    content = pickle.dumps(Payload(mark))
    if form == "torch archive":
        with io.BytesIO() as stream:
            with zipfile.ZipFile(stream, "w") as archive:
                archive.writestr("archive/data.pkl", content)
                archive.writestr("archive/version", "3\n")
            content = stream.getvalue()
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"encoder.image.weights=.*: cannot be read"):
        build_backbone(ImageConfig(backbone="squeezenet1_0", weights=str(weights)))
    assert not mark.exists()


def test_text_model_that_brings_its_own_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "mark"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"encoder.text.path=.*not part of Sentence Transformers"):
        load_text_encoder(str(folder), 32, torch.device("cpu"))
    assert not mark.exists()


# Configuration

EVIL = {
    "callback": "# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}\n",
    "package": "# @package hydra.callbacks\nx: {y: 1}\n",
    "target": "name: x\nitems: {_target_: os.system}\n",
    "target escaped": 'name: x\n"_tar\\x67et_": os.system\n',
    "group": "defaults:\n  - override /hydra/launcher: x\nname: x\n",
    "group as text": "defaults:\n  - /hydra/launcher/x\nname: x\n",
    "object": "name: !!python/object/apply:os.system [ls]\n",
    "environment": "name: ${oc.env:HOME}\n",
    "in a list": "pairs:\n  - {file: '${oc.env:TOKEN}'}\n",
    "behind a tab": 'name: "${\\toc.env:HOME}"\n',
    "behind a line end": 'name: "${\\noc.env:HOME}"\n',
    "name put together": "name: ${${a}.${b}:HOME}\na: oc\nb: env\n",
    "name put together of pieces": "name: ${o${workspace}.env:HOME}\n",
    "left over": "name: ${${workspace}oc.env:HOME}\n",
    "escaped": "name: \\${oc.env:HOME}\n",
    "as a key": "features: {'${oc.env:HOME}': {}}\n",
    "as an argument": "name: ${oc.decode:${oc.env:HOME}}\n",
    "other resolver": "name: ${hydra:runtime.cwd}\n",
    "doubling": "a: ${b}${b}\nb: ${c}${c}\nc: ${workspace}${workspace}\n",
    "many": "name: " + "${workspace}" * 9 + "\n",
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{n}: &{n} [{','.join(f'*{p}' for _ in range(9))}]\n" for p, n in pairwise("abcdefgh")
    ),
    "alias of itself": "a: &a [*a]\n",
    "deep": "a: " + "[" * 200 + "]" * 200 + "\n",
}


@pytest.mark.parametrize("case", EVIL)
def test_recipe_that_reaches_for_hydra_or_the_environment_is_refused(tmp_path, case):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "evil.yaml").write_text(EVIL[case])
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"configuration: .*evil.yaml: "):
        check_config_arguments(["data=evil", f"--config-dir={tmp_path}"])
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("way", ["at the top", "through a link to the top", "through a link"])
def test_file_that_groups_can_reach_is_looked_at_wherever_it_lies(tmp_path, way):
    evil = "name: ${oc.env:HOME}\n"
    folder = tmp_path / "strange"
    (folder / "data").mkdir(parents=True)
    if way == "through a link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "evil.yaml").write_text(evil)
        (folder / "data" / "more").symlink_to(tmp_path / "elsewhere")
    else:
        (folder / "evil.yaml").write_text(evil)
    if way == "through a link to the top":
        (folder / "data" / "top").symlink_to(folder)
    with pytest.raises(ValueError, match=r"configuration: .*evil.yaml: .*may refer to"):
        check_config_arguments([f"--config-dir={folder}"])


def test_folder_of_recipes_is_found_from_home_and_named_where_it_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    for named in (["--config-dir=~/mine"], ["--config-dir", "~/mine"], ["-cd", "~/mine"]):
        assert with_local_config_folder(["data=x", *named])[-1] == f"--config-dir={tmp_path}/mine"
    assert with_local_config_folder(["data=x"]) == ["data=x"]
    with pytest.raises(ValueError, match=r"--config-dir=~/other: no such folder \(/"):
        with_local_config_folder(["--config-dir=~/other"])


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", ".", ".hidden", "", "C:\\x", "..\\x"])
def test_name_that_becomes_a_folder_leads_nowhere_else(name):
    told = r"name=.*expected a plain folder name"
    with pytest.raises(ValueError, match="cluster." + told):
        from_config(ClusterConfig, {"name": name}, "cluster")
    with pytest.raises(ValueError, match="run." + told):
        read_run_config({"run": {"name": name}})
    suite = {"name": name, "reference": "a", "variants": {"a": {}, name: {}}}
    with pytest.raises(ValueError, match="suite." + told) as caught:
        from_config(SuiteConfig, suite, "suite")
    assert f"suite.variants={name!r}" in str(caught.value)
    for fine in ("a", "a b", "1e3", "\u00fc=[x]", "a..b"):
        assert not name_problems("run.name", fine)


def test_recipe_may_refer_to_its_workspace_and_repeat_itself_a_little(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kind.yaml").write_text(
        "name: kind\nsource: ${workspace}/raw/${data.name}\nx: &x {kind: id_list}\n"
        "items: {features: {a: *x, b: *x, c: {<<: *x, min_count: 2}}}\n"
    )
    check_config_arguments([f"--config-dir={tmp_path}"])


def test_folders_beside_the_groups_of_presets_are_not_read_and_cannot_be_referred_to(tmp_path):
    (tmp_path / "launch" / "cluster").mkdir(parents=True)
    (tmp_path / "launch" / "cluster" / "job.yaml").write_text("command: ${oc.env:HOME}\n")
    (tmp_path / "data").mkdir()
    recipe = tmp_path / "data" / "mine.yaml"
    recipe.write_text("name: mine\ndefaults: [override /model: dcn_v2]\n")
    check_config_arguments([f"--config-dir={tmp_path}"])
    for entry in (
        "/launch/cluster/job",
        "/launch: job",
        "optional /launch/cluster: job",
        "../launch/x",
    ):
        recipe.write_text(f"name: mine\ndefaults: [{entry}]\n")
        with pytest.raises(
            ValueError, match="mine.yaml: defaults .*launch.*: expected one of .*data"
        ):
            check_config_arguments([f"--config-dir={tmp_path}"])


def test_text_that_looks_like_an_interpolation_is_text_in_what_is_read_from_files(monkeypatch):
    monkeypatch.setenv("TOKEN", "secret")
    for text in ("${oc.env:TOKEN}", "a${oc.env:TOKEN}b"):
        cluster = from_config(ClusterConfig, {"name": text}, "cluster")
        assert cluster.name == text
        sections = {
            "interactions": {"file": "log.csv", "label": "label"},
            "items": {"file": "items.csv", "text": [text]},
            "split": {"strategy": "random"},
        }
        recipe = from_config(Recipe, {"name": text, **sections}, "data")
        assert recipe.items.text == [text] and recipe.name == text
    with pytest.raises(ValueError, match="cluster.hosts"):
        from_config(ClusterConfig, {"hosts": "${oc.env:TOKEN}"}, "cluster")
    assert "secret" not in str(read_run_config({"run": {"name": "${oc.env:TOKEN}"}}))


def test_folders_that_cannot_be_looked_through_are_refused():
    check_config_arguments(["data=demo", "train.epochs=3", "--cfg", "job"])
    for argument in ("--config-path=x", "-cp=x", "hydra.searchpath=[x]", "+hydra.searchpath=[x]"):
        with pytest.raises(ValueError, match="name their folder with --config-dir"):
            check_config_arguments(["data=demo", argument])


def test_recipe_that_names_what_hydra_may_start_ends_before_hydra_begins(tmp_path, job):
    mark = tmp_path / "mark"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "evil.yaml").write_text(
        f"# @package _global_\nhydra:\n  callbacks:\n    x: {{_target_: os.mkdir, path: {mark}}}\n"
    )
    done = job("prepare", f"--config-dir={tmp_path}", "data=evil")
    assert done.returncode == 1 and "only the jobs' own files may configure" in done.stderr
    assert "Traceback" not in done.stderr and not mark.exists()


def test_the_configurations_that_come_along_reach_for_neither(repository):
    check_config_folder(repository / "configs", is_ours=True)


# Manifests and plans


@pytest.mark.parametrize("name", ["../x.npy", "/etc/passwd", "a/../../x.npy", ""])
def test_manifest_does_not_leave_its_folder(tmp_path, name):
    folder = tmp_path / "features" / "text"
    write_table(folder, np.ones((4, 3), dtype=np.float16))
    for file, entry in (("manifest.json", "shards"), (".shard-00000.json", None)):
        content = json.loads((folder / file).read_text())
        (content[entry][0] if entry else content)["file"] = name
        (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"manifest.json: cannot be read .*leaves the folder"):
        FeatureTable(folder)
    assert finished_shard(folder, 0) is None

    split = {"num_rows": 1, "num_positives": 1, "files": [name], "file_rows": [1]}
    (tmp_path / "prepared").mkdir()
    write_manifest(tmp_path / "prepared", tiny_world.manifest())
    path = tmp_path / "prepared" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"splits": {"train": split}}))
    with pytest.raises(ValueError, match=r"cannot be read .*leaves the folder"):
        read_manifest(tmp_path)


def test_vectors_that_are_not_finite_are_refused_where_they_are_written_and_read(tmp_path):
    vectors = np.ones((10, 3), dtype=np.float16)
    vectors[7, 1] = np.inf
    with pytest.raises(ValueError, match="a vector of inf or nan for item row 7"):
        write_table(tmp_path / "text", vectors, shard_rows=4)
    write_table(tmp_path / "text", np.ones((10, 3), dtype=np.float16), shard_rows=4)
    np.save(tmp_path / "text" / "shard-00001.npy", vectors[4:8])
    with pytest.raises(ValueError, match="1 vectors hold inf or nan, first at item row 7"):
        FeatureTable(tmp_path / "text").verify()


@pytest.fixture(scope="module")
def plan():
    """A plan for two ranks."""
    config = read_run_config({"model": {"embedding_dim": 8, "modalities": []}})
    ranker, tables = build_plannable(
        config=config, manifest=tiny_world.manifest(), modality_dims={}, device_type="cpu"
    )
    cluster = from_config(ClusterConfig, {"accelerators_per_host": 2}, "cluster")
    return plan_model(
        config=config,
        manifest=tiny_world.manifest(),
        ranker=ranker,
        tables=tables,
        cluster=cluster,
    )


@pytest.mark.parametrize("kind", ["plan", "manifest", "features"])
@pytest.mark.parametrize("max_examples", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_content_broken_at_random_is_refused_with_its_file_or_read(
    tmp_path, plan, kind, max_examples
):
    if kind == "plan":
        path, read = tmp_path / "plan.json", read_plan
        write_plan(path, plan)
    elif kind == "manifest":
        (tmp_path / "prepared").mkdir()
        write_manifest(tmp_path / "prepared", tiny_world.manifest())
        path, read = tmp_path / "prepared" / "manifest.json", lambda _: read_manifest(tmp_path)
    else:
        write_table(tmp_path / "text", np.ones((10, 3), dtype=np.float16), shard_rows=4)
        path, read = tmp_path / "text" / "manifest.json", lambda _: FeatureTable(tmp_path / "text")
    content = json.loads(path.read_text())

    @settings(
        max_examples=max_examples, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data):
        written = json.dumps(broken(content, data)[0]).encode()
        if data.draw(st.booleans()):
            place = data.draw(st.integers(0, len(written)))
            written = written[:place] + data.draw(st.binary(max_size=5))
        path.write_bytes(written)
        try:
            read(path)
        except ValueError as error:
            assert path.name in str(error) or str(path.parent) in str(error)

    check()


# Pages


def test_page_of_a_plan_shows_hostile_names_as_text(tmp_path, plan):
    hostile = "<script>alert(1)</script>'\"><img src=x onerror=alert(1)>"
    file = tmp_path / "plan.json"
    write_plan(
        file, dataclasses.replace(plan, summary=dataclasses.replace(plan.summary, verdict=hostile))
    )
    file.write_text(file.read_text().replace('"user_id"', json.dumps(hostile)))
    write_plan_page(tmp_path / "plan.html", read_plan(file), title=hostile)
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page and "<img" not in page
    assert "default-src 'none'" in page
