"""Tessera beside FuxiCTR, DeepCTR-Torch and plain PyTorch: the same DCN-V2 on the same Parquet.

    make peers                                             once: the peers' own environment, .peers/
    python -m tests.benchmarks.side_by_side                everything, about twenty minutes
    python -m tests.benchmarks.side_by_side --shapes b --rounds 3 --threads 1
    python -m tests.benchmarks.side_by_side --auc          one longer pass each, for the AUC alone

Every contender runs its real command in a process of its own, one after the other, round after round, so
that all see the same machine. Three full cross layers beside 3 x 400, width 16, batch 4,096, one pass.
Timings count only on an otherwise idle machine.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.benchmarks.click_log import SHAPES, Shape, write_click_log
from tests.benchmarks.peers.measure import tree_bytes

ROOT = Path(__file__).resolve().parents[2]
BATCH = 4096
ROW_WISE, ADAM = "optim.table.name=rowwise_adagrad", "optim.table.name=adam"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to train the model on a shape."""

    name: str
    shapes: str
    """Letters of the shapes it takes part in."""
    script: str = ""
    """A peer's script below tests/benchmarks/peers; empty: launch/train.py."""
    variant: str = ""
    """Of a peer's script; of Tessera the dense precision."""
    ranks: int = 1
    max_rows: dict[str, int] = dataclasses.field(default_factory=dict)
    """Rows of a pass by shape, where a whole one would take minutes."""


# A step of a dense table optimizer costs every row: with 30 million it takes seconds, and its own
# memory beside it. Four steps say as much as fifty.
FEW = {"c": 4 * BATCH}
CONTENDERS = [
    Contender(name="Tessera fp32", shapes="abcd", variant="fp32"),
    Contender(
        name="FuxiCTR, batches from memory",
        shapes="abc",
        script="fuxictr_dcn",
        variant="memory",
        max_rows=FEW,
    ),
    Contender(name="Tessera bf16", shapes="abcd", variant="bf16"),
    Contender(name="DeepCTR-Torch", shapes="abc", script="deepctr_dcn", max_rows=FEW),
    Contender(name="Tessera fp32, 2 processes", shapes="ab", variant="fp32", ranks=2),
    Contender(name="PyTorch, sparse", shapes="abcd", script="torch_dcn"),
    Contender(name="FuxiCTR, npz loader", shapes="ab", script="fuxictr_dcn", variant="npz"),
    Contender(name="Tessera bf16, 2 processes", shapes="ab", variant="bf16", ranks=2),
    Contender(
        name="FuxiCTR, frozen tables, memory", shapes="d", script="fuxictr_dcn", variant="memory"
    ),
    Contender(
        name="FuxiCTR, vectors in rows, memory",
        shapes="d",
        script="fuxictr_dcn",
        variant="memory rows",
    ),
    Contender(
        name="FuxiCTR, vectors in rows, npz loader",
        shapes="d",
        script="fuxictr_dcn",
        variant="npz rows",
    ),
]


def training_program(ranks: int) -> list[str]:
    """Return how launch/train.py is started on some ranks of this machine."""
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [*start, str(ROOT / "launch" / "train.py")]


def tessera_command(workspace: Path, contender: Contender, name: str, threads: int) -> list[str]:
    """Return the training command: the real one, as a user would type it."""
    return [
        *training_program(contender.ranks),
        *("data=ctr", "data.source=none", f"workspace={workspace}", f"run.name={name}"),
        *("model=dcn_v2", "model.deep_dims=[400,400,400]", "model.tower_dims=[16]"),
        *("model.dropout=0.0", "model.interest_modalities=[]", "optim=base"),
        *(f"model.dense_precision={contender.variant}", ROW_WISE, "optim.table.learning_rate=0.02"),
        *(f"train.global_batch_size={BATCH}", "train.epochs=1", "train.log_every_steps=5"),
    ]


def run_tessera(workspace: Path, shape: Shape, contender: Contender, threads: int) -> dict:
    """Train once; rates over the whole pass, its first steps included."""
    name = f"{contender.variant}_{contender.ranks}"
    shutil.rmtree(workspace / "runs", ignore_errors=True)
    peak = run_watched(tessera_command(workspace, contender, name, threads), threads)
    rates = read_rates(workspace / "runs" / name, BATCH, shape.train_rows)
    return rates | {"peak_gib": peak / 2**30}


