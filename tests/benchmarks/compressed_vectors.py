"""Feature vectors in an eighth of their bytes: test AUC of trained runs that read codes in their place.

    python -m tests.benchmarks.compressed_vectors WORKSPACE OTHER [--bits B] [--runs RUN ...] [--split S]

Makes workspace OTHER of the same data, whose feature tables hold codes, as `vector_bits=B` of
launch/embed.py would leave them, and prints bytes before and after, and the share of the variance that is
lost. With runs of WORKSPACE: their AUC with the vectors they were trained on and with those of OTHER,
looked up as codes, and a 95 % interval of the difference, over users.

Shapes: N items, E width, R rows of a split.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embedding.features.codebook_fit import fitted_codebooks
from embedding.features.codes import RowForm
from embedding.features.store import FeatureTable, spec_of, write_feature_manifest, write_shard
from recsys.evaluation.predict import Predictions, predict
from recsys.metrics.auc import auc
from recsys.run.folder import read_run_folder
from recsys.run.scoring import open_run, split_loader
from recsys.runtime.env import Env, start, stop
from recsys.schema import read_manifest

REPLICATES = 200


def write_coded(workspace: Path, other: Path, bits: int, runs: Sequence[str]) -> None:
    """Make a workspace of the same data and of some runs, whose feature tables hold codes."""
    (other / "features").mkdir(parents=True)
    (other / "runs").mkdir()
    for name in ("prepared", *(f"runs/{run}" for run in runs)):
        (other / name).symlink_to((workspace / name).resolve())
    for folder in sorted(path for path in (workspace / "features").iterdir() if path.is_dir()):
        table = FeatureTable(folder)
        vectors_NE = table.read(0, table.num_rows)
        books = fitted_codebooks(folder, bits)
        form = RowForm(dim=table.dim, codebooks=books)
        stored_NC = form.encode(vectors_NE)
        rows = np.concatenate([np.load(folder / s.rows_file) for s in table.manifest.shards])
        made = other / "features" / table.name
        made.mkdir()
        books.write(made)
        manifest = dataclasses.replace(
            table.manifest,
            shards=(spec_of(write_shard(made, 0, 0, stored_NC, rows, form)),),
            bits=bits,
            codebooks=books.digest,
            dtype=str(form.dtype),
        )
        write_feature_manifest(made, manifest)
        known_NE = vectors_NE[vectors_NE.any(axis=1)].astype(np.float64)
        back_NE = FeatureTable(made).read(0, table.num_rows)[vectors_NE.any(axis=1)]
        lost = np.square(back_NE - known_NE).sum() / known_NE.var(axis=0).sum() / len(known_NE)
        of_books = books.basis_EZ.nbytes + books.codewords_SKD.nbytes
        print(
            f"{table.name}: {table.dim} wide, {vectors_NE.nbytes:,} bytes of fp16, "
            f"{stored_NC.nbytes:,} of codes and {of_books:,} of codebooks; "
            f"{lost:.4f} of the variance lost",
            flush=True,
        )


def scored(workspace: Path, name: str, split: str, env: Env) -> Predictions:
    """Return a run's predictions on a split, by row id, with the vectors of the workspace."""
    manifest = read_manifest(workspace)
    config = read_run_folder(workspace / "runs" / name)
    run = open_run(workspace, config, manifest, env)
    rows = predict(run.sharded, split_loader(run, split).batches(epoch=0), env)
    return rows.take(np.argsort(rows.row_id))


def show_run(workspace: Path, other: Path, name: str, split: str, env: Env) -> None:
    """Print a run's AUC with its vectors and with codes of them, and their difference."""
    before, after = (scored(place, name, split, env) for place in (workspace, other))
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
        f"{name}, {split}: AUC {whole:.5f}, of codes {coded:.5f}: {coded - whole:+.5f} "
        f"[{low:+.5f}, {high:+.5f}]",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("other", type=Path, help="workspace to make")
    parser.add_argument("--bits", type=int, choices=(2, 4), default=2, help="2: an eighth of fp16")
    parser.add_argument("--runs", nargs="*", default=[], help="runs of the first workspace")
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    process = start("cpu", threads=None)
    write_coded(given.workspace, given.other, given.bits, given.runs)
    for run_name in given.runs:
        show_run(given.workspace, given.other, run_name, given.split, process)
    stop()
