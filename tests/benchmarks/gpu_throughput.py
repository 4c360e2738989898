"""The training command on one GPU against the card's own matrix rate and memory bandwidth.

    python -m tests.benchmarks.gpu_throughput OUT              from the repository's root; 150 s
    python -m tests.benchmarks.gpu_throughput OUT --smoke      the same logic, tiny, on a CPU

OUT receives gpu.json, gpu.txt and, for every case, the log, metrics.jsonl and the profile. Cases that
no longer fit in `--seconds` are left out and named; one that fails is reported with its last lines.
"""

import argparse
import gzip
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from tests.benchmarks.click_log import Shape, write_click_log
from tests.benchmarks.synthetic import write_prepared

ROOT = Path(__file__).resolve().parents[2]
DCN_V2 = [
    "model=dcn_v2",
    "model.deep_dims=[400,400,400]",
    "model.dropout=0.0",
    "optim.table.name=rowwise_adagrad",
]
PAPER = [
    "model=paper",
    # Width 64, both forms of fusion, no batch norm: what LOG.md measured under this name.
    "model.embedding_dim=64",
    "model.umcm=mixture",
    "model.umcm_dropout=0.0",
    "model.dropout=0.0",
    "model.batch_norm=false",
    "model.user_activation=false",
    "optim.table.name=rowwise_adagrad",
]
PAPER_DIMS = {"semantic": 1024, "style": 256, "text": 512}
CASES = [
    ("b", "bf16"),
    ("paper", "bf16"),
    ("c", "bf16"),
    ("b", "tf32"),
    ("paper", "tf32"),
    ("c", "tf32"),
    ("b", "fp32"),
    ("paper", "fp32"),
]
"""Shape and dense precision, the most telling first."""
EMBEDDING_DIMS = {"b": 16, "c": 16, "paper": 64}


def main() -> None:
    """Write the data while the card is measured, then run the cases one after the other."""
    options = read_options()
    begun = time.perf_counter()
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    work = Path(tempfile.mkdtemp(prefix="gpu_throughput_", dir=base))
    try:
        with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
            written = [
                pool.submit(write_data, work / name, name, options.smoke)
                for name in ("b", "c", "paper")
            ]
            floor = measure_floor(options.smoke)
            for data in written:
                data.result()
        report = {"floor": floor, "data_seconds": time.perf_counter() - begun, "cases": []}
        longest = 0.0
        for shape, precision in CASES:
            left = options.seconds - (time.perf_counter() - begun)
            # A case is begun only if the longest so far would still fit.
            if left < max(longest, 15.0):
                report["cases"].append({"case": f"{shape} {precision}", "left_out": True})
                continue
            case = run_case(work, out, shape, precision, left, options.smoke)
            longest = max(longest, case["wall_seconds"])
            report["cases"].append(case | compare(case, floor, precision, shape))
            report["wall_seconds"] = time.perf_counter() - begun
            (out / "gpu.json").write_text(json.dumps(report, indent=1))
            (out / "gpu.txt").write_text(as_text(report))
        print(as_text(report), flush=True)
    finally:
        shutil.rmtree(work)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--seconds", type=float, default=150.0, help="for everything together")
    return parser.parse_args()


def write_data(workspace: Path, name: str, smoke: bool) -> None:
    """Write one workspace; runs in a process of its own."""
    rows, valid_rows = (8_192, 1_024) if smoke else (4_194_304, 65_536)
    if name == "paper":
        write_prepared(
            workspace,
            num_rows=rows,
            num_users=1_000 if smoke else 1_000_000,
            num_items=500 if smoke else 100_000,
            valid_rows=valid_rows,
            modality_dims=PAPER_DIMS,
        )
        return
    num_ids = {"b": 1_000_000, "c": 30_000_000}[name] // (1_000 if smoke else 1)
    shape = Shape(name=name, num_fields=26, num_ids=num_ids, train_rows=rows, valid_rows=valid_rows)
    write_click_log(workspace, shape)


