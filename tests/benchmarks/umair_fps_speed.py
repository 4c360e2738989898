"""Training steps of UMAIR-FPS against the machine's floor and against the same model in plain PyTorch.

    python -m tests.benchmarks.umair_fps_speed                            every case, about half an hour
    python -m tests.benchmarks.umair_fps_speed --sizes drawn --batches 1024 --threads 1 --rounds 5
    python -m tests.benchmarks.umair_fps_speed --command                  the training command besides

Every contender is a process of its own, which keeps its batches in memory and takes some steps when it is
told to; the contenders of a case take turns, round after round. FLOPs are those of the matrix products of
a step, forward and backward, by torch.utils.flop_counter; bytes are the rows that are looked up, and the
update of what is trained; activations are not counted. The floor of a step is FLOPs at the measured rate
of matrix products and bytes at that of a copy. Timings count only on an otherwise idle machine.
"""

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode

from embedding.features.opening import open_features
from launch import train
from recsys.config import read_job
from recsys.job import typed_arguments
from recsys.model.build import batch_features
from recsys.run.assembly import build_loader, plan_and_shard
from recsys.runtime.env import keep_large_blocks, start
from recsys.schema import read_manifest
from recsys.sharding.pipeline import build_pipeline
from recsys.train.gradients import Gradients
from tests.benchmarks.peers.measure import tree_bytes
from tests.benchmarks.peers.torch_umair_fps import PlainUmairFps
from tests.benchmarks.side_by_side import ROOT, read_rates, run_watched, training_program
from tests.benchmarks.synthetic import write_prepared
from tests.benchmarks.timing import best_seconds

SIZES = {"drawn": ["experiment=umair_fps"], "paper": ["experiment=paper"]}
"""Presets by name; data of both: users, items and widths of vectors as in the drawn world."""
MODALITY_DIMS = {"semantic": 256, "style": 128, "text": 128}
NUM_USERS, NUM_ITEMS, RECENT_LENGTH = 1_001, 3_601, 10
ROUND_ROWS = 65_536
"""Rows of a round."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One size of the model, of histories and of batches, in one precision."""

    size: str
    history: int
    batch: int
    precision: str = "fp32"

    @property
    def keys(self) -> list[str]:
        """Overrides of the training command."""
        return [
            *SIZES[self.size],
            f"model.dense_precision={self.precision}",
            f"train.global_batch_size={self.batch}",
        ]


def write_data(
    workspace: Path,
    history: int,
    *,
    num_rows: int = 2 * ROUND_ROWS,
    num_users: int = NUM_USERS,
    num_items: int = NUM_ITEMS,
) -> None:
    """Write prepared data and vectors; every row has a full history."""
    write_prepared(
        workspace,
        num_rows=num_rows,
        num_users=num_users,
        num_items=num_items,
        history_length=history,
        recent_length=RECENT_LENGTH,
        valid_rows=4_096,
        modality_dims=MODALITY_DIMS,
    )


def arguments(workspace: Path, case: Case, name: str) -> list[str]:
    """Return the arguments of launch/train.py."""
    return [
        *("data=ctr", "data.source=none", f"workspace={workspace}", f"run.name={name}"),
        *case.keys,
    ]


