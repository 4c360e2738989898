"""The cluster a plan is made for: hosts, ranks, memory and bandwidths; it need not exist.

In: a ClusterConfig (configs/cluster/*.yaml), or this job's own world. Out: the
Topology that TorchRec's planner asks for, and the memory a rank has.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torchrec.distributed.planner import Topology

from recsys.errors import UserError
from recsys.runtime.env import Env
from recsys.runtime.limits import usable_memory_bytes
from recsys.schema import name_problems

GIB = 1 << 30
_ACCELERATOR_TFLOPS = 50.0
"""Dense rate of an accelerator, as configs/cluster/ has it for an H100 or H200. Over all kernels of a
step an H200 reached 9 (UMAIR-FPS of width 64, bf16) to 99 (DCN-V2, bf16; LOG.md, 2026-11-27)."""
_GB_PER_SECOND = 1_000_000
"""TorchRec counts bandwidth in bytes per millisecond."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Hardware as its vendor describes it. Bandwidths are of one rank, in one direction."""

    name: str = "custom"
    """Short name, for people and folders."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cpu` or `cuda`."""
    hosts: Annotated[int, Field(ge=1)] = 1
    """Machines."""
    accelerators_per_host: Annotated[int, Field(ge=1)] = 1
    """Ranks of a machine: its accelerators, or where device=cpu its processes."""
    accelerator_memory_gib: float = 0.0
    """Memory of one accelerator that a process can use; not read where device=cpu."""
    host_memory_gib: Annotated[float, Field(gt=0)] = 16.0
    """Main memory of one machine, shared out among its ranks."""
    reserved_share: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Share of the memory that holds the tables left free: activations, fragments, the libraries."""
    intra_host_gb_per_second: Annotated[float, Field(gt=0)] = 600.0
    """Between the ranks of one machine, for example NVLink."""
    inter_host_gb_per_second: Annotated[float, Field(gt=0)] = 12.5
    """Between machines."""
    accelerator_memory_gb_per_second: Annotated[float, Field(gt=0)] = 900.0
    """Of an accelerator's own memory."""
    host_memory_gb_per_second: Annotated[float, Field(gt=0)] = 50.0
    """Of main memory."""
    host_to_accelerator_gb_per_second: Annotated[float, Field(gt=0)] = 32.0
    """Between main memory and an accelerator, for tables that lie in main memory."""
    ssd_gib: Annotated[float, Field(ge=0)] = 0.0
    """SSDs of one machine, shared out among its ranks; 0: none that tables may be on."""
    ssd_gb_per_second: Annotated[float, Field(gt=0)] = 5.0
    """Of all SSDs of one machine together, shared by its ranks, for reads of 4 KiB at random places."""
    dense_tflops: Annotated[float, Field(gt=0)] = 0.05
    """10^12 floating-point operations a second that a rank sustains on the dense part (assumed)."""
    batch_size_per_rank: Annotated[int, Field(ge=1)] | None = None
    """Rows of a step on one rank; null: train.global_batch_size over all ranks."""

    def problems(self) -> list[str]:
        """Return a text for a name that is no folder's, and for accelerators without memory."""
        found = name_problems("name", self.name)
        if self.device == "cuda" and self.accelerator_memory_gib <= 0:
            found.append(
                f"accelerator_memory_gib={self.accelerator_memory_gib}: expected more than 0"
            )
        return found

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
    def ssd_bytes_per_rank(self) -> int:
        """SSD of one rank."""
        return int(self.ssd_gib * GIB) // self.accelerators_per_host

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
            ssd_cap=self.ssd_bytes_per_rank,
            hbm_mem_bw=self.accelerator_memory_gb_per_second * _GB_PER_SECOND,
            ddr_mem_bw=self.host_memory_gb_per_second * _GB_PER_SECOND,
            # At which TorchRec prices all lookups of tables on SSD: that of their cache, to which
            # PerfEstimator adds the misses (recsys/sharding/ssd.py).
            ssd_mem_bw=self.accelerator_memory_gb_per_second * _GB_PER_SECOND,
            hbm_to_ddr_mem_bw=self.host_to_accelerator_gb_per_second * _GB_PER_SECOND,
            intra_host_bw=self.intra_host_gb_per_second * _GB_PER_SECOND,
            inter_host_bw=self.inter_host_gb_per_second * _GB_PER_SECOND,
        )

    def batch_size(self, global_batch_size: int) -> int:
        """Return the rows of a step on one rank, padding included."""
        return self.batch_size_per_rank or -(-global_batch_size // self.num_ranks)


def local_cluster(env: Env) -> ClusterConfig:
    """Return this job's own world as a cluster; bandwidths are ClusterConfig's defaults, and so is the
    dense rate on CPU.

    Raises:
        UserError: the hosts do not hold equally many ranks.
    """
    if env.world_size % env.local_world_size:
        raise UserError(
            f"{env.world_size} ranks with {env.local_world_size} on this host: expected equally "
            f"many on every host; start torchrun with the same --nproc-per-node everywhere"
        )
    accelerator_bytes, dense_tflops = 0, ClusterConfig.dense_tflops
    if env.device.type == "cuda":
        accelerator_bytes = torch.cuda.get_device_properties(env.device).total_memory
        dense_tflops = _ACCELERATOR_TFLOPS
    return ClusterConfig(
        name="local",
        dense_tflops=dense_tflops,
        device="cuda" if env.device.type == "cuda" else "cpu",
        hosts=env.world_size // env.local_world_size,
        accelerators_per_host=env.local_world_size,
        accelerator_memory_gib=accelerator_bytes / GIB,
        host_memory_gib=usable_memory_bytes() / GIB,
    )


def gigabytes(num_bytes: float) -> str:
    """Return bytes for people, in GB (10^9), or MB below one."""
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
