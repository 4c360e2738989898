"""Process facts: rank, world size, device, threads.

Every job calls `start()` once; afterwards the same code runs as `python x.py` (a world of one) and
under `torchrun` (many), on CPU with gloo and on GPU with nccl.
"""

import ctypes
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from recsys.errors import UserError
from recsys.runtime.collectives import gather
from recsys.runtime.rendezvous import fresh_store
from recsys.runtime.threads import threads_of_process, use_threads
from recsys.runtime.torchrun import (
    agent_of,
    has_agent,
    is_under_torchrun,
    local_rank_from_environment,
    local_world_size_from_environment,
    name_of_process,
    rank_from_environment,
    torchrun_set_threads,
    world_size_from_environment,
)

GROUP_TIMEOUT = timedelta(hours=6)
"""Of groups beside the default one, whose members may rightly wait for a slow disk; a peer that died
is noticed at once, by its closed connection."""


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Names of glibc's malloc.h."""


def _set_malloc(settings: dict[int, int]) -> None:
    """Set options of glibc's allocator; another C library is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in settings.items():
        mallopt(option, value)


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed.

    The activations of every step are otherwise given back and faulted in again, page by page: a fifth
    of the step (LOG.md, 2026-11-26). Tables and other blocks above 32 MiB still go back.
    """
    _set_malloc({_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 * 2**20})


def keep_large_blocks() -> None:
    """Tell glibc to keep blocks of every size that are taken and freed from now on.

    For a step loop, after everything is loaded: activations of 65,536 rows are above 32 MiB, and to
    fault them in again is half of such a step (LOG.md, 2026-11-28).
    """
    _set_malloc({_MMAP_MAX: 0})


@dataclass(frozen=True, kw_only=True)
class Env:
    """Process facts: rank, world size, device and threads."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    threads: int = 1
    """That this rank computes with."""

    @property
    def is_first(self) -> bool:
        """True in the process that writes shared files and speaks."""
        return self.rank == 0


def start(
    device: str = "auto",
    *,
    threads: int | None = None,
    deterministic: bool = False,
    timeout_seconds: int = 1800,
) -> Env:
    """Set threads and device, join the process group, and return the facts.

    Args:
        device: `auto` (cuda where present), `cpu` or `cuda`.
        threads: of this rank; None: see recsys/runtime/threads.py.
        deterministic: let torch refuse operators that do not give the same bits every time.
        timeout_seconds: how long a collective may wait for the other ranks.

    Raises:
        UserError: device is neither of the three, or cuda is asked for and absent; threads is not
            1 or more.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device!r}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: no CUDA device is visible; use device=cpu or device=auto")
    silence_libraries()
    if deterministic:
        _be_deterministic()
    use_cuda = device != "cpu" and torch.cuda.is_available()
    rank, world_size = rank_from_environment(), world_size_from_environment()
    local_rank, local_world_size = (
        local_rank_from_environment(),
        local_world_size_from_environment(),
    )
    num_threads = threads_of_process(
        threads, num_processes=local_world_size, obey_environment=not torchrun_set_threads()
    ).count
    use_threads(num_threads)
    # Adam's averages of rows without a gradient decay into denormal numbers, with which a step over a
    # replicated table of 200,000 rows takes 840 ms instead of 48 (LOG.md, 2026-11-24).
    torch.set_flush_denormal(True)
    _keep_freed_memory()
    torch_device = torch.device("cuda", local_rank) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(torch_device)
    if not dist.is_initialized():
        _join_group("nccl" if use_cuda else "gloo", rank, world_size, timeout_seconds)
    return Env(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        device=torch_device,
        threads=num_threads,
    )


def _join_group(backend: str, rank: int, world_size: int, timeout_seconds: int) -> None:
    """Join the ranks that torchrun started, or a group of one without it."""
    timeout = timedelta(seconds=timeout_seconds)
    store: dist.Store = dist.HashStore()
    if is_under_torchrun():
        agents, _, _ = next(iter(dist.rendezvous("env://", timeout=timeout)))
        store = fresh_store(
            agents, rank=rank, world_size=world_size, timeout_seconds=timeout_seconds
        )
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)


def agents_of_start() -> list[str]:
    """Return the names of the torchrun agents that started the ranks; none without torchrun.

    A restart of workers, and a group that meets anew after a host was lost or has come, shares an
    agent with the one before it; another start of the same command shares none. The rendezvous id
    and the restart count tell neither: people use one id again, and an agent counts for itself.
    """

    def own_agent() -> str | None:
        if not has_agent():
            return None
        return name_of_process(agent_of(os.getpid()))

    return sorted({name for name in gather(own_agent) if name is not None})


def _be_deterministic() -> None:
    """Choose operators that give the same bits every time; before CUDA is touched.

    On GPU, FBGEMM's backward asks the same switch and then adds up a row's gradients in one order.
    """
    # cuBLAS reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    # Not needed for equal bits where nothing reads what it has not written; costs a pass each time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def allow_tf32(allowed: bool) -> None:
    """Let matrix products of fp32 tensors run in TF32 on an NVIDIA GPU, or not; process-wide."""
    torch.backends.cuda.matmul.allow_tf32 = allowed


def silence_libraries() -> None:
    """Drop library messages that nobody who runs a job can act on; errors still come through."""
    for name in ("torchrec", "fbgemm_gpu", "torch.distributed", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # TorchRec speaks of replicated tables on the root logger.
    logging.getLogger().addFilter(lambda r: "Sharding spec not found" not in r.getMessage())
    for category in (UserWarning, FutureWarning, DeprecationWarning):
        for module in ("torch", "torchrec", "fbgemm_gpu", "tensordict"):
            warnings.filterwarnings("ignore", category=category, module=module)


def stop(exit_code: int = 0) -> None:
    """End the job: wait for the other ranks and leave. Under torchrun this does not return.

    Args:
        exit_code: of the process; other than 0 this never returns.

    Files are closed and written by then. The process ends without tearing libraries down: gloo's
    threads, taken apart in whatever order, end a finished rank with SIGABRT now and then (LOG.md,
    2026-11-24), and torchrun would call the whole job failed.
    """
    if not dist.is_initialized():
        return
    dist.barrier()
    if is_under_torchrun():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    dist.destroy_process_group()
    if exit_code:
        sys.exit(exit_code)
