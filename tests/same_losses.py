"""Regression check of a refactoring: training losses of two checkouts, equal bit for bit.

    python -m tests.same_losses record FILE --workspaces DIR [--checkout DIR] [--cases NAME ...]
    python -m tests.same_losses compare BEFORE AFTER

`record` trains every case below with the launch files of `--checkout` (default: this one) on the
workspaces `DIR/demo`, `DIR/movielens` and `DIR/anime` (those that exist; prepared and embedded by the
README's commands), and writes the loss and the gradient norm of every step and the validation metrics
to FILE. `compare` prints one line a case and ends with code 1 where any value differs. Both
recordings must use the same workspaces, thread count and machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "umair_fps": ("demo", ["experiment=umair_fps"]),
    "ids_only": ("demo", ["experiment=ids_only"]),
    "dcn_v2": ("demo", ["experiment=umair_fps", "model=dcn_v2"]),
    "finalmlp_batch_norm": (
        "demo",
        ["experiment=umair_fps", "model=finalmlp", "model.batch_norm=true"],
    ),
    "movielens": ("movielens", ["experiment=movielens"]),
    "anime": ("anime", ["experiment=anime"]),
}
"""Data set and settings of every case; each runs on one rank and on two."""
_IGNORED = ("_per_second", "_seconds", "peak_gib")


def record(file: Path, workspaces: Path, checkout: Path, names: list[str]) -> None:
    """Train the cases and write their metrics.

    Raises:
        SystemExit: a training failed; its last lines are printed.
    """
    results: dict[str, list[dict[str, float]]] = {}
    for name in names:
        data, overrides = CASES[name]
        if not (workspaces / data / "features").is_dir():
            print(f"{name}: left out, {workspaces / data} is not there")
            continue
        for ranks in (1, 2):
            results[f"{name}, {ranks} rank(s)"] = _train(
                checkout, workspaces / data, data, [*overrides, "train.epochs=1"], ranks
            )
            print(f"{name}, {ranks} rank(s): recorded", flush=True)
    file.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _train(
    checkout: Path, workspace: Path, data: str, overrides: list[str], ranks: int
) -> list[dict[str, float]]:
    name = f"same_losses_{os.getpid()}"
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [
        str(checkout / "launch" / "train.py"),
        *(f"data={data}", f"workspace={workspace}", f"run.name={name}"),
        *("run.deterministic=true", "train.log_every_steps=1", *overrides),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    run = workspace / "runs" / name
    if done.returncode:
        sys.exit(f"{' '.join(command)}: code {done.returncode}\n{done.stderr[-2000:]}")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    shutil.rmtree(run)
    return [
        {key: value for key, value in json.loads(line).items() if not key.endswith(_IGNORED)}
        for line in lines
    ]


def compare(before: Path, after: Path) -> bool:
    """Print one line a case; return whether all cases of both files are equal."""
    old, new = (json.loads(file.read_text(encoding="utf-8")) for file in (before, after))
    same = True
    for name in [*old, *(name for name in new if name not in old)]:
        verdict = _verdict(old.get(name), new.get(name))
        same &= verdict.startswith("equal")
        print(f"{name}: {verdict}")
    return same


def _verdict(old: list[dict[str, float]] | None, new: list[dict[str, float]] | None) -> str:
    if old is None or new is None:
        return "is in one of the files only"
    if len(old) != len(new):
        return f"differs: {len(old)} and {len(new)} lines"
    for line, other in zip(old, new, strict=True):
        shared = [key for key in line if key in other]
        for key in shared:
            # NaN is written as null or NaN and is equal to itself.
            if line[key] != other[key] and str(line[key]) != str(other[key]):
                return f"differs at step {line['step']}: {key} {line[key]!r}, {other[key]!r}"
    return f"equal in {len(old)} lines"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--workspaces", type=Path, required=True)
    recording.add_argument("--checkout", type=Path, default=ROOT)
    recording.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        record(given.file, given.workspaces.resolve(), given.checkout.resolve(), given.cases)
    elif not compare(given.before, given.after):
        sys.exit(1)


if __name__ == "__main__":
    main()
