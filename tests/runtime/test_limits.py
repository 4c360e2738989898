"""Cores and memory: the machine's, and the limits of control groups in a folder made up for it."""

import os

import pytest
import torch

from recsys.runtime import limits
from recsys.runtime.env import Env
from recsys.runtime.limits import usable_cores, usable_memory_bytes
from recsys.sharding.cluster import local_cluster

GIB = 1 << 30
PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def cores_with(tmp_path, membership):
    (tmp_path / "membership").write_text(membership)
    return usable_cores(tmp_path / "groups", tmp_path / "membership")


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ("max 100000", "max 100000", 8),
        ("200000 100000", "max 100000", 2),
        ("max 100000", "350000 100000", 3),  # 3.5 cores: a fourth thread would wait for the others
        ("600000 100000", "50000 100000", 1),
        ("9900000 100000", "max 100000", 8),
    ],
)
def test_the_tightest_limit_of_version_two_counts(tmp_path, own, above, expected):
    write(tmp_path / "groups" / "pod" / "job", cpu__max=own)
    write(tmp_path / "groups" / "pod", cpu__max=above)
    assert cores_with(tmp_path, "0::/pod/job\n") == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("400000", 4), ("150000", 1)])
@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_limits_of_version_one_count(tmp_path, quota, expected, folder):
    group = tmp_path / "groups" / folder / "job"
    write(group, cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    lines = f"4:memory:/other\n2:{folder}:/job\n1:cpuset:/\n0::/\n"
    assert cores_with(tmp_path, lines) == expected


def test_in_a_container_the_limit_lies_at_the_root_whatever_the_path_says(tmp_path):
    write(tmp_path / "groups", cpu__max="200000 100000")
    assert cores_with(tmp_path, "0::/kubepods/pod7/container\n") == 2


def test_without_control_groups_affinity_alone_counts(tmp_path):
    assert usable_cores(tmp_path, tmp_path / "absent") == 8


def memory_with(tmp_path, membership):
    (tmp_path / "membership").write_text(membership)
    return usable_memory_bytes(tmp_path / "groups", tmp_path / "membership")


@pytest.mark.parametrize(
    ("own", "above", "expected"),
    [
        ("max", "max", PHYSICAL),
        (str(GIB), "max", GIB),
        ("max", str(GIB // 2), GIB // 2),
        (str(GIB), str(2 * GIB), GIB),
        (str(10 * PHYSICAL), "max", PHYSICAL),
    ],
)
def test_the_tightest_memory_limit_of_version_two_counts(tmp_path, own, above, expected):
    write(tmp_path / "groups" / "pod" / "job", memory__max=own)
    write(tmp_path / "groups" / "pod", memory__max=above)
    assert memory_with(tmp_path, "0::/pod/job\n") == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [("9223372036854771712", PHYSICAL), (str(GIB), GIB)]
)
def test_memory_limits_of_version_one_count(tmp_path, limit, expected):
    write(tmp_path / "groups" / "memory" / "job", memory__limit_in_bytes=limit)
    lines = "4:memory:/job\n2:cpu,cpuacct:/other\n1:cpuset:/\n0::/\n"
    assert memory_with(tmp_path, lines) == expected


def test_in_a_container_the_memory_limit_lies_at_the_root_whatever_the_path_says(tmp_path):
    write(tmp_path / "groups", memory__max=str(GIB))
    assert memory_with(tmp_path, "0::/kubepods/pod7/container\n") == GIB


def test_without_control_groups_all_memory_counts(tmp_path):
    assert usable_memory_bytes(tmp_path, tmp_path / "absent") == PHYSICAL


def test_a_plan_of_this_machine_has_the_memory_of_its_control_group(tmp_path, monkeypatch):
    write(tmp_path / "groups" / "job", memory__max=str(GIB))
    (tmp_path / "membership").write_text("0::/job\n")
    limited = tmp_path / "groups", tmp_path / "membership"
    monkeypatch.setattr(limits.usable_memory_bytes, "__defaults__", limited)
    env = Env(rank=0, world_size=2, local_rank=0, local_world_size=2, device=torch.device("cpu"))
    cluster = local_cluster(env)
    assert cluster.host_memory_gib == 1.0
    assert cluster.host_bytes_per_rank == GIB // 2
