"""Container files: Dockerfile, compose.yaml and Kubernetes files, checked without daemon or cluster.

hadolint reads the Dockerfile, the schemas of the Compose specification and of Kubernetes the YAML
files; rules of ours hold them to the repository: what is copied exists, what is installed is copied.
"""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import compose_spec
import kubernetes_validate
import pytest
import yaml
from hydra import compose, initialize_config_dir

from launch import serve
from recsys.config import from_config
from recsys.job import typed_arguments
from recsys.serving.server.config import ServeConfig

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "1.37"
TARGETS = ("serve", "train-cpu", "train-gpu")


def read_stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of every stage, those of the stages it is built on before its own."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    stages: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            image, _, name = rest.split()
            stages[name] = [*stages.get(image, [("FROM", image)])]
        elif name:
            stages[name].append((word, " ".join(rest.split())))
    return stages


STAGES = read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))


def of_kind(target: str, word: str) -> list[str]:
    return [rest for kind, rest in STAGES[target] if kind == word]


def is_sent_to_the_builder(name: str) -> bool:
    """Whether .dockerignore lets a file of the root reach the builder; the last match counts."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#") and fnmatch.fnmatch(name, line.lstrip("!")):
            sent = line.startswith("!")
    return sent


def compose_file() -> dict:
    """compose.yaml with the default of every variable, checked against the specification."""
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "$" not in re.sub(r"^ *#.*$", "", text, flags=re.MULTILINE), "a variable has no default"
    compose_spec.PyCompose.from_yaml(text)  # raises with line and key
    return yaml.safe_load(text)


def kubernetes_files() -> list[dict]:
    text = (ROOT / "launch" / "cluster" / "serving.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


def the(kind: str) -> dict:
    (found,) = [document for document in kubernetes_files() if document["kind"] == kind]
    return found


def test_hadolint_has_nothing_to_say_of_the_dockerfile():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed (requirements-dev.txt)")
    done = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_image_is_whole(target):
    """Every path copied exists and reaches the builder; every file installed from was copied before."""
    present: set[str] = set()
    for word, rest in STAGES[target]:
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert is_sent_to_the_builder(source), f"{source}: add it to .dockerignore"
                present.add(source)
        for name in re.findall(r"-[rc] (\S+\.txt)", rest) if word == "RUN" else ():
            assert name in present, f"{name} is installed from before it is copied"
            for included in re.findall(r"^-r (\S+)", (ROOT / name).read_text(), re.MULTILINE):
                assert included in present, f"{name} includes {included}"
    assert {"configs", "embedding", "launch", "recsys"} <= present


@pytest.mark.parametrize("target", TARGETS)
def test_image_runs_as_a_user_without_rights(target):
    users = of_kind(target, "USER")
    assert users[-1] == "10001:10001"
    assert STAGES[target].index(("USER", users[-1])) > max(
        i for i, (word, _) in enumerate(STAGES[target]) if word in ("RUN", "COPY")
    )


def test_nothing_of_a_workspace_reaches_the_builder():
    for name in ("workspaces", ".git", ".venv", "tests", ".env"):
        assert not is_sent_to_the_builder(name)


def test_serving_image_installs_neither_torchrec_nor_cuda():
    installs = " ".join(rest for rest in of_kind("serve", "RUN") if "pip install" in rest)
    files = set(re.findall(r"-r (\S+\.txt)", installs))
    assert files == {"requirements-serve.txt"}
    text = (ROOT / "requirements-serve.txt").read_text(encoding="utf-8")
    packages = {re.split(r"[\[<>=]", line)[0] for line in text.splitlines() if line[:1].isalpha()}
    assert "fastapi" in packages
    assert not packages & {"torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "duckdb", "datasets"}
    # The constraint is what keeps CUDA out: torch's CPU build has a version of its own.
    assert "-c requirements-cpu.txt torch torchvision" in installs
    assert re.search(
        r"^torch==\S+\+cpu$", (ROOT / "requirements-cpu.txt").read_text(), re.MULTILINE
    )


def test_serving_image_starts_the_server_as_its_first_process_and_checks_its_health():
    (entry,) = of_kind("serve", "ENTRYPOINT")
    words = json.loads(entry)  # the form without a shell, which would not pass SIGTERM on
    assert words[:2] == ["python", "launch/serve.py"]
    (port,) = of_kind("serve", "EXPOSE")
    assert f"port={port}" in words
    (check,) = of_kind("serve", "HEALTHCHECK")
    assert f"http://127.0.0.1:{port}/readyz" in check


def serve_config(arguments: list[str]) -> ServeConfig:
    """The settings that the server would have of its arguments."""
    with initialize_config_dir(version_base=None, config_dir=str(ROOT / "configs")):
        return from_config(
            ServeConfig, compose("serve", typed_arguments(arguments, serve.KEYS)), ""
        )


def test_every_file_starts_the_server_with_settings_that_it_has():
    (entry,) = of_kind("serve", "ENTRYPOINT")
    (command,) = of_kind("serve", "CMD")
    always = json.loads(entry)[2:]
    image = serve_config([*always, *json.loads(command)])
    assert (image.host, image.port) == ("0.0.0.0", 8000)
    composed = serve_config([*always, *compose_file()["services"]["serve"]["command"]])
    assert composed.bundle == image.bundle and composed.events is None
    (container,) = the("Deployment")["spec"]["template"]["spec"]["containers"]
    pod = serve_config([*always, *container["args"]])
    assert pod.bundle == image.bundle and pod.events.startswith("postgresql+psycopg://")
    assert pod.workers <= int(container["resources"]["requests"]["cpu"])


def test_grace_periods_leave_the_server_its_time_to_drain():
    drain = serve_config(["bundle=B"]).drain_seconds
    pod = the("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    asleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > drain + asleep
    assert int(compose_file()["services"]["serve"]["stop_grace_period"].removesuffix("s")) > drain


def test_compose_file_follows_the_specification_and_builds_our_targets():
    services = compose_file()["services"]
    built = {name: s["build"]["target"] for name, s in services.items() if "build" in s}
    assert built == {"serve": "serve", "train": "train-cpu"}
    assert set(built.values()) <= set(STAGES)


def test_compose_file_opens_the_server_on_this_machine_alone():
    services = compose_file()["services"]
    (port,) = of_kind("serve", "EXPOSE")
    assert services["serve"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert not any(s.get("ports") for name, s in services.items() if name != "serve")
    assert services["serve"]["read_only"] and services["serve"]["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("document", kubernetes_files(), ids=lambda d: d["kind"])
def test_kubernetes_file_follows_the_schema(document):
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    broken = {**document, "spec": {**document["spec"], "replikas": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_pods_of_the_training_job_follow_the_schema_of_a_pod():
    """The operator's own schema is not a part of Kubernetes; what it makes of the template is."""
    job = yaml.safe_load((ROOT / "launch" / "cluster" / "pytorchjob.yaml").read_text())
    template = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}, **template}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    broken = {**pod, "spec": {**pod["spec"], "volumez": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_service_and_budget_select_the_pods_of_the_deployment():
    pods = the("Deployment")["spec"]["template"]
    labels = pods["metadata"]["labels"]
    assert the("Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert the("Service")["spec"]["selector"] == labels
    assert the("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    (container,) = pods["spec"]["containers"]
    (port,) = container["ports"]
    assert the("Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert str(port["containerPort"]) == of_kind("serve", "EXPOSE")[0]


def test_pods_have_no_rights_and_mount_what_they_name():
    pod = the("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert (
        f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        == (of_kind("serve", "USER")[-1])
    )
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    # Passwords and tokens come from a secret, none stands in the file.
    assert all("secretKeyRef" in v["valueFrom"] for v in container["env"])
    assert {v["name"] for v in container["env"]} == {"PGPASSWORD", "TESSERA_TOKEN"}
    assert {p for p in container if p.endswith("Probe")} == {
        *("startupProbe", "readinessProbe", "livenessProbe"),
    }


def test_training_and_serving_share_one_volume_claim():
    job = yaml.safe_load((ROOT / "launch" / "cluster" / "pytorchjob.yaml").read_text())
    training = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["volumes"]
    serving = the("Deployment")["spec"]["template"]["spec"]["volumes"]
    claims = [
        {v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
        for volumes in (training, serving)
    ]
    assert claims[0] == claims[1]
