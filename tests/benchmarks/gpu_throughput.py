"""Training on one GPU against the card's own matrix rate and memory bandwidth.

    python -m tests.benchmarks.gpu_throughput OUT              from the repository's root; 280 s
    python -m tests.benchmarks.gpu_throughput OUT --smoke      the same logic, tiny, on a CPU

Measured are the steps taken apart (gpu_steps.py: one batch that stays on the card, the loader alone, both
together) and the training command itself. OUT receives gpu.json, gpu.txt, a table of operators for every
case, and log and metrics.jsonl of every command. Cases that no longer fit in `--seconds` are left out and
named; one that fails is reported with its last lines.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from launch import train
from recsys.config import read_job
from recsys.job import typed_arguments
from recsys.runtime.env import start
from tests.benchmarks.click_log import Shape, write_click_log
from tests.benchmarks.gpu_steps import loader_rate, measure_case
from tests.benchmarks.synthetic import write_prepared
from tests.benchmarks.timing import best_seconds

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
STEPS = "paper bf16 none,paper bf16 graphs,b bf16 none,b bf16 graphs,c bf16 none,paper bf16 fused"
"""Steps to take apart: shape, precision of the dense part, train.compile; the most telling first."""
COMMANDS = "paper bf16 graphs,b bf16 graphs,c bf16 graphs,paper bf16 none"
"""Training commands to run, likewise."""
EMBEDDING_DIMS = {"b": 16, "c": 16, "paper": 64}


def main() -> None:
    """Write the data while the card is measured, then take one case after the other."""
    options = read_options()
    begun = time.perf_counter()
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    work = Path(tempfile.mkdtemp(prefix="gpu_throughput_", dir=base))
    steps = [case.split() for case in options.steps.split(",") if case]
    commands = [case.split() for case in options.commands.split(",") if case]
    shapes = sorted({shape for shape, _, _ in steps + commands})
    try:
        with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
            written = [pool.submit(write_data, work / name, name, options.smoke) for name in shapes]
            floor = measure_floor(options.smoke)
            for data in written:
                data.result()
        report = {"floor": floor, "data_seconds": time.perf_counter() - begun, "cases": []}

        def left() -> float:
            return options.seconds - (time.perf_counter() - begun)

        def note(case: dict) -> None:
            report["cases"].append(case)
            report["wall_seconds"] = time.perf_counter() - begun
            (out / "gpu.json").write_text(json.dumps(report, indent=1))
            (out / "gpu.txt").write_text(as_text(report))

        if "paper" in shapes:
            report["loader"] = loader_rates(work / "paper", options.smoke)
        longest = 15.0
        for work_of, cases in ((take_apart, steps), (run_command, commands)):
            for shape, precision, form in cases:
                name = f"{shape} {precision} {form}"
                # A case is begun only if the longest so far would still fit.
                if left() < longest:
                    note({"case": name, "left_out": True})
                    continue
                case_begun = time.perf_counter()
                try:
                    case = work_of(work, out, shape, precision, form, left(), options.smoke)
                except Exception:
                    case = {"problem": "failed", "last_lines": traceback.format_exc().split("\n")}
                seconds = time.perf_counter() - case_begun
                longest = max(longest, seconds)
                note({"case": name, "kind": work_of.__name__, "wall_seconds": seconds} | case)
        (out / "gpu.txt").write_text(as_text(report))
        print(as_text(report), flush=True)
    finally:
        shutil.rmtree(work)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    parser.add_argument("--seconds", type=float, default=280.0, help="for everything together")
    parser.add_argument("--steps", default=STEPS)
    parser.add_argument("--commands", default=COMMANDS)
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
    wait = torch.cuda.synchronize if on_gpu else lambda: None
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
        seconds = best_seconds(lambda left=left, right=right: left @ right, wait=wait)
        floor[f"{precision}_tflops"] = 2 * size**3 / seconds / 1e12
    source = torch.empty(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = best_seconds(lambda: target.copy_(source), wait=wait)
    floor["copy_gb_per_second"] = 2 * num_bytes / seconds / 1e9
    return floor


def keys_of(shape: str, precision: str, form: str, smoke: bool) -> list[str]:
    """Return the overrides of the training command."""
    form = "none" if smoke and form == "graphs" else form
    return [
        *(PAPER if shape == "paper" else [*DCN_V2, "model.modalities=[]"]),
        f"model.dense_precision={precision}",
        f"train.compile={form}",
        f"train.global_batch_size={512 if smoke else 65_536}",
    ]


def take_apart(
    work: Path, out: Path, shape: str, precision: str, form: str, seconds: float, smoke: bool
) -> dict[str, object]:
    """Measure the steps of a case in this process."""
    given = ["data=ctr", "data.source=none", f"workspace={work / shape}", "run.name=steps"]
    given += keys_of(shape, precision, form, smoke)
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        composed = compose("train", overrides=typed_arguments(given, train.KEYS))
    _, config, _ = read_job(composed, train.KEYS)
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return measure_case(
        work / shape,
        config,
        start("auto"),
        rounds=2 if smoke else 7,
        steps=2 if smoke else 10,
        table=out / f"{shape}_{precision}_{form}.operators.txt",
    )


def loader_rates(workspace: Path, smoke: bool) -> dict[str, float]:
    """Return the loader's rows a second by its threads, and by who gathers the ids."""
    rows = 512 if smoke else 65_536
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    forms = ((0, False), (1, True)) if smoke else ((0, False), (8, False), (1, True), (2, True))
    return {
        f"{makers} threads{', ids gathered by the device' * gathers}": loader_rate(
            workspace, rows, makers, device, gathers=gathers
        )
        for makers, gathers in forms
    }