class Ours:
    """Steps of Tessera's plain pipeline on batches in memory."""

    def __init__(self, workspace: Path, case: Case, threads: int):
        given = arguments(workspace, case, "steps")
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            composed = compose("train", overrides=typed_arguments(given, train.KEYS))
        _, config, _ = read_job(composed, train.KEYS)
        env = start("cpu", threads=threads)
        manifest = read_manifest(workspace)
        names = [name for name in config.model.modalities if manifest.has_modality(name)]
        vectors = open_features(workspace, names, manifest, print)
        ranker, self.plan, self.sharded = plan_and_shard(
            config=config, manifest=manifest, vectors=vectors, env=env
        )
        self.config, self.manifest, self.ranker, self.vectors = config, manifest, ranker, vectors
        self.gradients = Gradients(self.sharded, max_norm=None)
        loader = build_loader(
            workspace=workspace,
            manifest=manifest,
            config=config,
            env=env,
            split="train",
            features=batch_features(ranker),
            shuffle=True,
        )
        batches = loader.batches(0)
        self.batches = list(itertools.islice(batches, max(1, ROUND_ROWS // case.batch)))
        batches.close()
        self.sharded.model.train()
        keep_large_blocks()
        self.pipeline = build_pipeline("plain", self.sharded, env)

    def steps(self, count: int | None = None) -> None:
        """Take a step on each of the first batches."""
        for batch in self.batches[:count]:
            self.pipeline.progress(iter([batch]))
        self.gradients.take()

    def bytes_of_step(self) -> int:
        """Bytes that a step must read and write: rows looked up, and the update of all weights."""
        by_feature = self.batches[0].features.sparse.to_dict()
        num_ids = {name: len(jagged.values()) for name, jagged in by_feature.items()}
        looked_up, updated = 0, sum(p.numel() for p in self.ranker.dense.parameters())
        for table in self.plan.tables:
            ids = sum(num_ids[name] for name in table.features)
            looked_up += ids * table.width * {"fp16": 2, "fp32": 4}[table.dtype]
            if not table.frozen:
                updated += min(table.rows, ids) * table.width
        # Weight and two moments are read and written, the gradient is written and read.
        return looked_up + 8 * 4 * updated


class Plain:
    """The same steps of the model in plain PyTorch."""

    def __init__(self, workspace: Path, case: Case, threads: int):
        ours = Ours(workspace, case, threads)
        self.model, self.batches = plain_form(ours), [plain_batch(b) for b in ours.batches]
        self.precision = case.precision
        optim = ours.config.optim
        self.step = self.model.trainer(
            learning_rate=optim.dense_learning_rate, weight_decay=optim.dense_weight_decay
        )

    def steps(self, count: int | None = None) -> None:
        """Take a step on each of the first batches."""
        for ids, labels_B in self.batches[:count]:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
                self.step(ids, labels_B)


def plain_form(ours: Ours) -> PlainUmairFps:
    """Return the plain model of the same settings and vectors; its weights are its own."""
    features = [f for f in ours.manifest.features if f.name in batch_features(ours.ranker)]
    used = {feature.table for feature in features}
    return PlainUmairFps(
        tables={t.name: t.num_rows for t in ours.manifest.tables if t.name in used},
        table_of={feature.name: feature.table for feature in features},
        item_features=[feature.name for feature in features if feature.side == "item"],
        vectors={
            name: torch.from_numpy(table.read(0, table.num_rows).astype(np.float32))
            for name, table in ours.vectors.items()
        },
        interests=ours.ranker.inputs.interests,
        settings=ours.config.model,
    )


def plain_batch(batch) -> tuple[dict, torch.Tensor]:
    """Return ({feature: (ids, offsets [B])}, labels [B])."""
    by_feature = batch.features.sparse.to_dict()
    ids = {name: (jagged.values(), jagged.offsets()[:-1]) for name, jagged in by_feature.items()}
    return ids, batch.labels_B


CONTENDERS = {"Tessera": Ours, "plain PyTorch": Plain}


def flops_of(contender) -> int:
    """FLOPs of the matrix products of one step."""
    with FlopCounterMode(display=False, custom_mapping=_onednn_flops()) as counter:
        contender.steps(1)
    return counter.get_total_flops()


def _onednn_flops():
    def linear(x_shape, weight_shape, *_, out_shape=None, **__):
        rows, inputs = x_shape
        return 2 * rows * inputs * weight_shape[0]

    return {torch.ops.mkldnn._linear_pointwise: linear}


def attend(pipe, workspace: Path, case: Case, name: str, threads: int) -> None:
    """Be a contender: a round at every True, the peak memory at False."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    before = tree_bytes(os.getpid())
    contender = CONTENDERS[name](workspace, case, threads)
    contender.steps(2)
    known = {"flops": flops_of(contender)}
    if isinstance(contender, Ours):
        known["bytes"] = contender.bytes_of_step()
    pipe.send(known)
    while pipe.recv():
        begun, cpu_begun = time.perf_counter(), time.process_time()
        contender.steps()
        seconds = time.perf_counter() - begun
        steps = len(contender.batches)
        pipe.send((seconds / steps, (time.process_time() - cpu_begun) / steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send((peak - before) / 2**30)


def measure(workspace: Path, case: Case, *, rounds: int, threads: int) -> dict:
    """Return seconds of a step by contender and round, FLOPs, bytes, peak memory and the rates."""
    torch.set_num_threads(threads)
    spawn = multiprocessing.get_context("spawn")
    attending = {}
    for name in CONTENDERS:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=attend, args=(theirs, workspace, case, name, threads))
        process.start()
        theirs.close()
        attending[name] = (process, ours)
    try:
        found = {
            name: {"known": pipe.recv(), "rounds": []} for name, (_, pipe) in attending.items()
        }
        rates, copies = [], []
        for _ in range(rounds):
            rates.append(matrix_rate(case))
            copies.append(memory_rate())
            for name, (_, pipe) in attending.items():
                pipe.send(True)
                found[name]["rounds"].append(pipe.recv())
        for name, (_, pipe) in attending.items():
            pipe.send(False)
            found[name]["peak_gib"] = pipe.recv()
    finally:
        for process, pipe in attending.values():
            pipe.close()
            process.join()
    return summary(case, found, max(rates), max(copies))


def summary(case: Case, found: dict, matrix_flops: float, memory_bytes: float) -> dict:
    """Return a case's figures: the floor, and rows a second and share of the floor by contender."""
    # The fewest FLOPs that either form needs.
    flops = min(one["known"]["flops"] for one in found.values())
    num_bytes = found["Tessera"]["known"]["bytes"]
    floor = flops / matrix_flops + num_bytes / memory_bytes
    result = dataclasses.asdict(case) | {
        "matrix_gflops": matrix_flops / 1e9,
        "memory_gb": memory_bytes / 1e9,
        "mflops_per_row": flops / 1e6 / case.batch,
        "kb_per_row": num_bytes / 1e3 / case.batch,
        "floor_ms": 1e3 * floor,
    }
    for name, one in found.items():
        seconds = [wall for wall, _ in one["rounds"]]
        result[name] = {
            "best": case.batch / min(seconds),
            "median": case.batch / statistics.median(seconds),
            "cpu_ms": 1e3 * min(cpu for _, cpu in one["rounds"]),
            "share_best": floor / min(seconds),
            "share_median": floor / statistics.median(seconds),
            "peak_gib": one["peak_gib"],
        }
    return result


def command_rates(workspace: Path, case: Case, *, rounds: int, threads: int) -> dict[str, list]:
    """Return rows a second of the training command: one process of all threads, then two processes."""
    found: dict[str, list] = {}
    for number in range(rounds):
        for ranks in (1, 2):
            name = f"{ranks}_{number}"
            command = [*training_program(ranks), *arguments(workspace, case, name)]
            run_watched([*command, "train.epochs=1"], max(1, threads // ranks))
            run = workspace / "runs" / name
            rates = read_rates(run, case.batch, 2 * ROUND_ROWS)
            found.setdefault(f"{ranks} process(es)", []).append(rates["train_samples_per_second"])
            shutil.rmtree(run)
    return found


def matrix_rate(case: Case) -> float:
    """FLOP/s of a large product, oneDNN's or torch's own, whichever is faster."""
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    left, right = (torch.randn(2048, 1024, dtype=dtype) for _ in range(2))
    works = [lambda: torch.nn.functional.linear(left, right)]
    if torch.backends.mkldnn.is_available():
        product = torch.ops.mkldnn._linear_pointwise
        works.append(lambda: product(left, right, None, "none", [], ""))
    return 2 * 2048 * 1024 * 2048 / min(map(best_seconds, works))


def memory_rate() -> float:
    """Bytes/s of a copy as large as the frozen tables, which a processor's cache may hold."""
    source = torch.randn(NUM_ITEMS, sum(MODALITY_DIMS.values()) // 2)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / best_seconds(lambda: target.copy_(source), 20)


def as_markdown(results: list[dict]) -> str:
    """Return one table, a line for a case and contender."""
    lines = [
        "| case | MFLOP, kB a row | floor ms | | rows/s: best | median | of the floor | CPU ms | GiB |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        case = f"{result['size']} {result['precision']}, history {result['history']}"
        case += f", batch {result['batch']:,}"
        for name in CONTENDERS:
            one = result[name]
            lines.append(
                f"| {case} | {result['mflops_per_row']:.2f}, {result['kb_per_row']:.1f} "
                f"| {result['floor_ms']:.2f} | {name} | {one['best']:,.0f} | {one['median']:,.0f} "
                f"| {one['share_best']:.0%} | {one['cpu_ms']:.2f} | {one['peak_gib']:.2f} |"
            )
    return "\n".join(lines)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options name, histories outermost."""
    parts = [
        [int(part) for part in options.histories.split(",")],
        options.sizes.split(","),
        options.precisions.split(","),
        [int(part) for part in options.batches.split(",")],
    ]
    return [
        Case(size=size, history=history, batch=batch, precision=precision)
        for history, size, precision, batch in itertools.product(*parts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--histories", default="20,50")
    parser.add_argument("--batches", default="1024,4096,65536")
    parser.add_argument("--precisions", default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--command", action="store_true", help="the training command, 1 and 2 ranks"
    )
    parser.add_argument("--out", type=Path, help="JSON of all results")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="umair_fps_speed_") as base:
        for case in cases_of(options):
            workspace = Path(base) / str(case.history)
            if not workspace.exists():
                write_data(workspace, case.history)
            results.append(measure(workspace, case, rounds=options.rounds, threads=options.threads))
            print(as_markdown(results[-1:]), flush=True)
            if options.command:
                rates = command_rates(
                    workspace, case, rounds=options.rounds, threads=options.threads
                )
                results[-1]["command"] = rates
                for name, values in rates.items():
                    best, median = max(values), statistics.median(values)
                    print(
                        f"training command, {name}: {best:,.0f} best, {median:,.0f} median",
                        flush=True,
                    )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))
    print("\n" + as_markdown(results))


if __name__ == "__main__":
    main()
