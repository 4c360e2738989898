"""Training steps on one device taken apart: the step alone, the loader alone, and both together.

Called by tests/benchmarks/gpu_throughput.py, which writes the data; the pieces are those of the training
command, put together in this process.
"""

import itertools
import statistics
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from embedding.features.opening import open_features
from recsys.data.dataset import Dataset
from recsys.data.device_arrays import DeviceArrays
from recsys.data.loader import Loader, ReadAhead
from recsys.model.build import batch_features
from recsys.run.assembly import build_loader, plan_and_shard
from recsys.run.config import RunConfig
from recsys.runtime.env import Env
from recsys.schema import read_manifest
from recsys.sharding.compilation import compile_scorer
from recsys.sharding.pipeline import build_pipeline
from recsys.train.gradients import Gradients

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
GRAPHS = ("cudaGraphLaunch",)
SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize")


def measure_case(
    workspace: Path, config: RunConfig, env: Env, *, rounds: int, steps: int, table: Path
) -> dict[str, object]:
    """Return seconds of a step on one batch that stays on the device, with the loader, and their parts.

    Args:
        config: of the run.
        rounds: of `steps` steps each; best and median are over rounds.
        table: receives the profiler's table of operators.
    """
    begun = time.perf_counter()
    manifest = read_manifest(workspace)
    modalities = [name for name in config.model.modalities if manifest.has_modality(name)]
    vectors = open_features(workspace, modalities, manifest, print)
    ranker, _, sharded = plan_and_shard(config=config, manifest=manifest, vectors=vectors, env=env)
    gradients = Gradients(sharded, max_norm=None)
    if config.train.compile != "none":
        compile_scorer(sharded.scorer, config.train.compile)
    sharded.model.train()
    pipeline = build_pipeline(config.train.pipeline, sharded, env)
    loader = build_loader(
        workspace=workspace,
        manifest=manifest,
        config=config,
        env=env,
        split="train",
        features=batch_features(ranker),
        shuffle=True,
    )
    batch_rows = config.train.global_batch_size

    def take(batches, count):
        """Take `count` steps; return the milliseconds of one."""
        wait(env)
        started = time.perf_counter()
        for _ in range(count):
            pipeline.progress(batches)
        wait(env)
        gradients.take()
        return 1e3 * (time.perf_counter() - started) / count

    first = next(iter(loader.batches(0)))
    resident = itertools.repeat(first.to(env.device))
    warm_up_ms = [take(resident, 1) for _ in range(5)]
    found: dict[str, object] = {"setup_seconds": time.perf_counter() - begun}
    times = [take(resident, steps) for _ in range(rounds)]
    found |= {f"resident_{k}": v for k, v in summary(times, batch_rows).items()}
    found |= {"warm_up_ms": warm_up_ms, "resident_rounds_ms": times}
    found |= recorded(lambda: take(resident, steps), env, steps, table)
    pipeline.pause()
    epochs = (batch for epoch in itertools.count() for batch in loader.batches(epoch))
    take(epochs, steps)
    times = [take(epochs, steps) for _ in range(2 * rounds)]
    found |= {f"loaded_{k}": v for k, v in summary(times, batch_rows).items()}
    found["loaded_rounds_ms"] = times
    if env.device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    epochs.close()
    return found


def summary(milliseconds: list[float], batch_rows: int) -> dict[str, float]:
    """Return best and median as milliseconds a step and rows a second."""
    best, median = min(milliseconds), statistics.median(milliseconds)
    return {
        "best_ms": best,
        "median_ms": median,
        "best_rows_per_second": 1e3 * batch_rows / best,
        "median_rows_per_second": 1e3 * batch_rows / median,
    }


def wait(env: Env) -> None:
    """Wait for everything that the device was given."""
    if env.device.type == "cuda":
        torch.cuda.synchronize()


def recorded(work, env: Env, steps: int, table: Path) -> dict[str, object]:
    """Return what a profile of `steps` steps says: kernels, launches, FLOPs of matrix products."""
    on_gpu = env.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities, with_flops=True) as profiler:
        work()
    events = profiler.key_averages()
    table.write_text(
        events.table(
            sort_by="self_cuda_time_total" if on_gpu else "self_cpu_time_total",
            row_limit=60,
            max_name_column_width=90,
        )
        + events.table(sort_by="self_cpu_time_total", row_limit=50, max_name_column_width=60)
    )
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    kernels.sort(key=lambda e: -e.self_device_time_total)

    def calls(names):
        return sum(e.count for e in events if e.key in names) / steps

    return {
        "matrix_flops": sum(e.flops for e in events) / steps,
        "kernels_ms": sum(e.self_device_time_total for e in kernels) / 1e3 / steps,
        "num_kernels": sum(e.count for e in kernels) / steps,
        "launches": calls(LAUNCHES),
        "graph_launches": calls(GRAPHS),
        "synchronisations": calls(SYNCHRONISATIONS),
        "cpu_operators": sum(e.count for e in events if e.device_type == DeviceType.CPU) / steps,
        "kernels": [
            (e.key, e.count / steps, e.self_device_time_total / 1e3 / steps) for e in kernels[:25]
        ],
    }


def loader_rate(
    workspace: Path, batch_rows: int, makers: int, device: torch.device, *, gathers: bool
) -> float:
    """Return the rows a second of the loader alone, with `makers` threads that make batches.

    Args:
        gathers: the device gathers the ids, and is waited for.
    """
    manifest = read_manifest(workspace)
    names = [feature.name for feature in manifest.features]
    dataset = Dataset(workspace / "prepared", manifest, split="train", features=names)
    on_gpu = device.type == "cuda"
    loader = Loader(
        dataset,
        global_batch_size=batch_rows,
        rank=0,
        world_size=1,
        num_lanes=8,
        shuffle=True,
        seed=0,
        ahead=ReadAhead(
            num_readers=8,
            num_makers=makers,
            pin_memory=on_gpu,
            arrays=DeviceArrays(dataset, device) if gathers else None,
        ),
    )
    rates = []
    for epoch in range(2):
        rows, begun = 0, time.perf_counter()
        for batch in loader.batches(epoch):
            batch.to(device, non_blocking=True)
            rows += batch.global_rows
        if on_gpu:
            torch.cuda.synchronize()
        rates.append(rows / (time.perf_counter() - begun))
    return max(rates)