def measure_floor(smoke: bool) -> dict[str, float | str]:
    """Return what the card does at best: matrix products of 8,192 square and copies of 2 GiB."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, num_bytes = (512, 1 << 24) if smoke else (8_192, 2 << 30)
    on_gpu = device.type == "cuda"
    floor: dict[str, float | str] = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
    }
    for precision, dtype in (
        ("fp32", torch.float32),
        ("tf32", torch.float32),
        ("bf16", torch.bfloat16),
    ):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = best_seconds(lambda left=left, right=right: left @ right, on_gpu)
        floor[f"{precision}_tflops"] = 2 * size**3 / seconds / 1e12
    source = torch.empty(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = best_seconds(lambda: target.copy_(source), on_gpu)
    floor["copy_gb_per_second"] = 2 * num_bytes / seconds / 1e9
    return floor


def best_seconds(work, on_gpu: bool, rounds: int = 10) -> float:
    """Return the shortest of some runs, each waited for."""
    times = []
    for _ in range(rounds):
        if on_gpu:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def run_case(
    work: Path, out: Path, shape: str, precision: str, seconds: float, smoke: bool
) -> dict[str, object]:
    """Train once with the real command; return what its metrics and its profile say."""
    name = f"{shape}_{precision}"
    batch, steps, skip = (512, 2, 4) if smoke else (65_536, 10, 70)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
        str(ROOT / "launch" / "train.py"),
        *("data=ctr", "data.source=none", f"workspace={work / shape}", f"run.name={name}"),
        *(PAPER if shape == "paper" else [*DCN_V2, "model.modalities=[]"]),
        f"model.dense_precision={precision}",
        f"train.global_batch_size={batch}",
        f"train.log_every_steps={steps}",
        *("train.epochs=3", "train.patience=0", "train.evaluate_every_steps=1000000"),
        *("profile.enabled=true", f"profile.skip_steps={skip}", f"profile.num_steps={steps}"),
    ]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    }
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, env=environment
            )
            problem = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"cut off after {seconds:.0f} s"
    wall_seconds = time.perf_counter() - begun
    run = work / shape / "runs" / name
    found = [run / "metrics.jsonl", run / "plan.json", *(run / "profile").glob("rank0.*")]
    for file in found:
        if file.is_file():
            shutil.copy(file, folder)
    shutil.rmtree(run, ignore_errors=True)
    case: dict[str, object] = {
        "case": f"{shape} {precision}",
        "batch": batch,
        "wall_seconds": wall_seconds,
    }
    if problem:
        lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
        return case | {"problem": problem, "last_lines": lines[-25:]}
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    # The first lines hold the warm-up; the profile's own is slower than the rest.
    rates = [
        line["train/examples_per_second"]
        for line in metrics
        if "train/examples_per_second" in line and line["step"] > 2 * steps
    ]
    peaks = [line["memory/peak_gib"] for line in metrics if "memory/peak_gib" in line]
    case |= {
        "best_samples_per_second": max(rates),
        "median_samples_per_second": statistics.median(rates),
        "rates": [round(rate) for rate in rates],
        "peak_gib": max(peaks, default=None),
    }
    trace = folder / "rank0.trace.json.gz"
    return case | ({"profile": read_trace(trace, steps)} if trace.is_file() else {})


PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::_addmm_activation": (1, 2),
    "aten::baddbmm": (1, 2),
    "mkldnn::_linear_pointwise": (0, 1),
}
"""Operators that multiply matrices, and which of their inputs are the factors."""


def read_trace(file: Path, num_steps: int) -> dict[str, object]:
    """Return what a profile holds, per step: FLOPs of matrix products, and kernels by time.

    `kernels` are the 15 costliest as (name, calls, milliseconds); `device_ms` counts all.
    """
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        events = json.load(stream)["traceEvents"]
    flops = 0
    calls: Counter[str] = Counter()
    milliseconds: Counter[str] = Counter()
    for event in events:
        name = event.get("name", "")
        if name in PRODUCTS and event.get("cat") == "cpu_op":
            left, right = (event["args"]["Input Dims"][place] for place in PRODUCTS[name])
            # oneDNN's operator takes its weight as [out, in], the others theirs as [in, out].
            flops += 2 * math.prod(left) * right[0 if name.startswith("mkldnn") else -1]
        elif event.get("cat") == "kernel":
            calls[name] += 1
            milliseconds[name] += event["dur"] / 1e3 / num_steps
    return {
        "matrix_flops": flops / num_steps,
        "device_ms": sum(milliseconds.values()),
        "kernels": [(n, calls[n] / num_steps, ms) for n, ms in milliseconds.most_common(15)],
    }


def compare(
    case: dict[str, object], floor: dict[str, float | str], precision: str, shape: str
) -> dict[str, float]:
    """Return how near a step comes to what the card could do with its FLOPs and its table bytes.

    Table bytes: every looked-up row is read once forward and read and written once by the update (no
    row is taken to be shared); a modality's row is read once, for the item and for each of 20 past.
    """
    profile = case.get("profile")
    if not isinstance(profile, dict):
        return {}
    batch = float(str(case["batch"]))
    dim = EMBEDDING_DIMS[shape]
    if shape == "paper":
        table_bytes = batch * (1 + 1 + 1 + 3) * 3 * 4 * dim
        table_bytes += batch * 2 * (sum(PAPER_DIMS.values()) + 20 * PAPER_DIMS["text"])
    else:
        table_bytes = batch * 26 * 3 * 4 * dim
    flop_seconds = profile["matrix_flops"] / (float(floor[f"{precision}_tflops"]) * 1e12)
    byte_seconds = table_bytes / (float(floor["copy_gb_per_second"]) * 1e9)
    step_seconds = batch / float(str(case["best_samples_per_second"]))
    return {
        "matrix_gflops_per_step": profile["matrix_flops"] / 1e9,
        "table_gb_per_step": table_bytes / 1e9,
        "floor_flops_ms": 1e3 * flop_seconds,
        "floor_bytes_ms": 1e3 * byte_seconds,
        "step_ms": 1e3 * step_seconds,
        "device_ms": profile["device_ms"],
        "floor_share": (flop_seconds + byte_seconds) / step_seconds,
    }


def as_text(report: dict) -> str:
    """Return the table for people."""
    floor = report["floor"]
    lines = [
        f"{floor['device']}, torch {floor['torch']}: fp32 {floor['fp32_tflops']:.1f}, tf32 "
        f"{floor['tf32_tflops']:.1f}, bf16 {floor['bf16_tflops']:.1f} TFLOP/s, copy "
        f"{floor['copy_gb_per_second']:,.0f} GB/s; data written in {report['data_seconds']:.0f} s",
        "",
        "| case | samples/s best | median | step ms | kernels ms | floor ms (FLOPs + bytes) | floor / "
        "step | peak GiB | wall s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    tails = []
    for case in report["cases"]:
        if case.get("left_out"):
            lines.append(f"| {case['case']} | not run: no time left |" + " |" * 7)
            continue
        if "problem" in case:
            lines.append(f"| {case['case']} | {case['problem']} |" + " |" * 7)
            tails += ["", f"{case['case']}:", *case["last_lines"]]
            continue
        peak = "" if case["peak_gib"] is None else f"{case['peak_gib']:.1f}"
        row = f"| {case['case']} | {case['best_samples_per_second']:,.0f} "
        row += f"| {case['median_samples_per_second']:,.0f} "
        if "step_ms" in case:
            row += f"| {case['step_ms']:.2f} | {case['device_ms']:.2f} "
            row += f"| {case['floor_flops_ms']:.2f} + {case['floor_bytes_ms']:.2f} "
            row += f"| {case['floor_share']:.2f} "
        else:
            row += "| | | | "
        lines.append(f"{row}| {peak} | {case['wall_seconds']:.0f} |")
        kernels = case.get("profile", {}).get("kernels", [])
        tails += ["", f"{case['case']}, kernels by time (calls and ms a step):"] * bool(kernels)
        tails += [f"  {calls:8.1f} {ms:9.3f}  {name[:110]}" for name, calls, ms in kernels]
    return "\n".join([*lines, *tails, ""])


if __name__ == "__main__":
    main()
