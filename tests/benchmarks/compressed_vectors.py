"""Feature vectors in an eighth of their bytes: test AUC of trained runs that read them.

    python -m tests.benchmarks.compressed_vectors WORKSPACE OTHER [--codec C] [--bits B] [--runs RUN ...]

Makes workspace OTHER of the same data, whose vectors are encoded with 2 bits a number (fp16 has 16) and
decoded again, and prints the share of the variance that is lost. With runs of WORKSPACE: their AUC on the
test split with the vectors they were trained on and with those of OTHER, and a 95 % interval of the
difference, over users. `launch/train.py workspace=OTHER` trains on them.

Codecs: `transform` (principal components, each with as many bits as its variance earns) and `principal`
(the leading components in fp16). Shapes: N items, E width, K components, R rows of a split.
"""

import argparse
import dataclasses
import heapq
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedding.features.store import FeatureTable, spec_of, write_feature_manifest, write_shard
from recsys.evaluation.predict import Predictions, predict
from recsys.metrics.auc import auc
from recsys.run.folder import read_run_folder
from recsys.run.scoring import open_run, split_loader
from recsys.runtime.env import Env, start, stop
from recsys.schema import read_manifest

STEPS = (0.0, 1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
"""Steps, in deviations, of the best uniform quantiser of a normal variable, by bits (Max 1960)."""
ERRORS = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.00104, 0.000304, 0.0000877)
"""Its mean squared errors, in variances, by bits."""
REPLICATES = 200


def allocated_bits(variance_E: np.ndarray, total: int) -> np.ndarray:
    """Return the bits of each component, int [E]: each goes where it lessens the error most.

    The sum is `total`, or 8 E if that is less.
    """
    bits_E = np.zeros(len(variance_E), dtype=int)
    gains = [(-variance * (ERRORS[0] - ERRORS[1]), i) for i, variance in enumerate(variance_E)]
    heapq.heapify(gains)
    for _ in range(total):
        if not gains:
            break
        _, i = heapq.heappop(gains)
        bits_E[i] += 1
        if bits_E[i] < len(STEPS) - 1:
            lessens = ERRORS[bits_E[i]] - ERRORS[bits_E[i] + 1]
            heapq.heappush(gains, (-variance_E[i] * lessens, i))
    return bits_E


