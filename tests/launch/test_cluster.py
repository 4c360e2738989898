"""Launch files for clusters: the commands in them are those of a laptop, and two hosts train as one.

Two hosts are two torchrun agents with one rendezvous, each in a network namespace of its own with a
cable between them, where the machine lets us make these.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hydra import compose, initialize_config_dir
from torch.distributed.run import get_args_parser

from launch import prepare, train
from recsys.config import plain, read_job
from recsys.job import typed_arguments
from recsys.run.config import SECTIONS, read_run_config

CLUSTER = Path(__file__).resolve().parents[2] / "launch" / "cluster"
KUBERNETES = "1.37"
ARGUMENTS = ["train", "data=demo", "workspace=/shared/a b", "run.name=mine", "train.epochs=2"]


def lines(script, *arguments, path=None, **variables):
    """The commands that a script would run, as words."""
    done = subprocess.run(
        ["bash", str(CLUSTER / script), *arguments],
        env={"PATH": path or os.environ["PATH"], "DRY_RUN": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def shown(script, *arguments, **variables):
    """The words of the one command that a script would run."""
    (words,) = lines(script, *arguments, **variables)
    return words


def read(words):
    """What torchrun makes of a command; and the configuration the job would run, composed."""
    parsed = get_args_parser().parse_args(words[1:])
    job = Path(parsed.training_script)
    assert (CLUSTER.parents[1] / job).is_file()
    with initialize_config_dir(version_base=None, config_dir=str(CLUSTER.parents[1] / "configs")):
        overrides = typed_arguments(parsed.training_script_args, train.KEYS)
        cfg = compose(job.stem, overrides=overrides)
    return parsed, cfg


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch", "ray.sh", "ray.sbatch"])
def test_script_is_sound(name):
    assert subprocess.run(["bash", "-n", str(CLUSTER / name)], check=False).returncode == 0
    shellcheck = shutil.which("shellcheck") or shutil.which(
        "shellcheck", path=str(Path(sys.executable).parent)
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (requirements-dev.txt)")
    done = subprocess.run(
        [shellcheck, str(CLUSTER / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_torchrun_meets_at_one_place_and_starts_the_laptops_command():
    words = shown("torchrun.sh", *ARGUMENTS, HOSTS="2", RENDEZVOUS="first:29401", JOB_ID="j7")
    parsed, cfg = read(words)
    assert (parsed.nnodes, parsed.rdzv_backend, parsed.rdzv_endpoint, parsed.rdzv_id) == (
        *("2", "c10d", "first:29401", "j7"),
    )
    assert cfg.workspace == "/shared/a b" and cfg.train.epochs == 2
    config = read_run_config({name: plain(cfg.get(name)) for name in SECTIONS})
    assert config.run.name == "mine"


def test_machine_that_is_not_known_by_its_name_says_its_address():
    variables = {"HOSTS": "2", "RENDEZVOUS": "10.0.0.1:29400", "RANKS_PER_HOST": "4"}
    first = shown("torchrun.sh", *ARGUMENTS, LOCAL_ADDRESS="10.0.0.1", **variables)
    other = shown("torchrun.sh", *ARGUMENTS, LOCAL_ADDRESS="10.0.0.2", **variables)
    assert read(first)[0].rdzv_conf == "is_host=true" and read(first)[0].nproc_per_node == "4"
    assert read(other)[0].rdzv_conf == "is_host=false"
    assert read(other)[0].local_addr == "10.0.0.2"


def test_job_that_is_none_is_named():
    for arguments, sentence in (([], "usage"), (["trane"], "launch/trane.py: no such job")):
        done = subprocess.run(
            ["bash", str(CLUSTER / "torchrun.sh"), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and sentence in done.stderr


def test_slurm_starts_one_torchrun_on_each_machine(tmp_path):
    """With stand-ins for scontrol and srun: the latter runs its command once for every task."""
    scripts = {
        "scontrol": 'test "$1 $2 $3" = "show hostnames node[7-9]" && printf "node7\\nnode8\\nnode9\\n"',
        "srun": 'test "$1" = --kill-on-bad-exit=1; shift; "$@"',
    }
    for name, body in scripts.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\nset -e\n{body}\n")
        (tmp_path / name).chmod(0o755)
    words = shown(
        "slurm.sbatch",
        *ARGUMENTS,
        path=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_JOB_NODELIST="node[7-9]",
        SLURM_JOB_NUM_NODES="3",
        SLURM_JOB_ID="41234",
        SLURM_SUBMIT_DIR=str(CLUSTER.parents[1]),
    )
    parsed, cfg = read(words)
    assert (parsed.nnodes, parsed.rdzv_endpoint, parsed.rdzv_id) == ("3", "node7:21234", "41234")
    assert cfg.run.name == "mine"
    options = [
        line.split()[1]
        for line in (CLUSTER / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH")
    ]
    known = argparse.ArgumentParser()
    for name in ("job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time"):
        known.add_argument(f"--{name}")
    known.add_argument("--output"), known.add_argument("--signal")
    known.add_argument("--requeue", action="store_true")
    assert known.parse_args(options).ntasks_per_node == "1"


def test_pods_run_the_laptops_command_where_the_operator_says(monkeypatch):
    content = yaml.safe_load((CLUSTER / "pytorchjob.yaml").read_text())
    assert (content["apiVersion"], content["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec = content["spec"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert spec["elasticPolicy"]["maxReplicas"] == worker["replicas"] == 2
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # the operator looks for this one
    volumes = {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    # What the operator sets in every pod (training-operator, pkg/controller.v1/pytorch/elastic.go).
    for name, value in {
        "PET_RDZV_BACKEND": spec["elasticPolicy"]["rdzvBackend"],
        "PET_RDZV_ENDPOINT": "tessera-train-worker-0:23456",
        "PET_NNODES": "1:2",
        "PET_NPROC_PER_NODE": spec["nprocPerNode"],
        "PET_MAX_RESTARTS": str(spec["elasticPolicy"]["maxRestarts"]),
    }.items():
        monkeypatch.setenv(name, value)
    parsed, cfg = read(container["command"])
    assert container["command"][0] == "torchrun"
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.max_restarts) == ("1:2", "8", 10)
    assert cfg.workspace.startswith(mounts["workspaces"])
    read_run_config({name: plain(cfg.get(name)) for name in SECTIONS})


# Ray

SECRET = {"RAY_HEAD": "first:6380", "RAY_AUTH_TOKEN": "secret"}
PREPARE = ["data=demo", "data.source=/shared/raw", "workspace=/shared/a b"]


def prepared_by(words):
    """The configuration that a command of launch/prepare.py would run with, composed and checked."""
    python, script, *overrides = words
    assert python == "python" and (CLUSTER.parents[1] / script).is_file()
    with initialize_config_dir(version_base=None, config_dir=str(CLUSTER.parents[1] / "configs")):
        cfg = compose("prepare", overrides=typed_arguments(overrides, prepare.KEYS))
    _, config = read_job(cfg, prepare.KEYS)
    return cfg, config


def test_ray_begins_on_the_machine_that_runs_the_job_and_the_others_join_it():
    start, job = lines("ray.sh", *PREPARE, **SECRET, LOCAL_ADDRESS="first", OMP_NUM_THREADS="1")
    cores = str(len(os.sched_getaffinity(0)))
    assert start[:4] == ["ray", "start", "--num-cpus", cores]
    assert start[4:] == ["--head", "--port", "6380", "--include-dashboard", "false", "--block"]
    cfg, config = prepared_by(job)
    assert cfg.workspace == "/shared/a b"
    assert (config.engine, config.ray.address) == ("ray", "first:6380")
    (join,) = lines("ray.sh", *PREPARE, **SECRET, LOCAL_ADDRESS="second", SPILL="/d", CPUS="3")
    assert join[:6] == ["ray", "start", "--num-cpus", "3", "--temp-dir", "/d"]
    assert join[6:] == ["--address", "first:6380", "--block"]


def stand_in(folder, name, body):
    """Put a script into a folder, in place of a command."""
    (folder / name).write_text(f"#!/usr/bin/env bash\nset -e\n{body}\n")
    (folder / name).chmod(0o755)


def ray_script(folder, port, **variables):
    """Run ray.sh with the commands of a folder, for a head at a port of this machine."""
    return subprocess.run(
        ["bash", str(CLUSTER / "ray.sh"), "data=demo"],
        env={
            "PATH": f"{folder}:{os.environ['PATH']}",
            "RAY_AUTH_TOKEN": "secret",
            "RAY_HEAD": f"127.0.0.1:{port}",
            "PORT": str(port),
            "FOLDER": str(folder),
            **variables,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_machines_without_a_head_end_with_an_error(tmp_path, port):
    stand_in(tmp_path, "ray", "true")
    done = ray_script(tmp_path, port, LOCAL_ADDRESS="other", WAIT_SECONDS="1")
    assert done.returncode == 1
    assert f"RAY_HEAD=127.0.0.1:{port}: no head answers; LOCAL_ADDRESS says" in done.stderr


def test_a_machine_that_is_not_let_in_ends_with_an_error_and_one_that_was_in_does_not(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        stand_in(tmp_path, "ray", "echo 'wrong token'; exit 1")
        done = ray_script(tmp_path, port, LOCAL_ADDRESS="other")
        assert done.returncode == 1 and "wrong token" in done.stderr
        stand_in(tmp_path, "ray", "echo 'Ray runtime started.'; echo 'the head is gone'; exit 1")
        done = ray_script(tmp_path, port, LOCAL_ADDRESS="other")
        assert done.returncode == 0, done.stderr


def test_head_waits_for_its_machines_and_ends_with_the_job_alone(tmp_path, port):
    listen = (
        "import os, socket, time; s = socket.create_server(('127.0.0.1', int(os.environ['PORT'])));"
    )
    stand_in(
        tmp_path,
        "ray",
        f'echo "$@" >> "$FOLDER/ray.txt"; echo $$ > "$FOLDER/pid"\n'
        f'exec {sys.executable} -c "{listen} time.sleep(60)"',
    )
    stand_in(
        tmp_path, "python", 'echo "${@: -3}" >> "$FOLDER/python.txt"; [[ $1 == -c ]] || exit 3'
    )
    done = ray_script(tmp_path, port, LOCAL_ADDRESS="127.0.0.1", HOSTS="4", WAIT_SECONDS="30")
    assert done.returncode == 3, done.stderr
    address = f"127.0.0.1:{port}"
    waits, job = (tmp_path / "python.txt").read_text().splitlines()
    assert waits == f"{address} 4 30"
    assert job == f"engine=ray ray.address={address} data=demo"
    (start,) = (tmp_path / "ray.txt").read_text().splitlines()  # and no `ray stop`
    assert start.startswith("start --num-cpus") and "--head" in start
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_ray_is_not_started_without_a_secret():
    done = subprocess.run(
        ["bash", str(CLUSTER / "ray.sh"), *PREPARE],
        env={"PATH": os.environ["PATH"], "RAY_HEAD": "first:6380", "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "RAY_AUTH_TOKEN: missing" in done.stderr


def test_ray_options_are_those_that_ray_has():
    ray = pytest.importorskip("ray.scripts.scripts", reason="ray is not installed")
    known = {option for parameter in ray.start.params for option in parameter.opts}
    used = re.findall(r"(--[a-z-]+)", (CLUSTER / "ray.sh").read_text())
    assert {"--head", "--block"} <= set(used) <= known


def test_slurm_starts_ray_on_each_machine(tmp_path):
    """With stand-ins for scontrol and srun: the latter runs its command as one of the machines."""
    scripts = {
        "scontrol": 'test "$1 $2 $3" = "show hostnames node[7-9]" && printf "node7\\nnode8\\n"',
        "srun": 'test "$1" = --kill-on-bad-exit=1; shift; SLURMD_NODENAME=$NODE "$@"',
    }
    for name, body in scripts.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\nset -e\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_ID": "41234"}
    slurm |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "16"}
    slurm["SLURM_SUBMIT_DIR"] = str(CLUSTER.parents[1])
    path = f"{tmp_path}:{os.environ['PATH']}"
    head, job = lines("ray.sbatch", *PREPARE, path=path, NODE="node7", **slurm)
    assert head[2:5] == ["--num-cpus", "16", "--head"]
    assert prepared_by(job)[1].ray.address == "node7:21234"
    (join,) = lines("ray.sbatch", *PREPARE, path=path, NODE="node8", **slurm)
    assert join[-3:] == ["--address", "node7:21234", "--block"]


def test_kuberay_runs_the_laptops_command_on_pods_that_share_the_workspace():
    content = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (content["apiVersion"], content["kind"]) == ("ray.io/v1", "RayJob")
    cluster = content["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    cfg, config = prepared_by(shlex.split(content["spec"]["entrypoint"].replace("/tessera/", "")))
    assert (config.engine, config.ray.address) == ("ray", "auto")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert groups[1]["minReplicas"] <= groups[1]["replicas"] <= groups[1]["maxReplicas"]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
        assert cfg.workspace.startswith(mounts["workspaces"])
        assert {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"} in container["env"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
        kubernetes_validate.validate(
            pod | {"spec": group["template"]["spec"]}, KUBERNETES, strict=True
        )


# Two hosts

FIRST, SECOND = "10.213.7.1", "10.213.7.2"


@pytest.fixture
def hosts():
    """Two network namespaces joined by a cable: (prefix of a command, its interface, its address)."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the command ip (iproute2)")
    mark = uuid.uuid4().hex[:6]
    names = [f"tessera-{mark}-{side}" for side in "ab"]
    ends = [f"ts{mark}{side}" for side in "ab"]

    def ip(*words):
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)

    made = []
    try:
        steps = [("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])]
        for name, end, address in zip(names, ends, (FIRST, SECOND), strict=True):
            steps += [("netns", "add", name), ("link", "set", end, "netns", name)]
            inside = ("netns", "exec", name, "ip")
            steps += [(*inside, "addr", "add", f"{address}/24", "dev", end)]
            steps += [(*inside, "link", "set", device, "up") for device in (end, "lo")]
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"this machine makes no network namespaces: {done.stderr.strip()}")
            made += [step[2]] if step[:2] == ("netns", "add") else []
        yield [
            (["ip", "netns", "exec", name], end, address)
            for name, end, address in zip(names, ends, (FIRST, SECOND), strict=True)
        ]
    finally:
        for name in made:
            ip("netns", "del", name)
        ip("link", "del", ends[0])  # where it never went into a namespace


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hosts_train_like_two_ranks_of_one(hosts, job, tmp_path):
    sizes = ["world.num_items=120", "world.num_users=60", "world.num_exposures=1500"]
    for done in (
        job("demo", f"workspace={tmp_path}", "processes=1", *sizes),
        job("prepare", "data=demo", f"workspace={tmp_path}"),
    ):
        assert done.returncode == 0, done.stderr
    settings = ["data=demo", f"workspace={tmp_path}", "model.modalities=[]", "train.epochs=2"]
    settings += ["model.interest_modalities=[]", "model.embedding_dim=8"]
    settings += ["train.global_batch_size=256", "train.log_every_steps=1"]
    settings += ["tables.user_id.sharding=table_wise"]
    together = job("train", *settings, "run.name=one_host", ranks=2)
    assert together.returncode == 0, together.stderr[-2000:]

    cores = sorted(os.sched_getaffinity(0))
    agents = []
    for index, (prefix, interface, address) in enumerate(hosts):
        # A host's threads are its own: one core each, as the two ranks of one host have.
        on_core = ["taskset", "-c", str(cores[index])] if len(cores) > 1 else []
        agents.append(
            subprocess.Popen(
                [*prefix, *on_core, "bash", str(CLUSTER / "torchrun.sh")]
                + ["train", *settings, "run.name=two_hosts"],
                env={
                    **os.environ,
                    "TORCHRUN": f"{sys.executable} -m torch.distributed.run",
                    "HOSTS": "2",
                    "RANKS_PER_HOST": "1",
                    "RENDEZVOUS": f"{FIRST}:29400",
                    "LOCAL_ADDRESS": address,
                    "GLOO_SOCKET_IFNAME": interface,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(o[-1500:] for o in outputs)
    assert sum("on 2 rank(s)" in output for output in outputs) == 1  # rank 0 alone speaks

    def losses(name):
        lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
        parsed = [json.loads(line) for line in lines]
        return [(p["step"], p["train/loss"]) for p in parsed if "train/loss" in p]

    assert len(losses("one_host")) > 5
    assert losses("two_hosts") == losses("one_host")