def read_rates(run: Path, batch: int, train_rows: int) -> dict[str, float]:
    """Return the rates of a run of one pass over `train_rows` rows, and its AUC, by its metrics."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds, rows = 0.0, 0
    for line in metrics:
        if "train/examples_per_second" in line:
            upto = min(line["step"] * batch, train_rows)
            seconds += (upto - rows) / line["train/examples_per_second"]
            rows = upto
    valid = next(line for line in metrics if "valid/auc" in line)
    return {
        "train_samples_per_second": rows / seconds,
        "eval_samples_per_second": valid["valid/examples_per_second"],
        "auc": valid["valid/auc"],
    }


def run_peer(
    python: Path, workspace: Path, shape: Shape, contender: Contender, threads: int
) -> dict:
    """Run a peer's script once."""
    result = workspace / "peer.json"
    script = ROOT / "tests" / "benchmarks" / "peers" / f"{contender.script}.py"
    command = [str(python), str(script), str(workspace), str(result), f"--threads={threads}"]
    if contender.variant:
        command.append(f"--variant={contender.variant}")
    if shape.name in contender.max_rows:
        command.append(f"--max-rows={contender.max_rows[shape.name]}")
    peak = run_watched(command, threads)
    return json.loads(result.read_text()) | {"peak_gib": peak / 2**30}


def run_watched(command: list[str], threads: int) -> int:
    """Run a command; return the resident bytes of it and its children at their highest."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        peak, done = 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.1):
                peak = max(peak, tree_bytes(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            code = process.wait(timeout=900)
        finally:
            process.kill()
            done.set()
            watcher.join()
        if code:
            output.seek(0)
            raise RuntimeError(f"exit code {code}:\n" + "".join(output.readlines()[-15:]))
    return peak


def compare(
    *, peers_python: Path, shapes: list[Shape], names: list[str], rounds: int, threads: int
) -> dict[str, dict[str, list[dict]]]:
    """Return all results by shape and contender; a contender that fails is out, with its last words."""
    found: dict[str, dict[str, list[dict]]] = {}
    for shape in shapes:
        taking_part = [
            c
            for c in CONTENDERS
            if shape.name in c.shapes and (not names or any(n in c.name for n in names))
        ]
        results: dict[str, list[dict]] = {c.name: [] for c in taking_part}
        found[shape.name] = results
        with tempfile.TemporaryDirectory(prefix="side_by_side_") as folder:
            write_click_log(Path(folder), shape)
            for number in range(rounds):
                for contender in taking_part:
                    if any("problem" in result for result in results[contender.name]):
                        continue
                    begun = time.perf_counter()
                    try:
                        if contender.script:
                            result = run_peer(peers_python, Path(folder), shape, contender, threads)
                        else:
                            result = run_tessera(Path(folder), shape, contender, threads)
                    except (RuntimeError, subprocess.TimeoutExpired) as error:
                        result = {"problem": str(error)}
                    results[contender.name].append(result)
                    shown = result.get("train_samples_per_second", 0)
                    print(
                        f"({shape.name}) round {number + 1}: {contender.name}: {shown:,.0f} "
                        f"samples/s, {time.perf_counter() - begun:.0f} s "
                        f"{result.get('problem', '')}",
                        flush=True,
                    )
    return found


def as_markdown(found: dict[str, dict[str, list[dict]]]) -> str:
    """Return one table a shape: best and median of every measure."""
    lines = []
    for letter, results in found.items():
        shape = SHAPES[letter]
        lines += [
            f"({letter}) {shape.num_fields} fields, {shape.num_ids + shape.num_items:,} ids"
            + (
                f", vectors {'+'.join(map(str, shape.modality_dims.values()))}"
                * bool(shape.num_items)
            ),
            "",
            "| | train samples/s: best | median | evaluation: best | median | peak GiB | AUC |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for name, rounds in results.items():
            good = [r for r in rounds if "problem" not in r]
            if not good:
                lines.append(f"| {name} | does not run here | | | | | |")
                continue
            train = [r["train_samples_per_second"] for r in good]
            valid = [r["eval_samples_per_second"] for r in good]
            lines.append(
                f"| {name} | {max(train):,.0f} | {statistics.median(train):,.0f} "
                f"| {max(valid):,.0f} | {statistics.median(valid):,.0f} "
                f"| {max(r['peak_gib'] for r in good):.2f} "
                f"| {statistics.median(r['auc'] for r in good):.4f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default="abcd", help="letters")
    parser.add_argument("--contenders", default="", help="parts of names, comma between; all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--auc", action="store_true", help="one pass over eight times the rows")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers" / "bin" / "python")
    parser.add_argument("--out", type=Path, help="JSON of all results")
    options = parser.parse_args()
    shapes = [SHAPES[letter] for letter in options.shapes]
    if options.auc:
        shapes = [dataclasses.replace(s, train_rows=8 * s.train_rows) for s in shapes]
    found = compare(
        peers_python=options.peers,
        shapes=shapes,
        names=[name for name in options.contenders.split(",") if name],
        rounds=1 if options.auc else options.rounds,
        threads=options.threads,
    )
    if options.out:
        options.out.write_text(json.dumps(found, indent=1))
    print("\n" + as_markdown(found))


if __name__ == "__main__":
    main()