class Transform:
    """Transform coding (Huang and Schultheiss 1963): components, each with bits of its own."""

    def __init__(self, vectors_NE: np.ndarray, bits: int):
        """Fit centre, axes and bits; `bits`: of a number of a vector, on average."""
        self.centre_E = vectors_NE.mean(axis=0)
        variance_E, axes_EE = np.linalg.eigh(np.cov(vectors_NE - self.centre_E, rowvar=False))
        self.axes_EE, variance_E = axes_EE[:, ::-1], np.maximum(variance_E[::-1], 1e-12)
        self.bits_E = allocated_bits(variance_E, bits * len(variance_E))
        self.step_E = np.array(STEPS)[self.bits_E] * np.sqrt(variance_E)

    def encode(self, vectors_NE: np.ndarray) -> np.ndarray:
        """Return codes int [N, E], each from 0 to 2 ** bits - 1."""
        components_NE = (vectors_NE - self.centre_E) @ self.axes_EE
        half_E = 2**self.bits_E // 2
        cells_NE = np.floor(components_NE / np.maximum(self.step_E, 1e-12)).astype(np.int64)
        return np.where(self.bits_E > 0, np.clip(cells_NE + half_E, 0, 2 * half_E - 1), 0)

    def decode(self, codes_NE: np.ndarray) -> np.ndarray:
        """Return vectors [N, E]."""
        components_NE = (codes_NE - 2**self.bits_E // 2 + 0.5) * self.step_E
        return components_NE @ self.axes_EE.T + self.centre_E


def transformed(vectors_NE: np.ndarray, bits: int) -> np.ndarray:
    """Return vectors [N, E] after encoding with `bits` a number, on average."""
    codec = Transform(vectors_NE, bits)
    return codec.decode(codec.encode(vectors_NE))


def principal(vectors_NE: np.ndarray, bits: int) -> np.ndarray:
    """Return vectors [N, E] of as many components as fp16 holds with `bits` a number."""
    centre_E = vectors_NE.mean(axis=0)
    _, axes_EE = np.linalg.eigh(np.cov(vectors_NE - centre_E, rowvar=False))
    axes_EK = axes_EE[:, -max(1, len(axes_EE) * bits // 16) :]
    return (vectors_NE - centre_E) @ axes_EK @ axes_EK.T + centre_E


CODECS = {"transform": transformed, "principal": principal}


def write_decoded(workspace: Path, other: Path, codec: str, bits: int, runs: Sequence[str]) -> None:
    """Make a workspace of the same data and of some runs, whose vectors were encoded and decoded."""
    (other / "features").mkdir(parents=True)
    (other / "runs").mkdir()
    for name in ("prepared", *(f"runs/{run}" for run in runs)):
        (other / name).symlink_to((workspace / name).resolve())
    for folder in sorted(path for path in (workspace / "features").iterdir() if path.is_dir()):
        table = FeatureTable(folder)
        vectors_NE = table.read(0, table.num_rows).astype(np.float64)
        known_N = (vectors_NE != 0).any(axis=1)
        known_NE = vectors_NE[known_N]
        vectors_NE[known_N] = CODECS[codec](known_NE, bits)
        lost = np.square(vectors_NE[known_N] - known_NE).sum() / known_NE.var(axis=0).sum()
        print(f"{table.name}: {table.dim} wide, {lost / len(known_NE):.4f} of the variance lost")
        rows = np.concatenate([np.load(folder / s.rows_file) for s in table.manifest.shards])
        made = other / "features" / table.name
        made.mkdir()
        entry = write_shard(made, 0, 0, vectors_NE, rows)
        manifest = dataclasses.replace(table.manifest, shards=(spec_of(entry),))
        write_feature_manifest(made, manifest)


def scored(workspace: Path, name: str, env: Env) -> Predictions:
    """Return a run's predictions on the test split, by row id, with the vectors of the workspace."""
    manifest = read_manifest(workspace)
    config = read_run_folder(workspace / "runs" / name)
    run = open_run(workspace, config, manifest, env)
    rows = predict(run.sharded, split_loader(run, "test").batches(epoch=0), env)
    return rows.take(np.argsort(rows.row_id))


def show_run(workspace: Path, other: Path, name: str, env: Env) -> None:
    """Print a run's AUC with its vectors and with the decoded ones, and their difference."""
    before, after = (scored(place, name, env) for place in (workspace, other))
    label_R = before.label
    users, user_R = np.unique(before.user_row, return_inverse=True)
    rng, found = np.random.default_rng(0), []
    for _ in range(REPLICATES):
        count_U = np.bincount(rng.integers(len(users), size=len(users)), minlength=len(users))
        rows = np.repeat(np.arange(len(label_R)), count_U[user_R])
        found.append(auc(label_R[rows], after.score[rows]) - auc(label_R[rows], before.score[rows]))
    whole, coded = auc(label_R, before.score), auc(label_R, after.score)
    low, high = np.quantile(found, [0.025, 0.975])
    print(
        f"{name}: AUC {whole:.5f}, of codes {coded:.5f}: {coded - whole:+.5f} [{low:+.5f}, {high:+.5f}]",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("other", type=Path, help="workspace to make")
    parser.add_argument("--codec", choices=list(CODECS), default="transform")
    parser.add_argument("--bits", type=int, default=2, help="bits a number; 2: an eighth of fp16")
    parser.add_argument("--runs", nargs="*", default=[], help="runs of the first workspace")
    given = parser.parse_args()
    process = start("cpu", threads=None)
    write_decoded(given.workspace, given.other, given.codec, given.bits, given.runs)
    for run_name in given.runs:
        show_run(given.workspace, given.other, run_name, process)
    stop()
