"""The cluster a plan is made for: hosts, ranks, memory and bandwidths; it need not exist.

In: a ClusterConfig (configs/cluster/*.yaml), or this job's own world. Out: the
Topology that TorchRec's planner asks for, and the memory a rank has.
"""

from dataclasses import dataclass

import torch
from torchrec.distributed.planner import Topology

from recsys.errors import UserError
from recsys.runtime.env import Env
from recsys.runtime.limits import usable_memory_bytes
from recsys.schema import name_problems

GIB = 1 << 30
_GB_PER_SECOND = 1_000_000
"""TorchRec counts bandwidth in bytes per millisecond."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Hardware as its vendor describes it. Bandwidths are of one rank, in one direction."""

    name: str = "custom"
    """Short name, for people and folders."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    hosts: int = 1
    """Machines."""
    accelerators_per_host: int = 1
    """Ranks of a machine: its accelerators, or where device=cpu its processes."""
    accelerator_memory_gib: float = 0.0
    """Memory of one accelerator that a process can use; not read where device=cpu."""
    host_memory_gib: float = 16.0
    """Main memory of one machine, shared out among its ranks."""
    reserved_share: float = 0.15
    """Share of the memory that holds the tables left free: activations, fragments, the libraries."""
    intra_host_gb_per_second: float = 600.0
    """Between the ranks of one machine, for example NVLink."""
    inter_host_gb_per_second: float = 12.5
    """Between machines."""
    accelerator_memory_gb_per_second: float = 900.0
    """Of an accelerator's own memory."""
    host_memory_gb_per_second: float = 50.0
    """Of main memory."""
    host_to_accelerator_gb_per_second: float = 32.0
    """Between main memory and an accelerator, for tables that lie in main memory."""
    dense_tflops: float = 0.05
    """10^12 floating-point operations a second that a rank sustains on the dense part (assumed)."""
    batch_size_per_rank: int | None = None
    """Rows of a step on one rank; null: train.global_batch_size over all ranks."""

    @property
    def num_ranks(self) -> int:
        """Ranks of the whole cluster."""
        return self.hosts * self.accelerators_per_host

    @property
    def accelerator_bytes(self) -> int:
        """Memory of one accelerator; 0 where there is none."""
        return int(self.accelerator_memory_gib * GIB) if self.device == "cuda" else 0

    @property
    def host_bytes_per_rank(self) -> int:
        """Main memory of one rank."""
        return int(self.host_memory_gib * GIB) // self.accelerators_per_host

    @property
    def table_memory_bytes(self) -> int:
        """Memory of one rank that holds tables unless a kernel says otherwise."""
        return self.accelerator_bytes if self.device == "cuda" else self.host_bytes_per_rank

    def topology(self) -> Topology:
        """Return the cluster in TorchRec's terms."""
        return Topology(
            world_size=self.num_ranks,
            local_world_size=self.accelerators_per_host,
            compute_device=self.device,
            hbm_cap=self.accelerator_bytes,
            ddr_cap=self.host_bytes_per_rank,
            hbm_mem_bw=self.accelerator_memory_gb_per_second * _GB_PER_SECOND,
            ddr_mem_bw=self.host_memory_gb_per_second * _GB_PER_SECOND,
            hbm_to_ddr_mem_bw=self.host_to_accelerator_gb_per_second * _GB_PER_SECOND,
            intra_host_bw=self.intra_host_gb_per_second * _GB_PER_SECOND,
            inter_host_bw=self.inter_host_gb_per_second * _GB_PER_SECOND,
        )

    def batch_size(self, global_batch_size: int) -> int:
        """Return the rows of a step on one rank, padding included."""
        return self.batch_size_per_rank or -(-global_batch_size // self.num_ranks)


def check_cluster(cluster: ClusterConfig) -> None:
    """Raise UserError for values no cluster has, all at once.

    Raises:
        UserError: lists every offending key.
    """
    problems = name_problems("cluster.name", cluster.name)
    if cluster.device not in ("cpu", "cuda"):
        problems.append(f"cluster.device={cluster.device!r}: expected cpu or cuda")
    for key in ("hosts", "accelerators_per_host", "batch_size_per_rank"):
        value = getattr(cluster, key)
        if value is not None and value < 1:
            problems.append(f"cluster.{key}={value}: expected 1 or more")
    positive = ["host_memory_gib", "intra_host_gb_per_second", "inter_host_gb_per_second"]
    positive += ["accelerator_memory_gb_per_second", "host_memory_gb_per_second"]
    positive += ["host_to_accelerator_gb_per_second", "dense_tflops"]
    if cluster.device == "cuda":
        positive.append("accelerator_memory_gib")
    for key in positive:
        if getattr(cluster, key) <= 0:
            problems.append(f"cluster.{key}={getattr(cluster, key)}: expected more than 0")
    if not 0 <= cluster.reserved_share < 1:
        problems.append(
            f"cluster.reserved_share={cluster.reserved_share}: expected 0 or more, below 1"
        )
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def local_cluster(env: Env) -> ClusterConfig:
    """Return this job's own world as a cluster; bandwidths are ClusterConfig's defaults.

    Raises:
        UserError: the hosts do not hold equally many ranks.
    """
    if env.world_size % env.local_world_size:
        raise UserError(
            f"{env.world_size} ranks with {env.local_world_size} on this host: expected equally "
            f"many on every host; start torchrun with the same --nproc-per-node everywhere"
        )
    accelerator_bytes = 0
    if env.device.type == "cuda":
        accelerator_bytes = torch.cuda.get_device_properties(env.device).total_memory
    return ClusterConfig(
        name="local",
        device=env.device.type,
        hosts=env.world_size // env.local_world_size,
        accelerators_per_host=env.local_world_size,
        accelerator_memory_gib=accelerator_bytes / GIB,
        host_memory_gib=usable_memory_bytes() / GIB,
    )


def gigabytes(num_bytes: float) -> str:
    """Return bytes for people, in GB (10^9), or MB below one."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