def run_command(
    work: Path, out: Path, shape: str, precision: str, form: str, seconds: float, smoke: bool
) -> dict[str, object]:
    """Train once with the real command; return what its metrics say."""
    name = f"{shape}_{precision}_{form}"
    steps = 2 if smoke else 10
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"),
        str(ROOT / "launch" / "train.py"),
        *("data=ctr", "data.source=none", f"workspace={work / shape}", f"run.name={name}"),
        *keys_of(shape, precision, form, smoke),
        f"train.log_every_steps={steps}",
        *("train.epochs=3", "train.patience=0", "train.evaluate_every_steps=1000000"),
    ]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    }
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds, env=environment
            )
            problem = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"cut off after {seconds:.0f} s"
    run = work / shape / "runs" / name
    if problem:
        lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
        return {"problem": problem, "last_lines": lines[-25:]}
    shutil.copy(run / "metrics.jsonl", folder)
    shutil.rmtree(run)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    # The first lines hold the warm-up.
    rates = [
        line["train/examples_per_second"]
        for line in metrics
        if "train/examples_per_second" in line and line["step"] > 2 * steps
    ]
    peaks = [line["memory/peak_gib"] for line in metrics if "memory/peak_gib" in line]
    return {
        "loaded_best_rows_per_second": max(rates),
        "loaded_median_rows_per_second": statistics.median(rates),
        "rates": [round(rate) for rate in rates],
        "peak_gib": max(peaks, default=0.0),
    }


def floors(report: dict, shape: str, precision: str) -> dict[str, float]:
    """Return the milliseconds that a step's FLOPs, and its table bytes, take at the card's rates.

    Table bytes: every looked-up row is read once forward and read and written once by the update (no
    row is taken to be shared); a modality's row is read once, for the item and for each of 20 past.
    """
    floor = report["floor"]
    counted = [
        case["matrix_flops"]
        for case in report["cases"]
        if "matrix_flops" in case
        and (case["case"].split()[0] == "paper") == (shape == "paper")  # b and c have one model
    ]
    if not counted:
        return {}
    batch, dim = 65_536, EMBEDDING_DIMS[shape]
    if shape == "paper":
        table_bytes = batch * (1 + 1 + 1 + 3) * 3 * 4 * dim
        table_bytes += batch * 2 * (sum(PAPER_DIMS.values()) + 20 * PAPER_DIMS["text"])
    else:
        table_bytes = batch * 26 * 3 * 4 * dim
    return {
        # Under CUDA graphs no operator is recorded.
        "flops_ms": max(counted) / float(floor[f"{precision}_tflops"]) / 1e9,
        "bytes_ms": table_bytes / float(floor["copy_gb_per_second"]) / 1e6,
    }


def as_text(report: dict) -> str:
    """Return the tables for people."""
    floor = report["floor"]
    loader = "; ".join(f"{name}: {rate:,.0f}" for name, rate in report.get("loader", {}).items())
    lines = [
        f"{floor['device']}, torch {floor['torch']}: fp32 {floor['fp32_tflops']:.1f}, tf32 "
        f"{floor['tf32_tflops']:.1f}, bf16 {floor['bf16_tflops']:.1f} TFLOP/s, copy "
        f"{floor['copy_gb_per_second']:,.0f} GB/s; data written in {report['data_seconds']:.0f} s",
        f"loader alone, paper, rows/s: {loader}",
        "",
        "| case | kind | rows/s best | median | resident step ms best | median | kernels ms | kernels | "
        "launches | graphs | waits | floor ms (FLOPs + bytes) | floor / resident | peak GiB | wall s |",
        "|---|---|" + "---:|" * 13,
    ]
    tails = []
    for case in report["cases"]:
        if case.get("left_out"):
            lines.append(f"| {case['case']} | not run: no time left |" + " |" * 13)
            continue
        if "problem" in case:
            lines.append(f"| {case['case']} | {case['problem']} |" + " |" * 13)
            tails += ["", f"{case['case']}:", *case["last_lines"]]
            continue
        shape, precision, _ = case["case"].split()
        found = floors(report, shape, precision)
        cells = [case["case"], case["kind"]]
        cells += [f"{case[f'loaded_{which}_rows_per_second']:,.0f}" for which in ("best", "median")]
        if "kernels_ms" in case:
            cells += [f"{case[f'resident_{which}_ms']:.2f}" for which in ("best", "median")]
            cells += [f"{case['kernels_ms']:.2f}"]
            counts = ("num_kernels", "launches", "graph_launches", "synchronisations")
            cells += [f"{case[key]:.1f}" for key in counts]
        else:
            cells += [""] * 7
        if found:
            cells.append(f"{found['flops_ms']:.2f} + {found['bytes_ms']:.2f}")
            step = case.get("resident_best_ms")
            cells.append(f"{sum(found.values()) / step:.2f}" if step else "")
        else:
            cells += [""] * 2
        cells += [f"{case.get('peak_gib', 0.0):.1f}", f"{case['wall_seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
        kernels = case.get("kernels", [])
        tails += ["", f"{case['case']}, kernels by time (calls and ms a step):"] * bool(kernels)
        tails += [f"  {calls:8.1f} {ms:9.3f}  {name[:110]}" for name, calls, ms in kernels]
    return "\n".join([*lines, *tails, ""])


if __name__ == "__main__":
    main()
