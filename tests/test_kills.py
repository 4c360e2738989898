"""At least fifty SIGKILLs at random moments of the real commands; nothing shows afterwards.

    python -m pytest -m slow -s tests/test_kills.py        TESSERA_SEED=1 for other moments

Every test prints its seed, and of every kill the moment, the victim and how far the job had come.
"""

import filecmp
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embedding.features.store import FeatureTable
from tests.processes import Running
from tests.small_runs import leftovers, losses, make_workspace, metrics, options

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = int(os.environ.get("TESSERA_SEED", "0"))
RUN = ["train.global_batch_size=64", "train.epochs=14", "train.patience=0"]
RUN += ["train.save_every_steps=3", "model.dropout=0.2"]
"""19 steps an epoch, 266 in all; a validation after each epoch, a save every third step."""
MOMENTS = ("step", "write", "evaluation", "start")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, job):
    """A drawn, prepared and embedded world of 120 pictures."""
    return make_workspace(tmp_path_factory.mktemp("world"), job)


class Chain:
    """One training, killed and started again until it has been killed often enough."""

    def __init__(self, workspace: Path, name: str, rng: np.random.Generator, log: Path, *more: str):
        self.workspace, self.name, self.rng, self.log = workspace, name, rng, log
        self.more = more
        self.kills = 0
        self.landed: Counter[str] = Counter()
        self.checkpoints = workspace / "runs" / name / "checkpoints"

    def start(self, ranks: int) -> Running:
        arguments = options(self.workspace, self.name, *RUN, *self.more)
        return Running("train", *arguments, ranks=ranks, log=self.log)

    def last_step(self) -> int:
        seen = losses(self.workspace, self.name)
        return seen[-1][0] if seen else 0

    def kill(self, ranks: int, moment: str, victim: str) -> None:
        """Start, wait for the moment, kill, and wait until nothing of it runs any more."""
        resumes = self.saved()
        before = self.log.read_text(errors="replace").count("resumed from") if resumes else 0
        running = self.start(ranks)
        if moment == "start":
            time.sleep(self.rng.uniform(0.5, 6.0))
        else:
            # Lines after the checkpoint are dropped on a resume: count from there.
            resumed = not resumes or running.wait_until(
                lambda: running.said().count("resumed from") > before
            )
            assert resumed, running.said()[-3000:]
            base, wanted = self.last_step(), int(self.rng.integers(1, 7))
            assert running.wait_until(lambda: self.seen(moment, base + wanted)), (
                f"ended before the kill; {running.said()[-3000:]}"
            )
            time.sleep(self.rng.uniform(0, 0.02))
        step = self.last_step()
        if victim == "one" and running.workers():
            os.kill(running.workers()[int(self.rng.integers(len(running.workers())))], 9)
            started = time.monotonic()
            assert running.finish(seconds=60) != 0
            assert time.monotonic() - started < 30, "the others go, too"
        else:
            running.kill()
        self.kills += 1
        hit = self.hit(moment, step)
        self.landed[moment] += hit
        print(
            f"seed {SEED} kill {self.kills}: {self.name}, {ranks} rank(s), {moment} "
            f"({'inside' if hit else 'beside'}), {victim}, step {step}",
            flush=True,
        )

    def saved(self) -> bool:
        return any(self.checkpoints.glob("step-*"))

    def seen(self, moment: str, step: int) -> bool:
        last = self.last_step()
        if moment == "evaluation":
            return last >= step and last % 19 == 0
        return last >= step and (moment == "step" or any(self.checkpoints.glob(".step-*")))

    def hit(self, moment: str, step: int) -> bool:
        """Whether what the kill left shows that it fell inside what it was aimed at."""
        if moment == "write":
            return any(self.checkpoints.glob(".step-*"))
        if moment == "evaluation":
            lines = metrics(self.workspace, self.name)
            return step % 19 == 0 and not any("valid/auc" in x and x["step"] == step for x in lines)
        return True

    def finish(self, ranks: int) -> list[tuple[int, float]]:
        running = self.start(ranks)
        assert running.finish(seconds=300) == 0, running.said()[-3000:]
        assert leftovers(self.workspace / "runs" / self.name) == []
        return losses(self.workspace, self.name)


def uninterrupted(workspace, job, name, ranks, *more):
    done = job("train", *options(workspace, name, *RUN, *more), ranks=ranks)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = losses(workspace, name)
    assert [step for step, _ in expected] == list(range(1, 267))
    return expected


@pytest.mark.parametrize("ranks, num_kills", [(2, 20), (0, 8)])
def test_training_killed_again_and_again_has_the_losses_of_the_whole_one(
    workspace, job, tmp_path, ranks, num_kills
):
    expected = uninterrupted(workspace, job, f"whole{ranks}", ranks)
    rng = np.random.default_rng([SEED, ranks])
    chain = Chain(workspace, f"killed{ranks}", rng, tmp_path / "log")
    plan = [MOMENTS[i % len(MOMENTS)] for i in range(num_kills)]
    victims = ["all", "one"] if ranks else ["all"]
    for index, moment in enumerate(plan):
        chain.kill(ranks, moment, victims[(index // len(MOMENTS)) % len(victims)])
        seen = losses(workspace, chain.name)
        assert seen == expected[: len(seen)], "after every kill"
    assert chain.finish(ranks) == expected
    print(f"inside what they were aimed at: {dict(chain.landed)}")
    assert chain.landed["evaluation"] > 0 and chain.landed["step"] == num_kills / len(MOMENTS)

    for name in (f"whole{ranks}", chain.name):
        done = job("evaluate", "data=demo", f"workspace={workspace}", f"run.name={name}")
        assert done.returncode == 0, done.stderr[-2000:]
    tables = [
        pq.read_table(workspace / "runs" / name / "eval" / "test" / "predictions.parquet")
        for name in (f"whole{ranks}", chain.name)
    ]
    assert tables[0].equals(tables[1])


def test_training_that_changes_its_number_of_ranks_at_every_kill_stays_continuous(
    workspace, job, tmp_path
):
    more = ["model.dropout=0"]
    expected = uninterrupted(workspace, job, "steady", 2, *more)
    rng = np.random.default_rng([SEED, 99])
    chain = Chain(workspace, "changing", rng, tmp_path / "log", *more)
    for index, ranks in enumerate((2, 0, 4, 2, 0, 2, 1, 4)):
        chain.kill(ranks, MOMENTS[index % 3], "all" if index % 2 else "one")
    seen = chain.finish(2)
    assert [step for step, _ in seen] == [step for step, _ in expected]
    values, steady = (np.array([loss for _, loss in lines]) for lines in (seen, expected))
    assert np.isfinite(values).all()
    norms, steady_norms = (
        np.array([x["train/gradient_norm"] for x in metrics(workspace, name) if "train/loss" in x])
        for name in ("changing", "steady")
    )
    # Sums over ranks round differently. Once in some hundred steps that moves a unit across the corner
    # of its ReLU: gradients part at a step whose loss is still the same, and losses follow slowly. A
    # state that was not resumed as it was would show in a loss first.
    apart = np.flatnonzero(np.abs(norms / steady_norms - 1) > 1e-6)
    same = int(apart[0]) + 1 if len(apart) else len(values)
    difference = np.abs(values / steady - 1)
    print(
        f"largest relative difference to two steady ranks: {difference[:same].max():.1e} in "
        f"{same} steps, {difference.max():.1e} in all"
    )
    assert difference[:same].max() < 1e-6
    assert difference.max() < 0.1


def same_files(one: Path, other: Path) -> None:
    """Assert that two folders hold the same files with the same bytes."""
    names = [
        sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        for folder in (one, other)
    ]
    assert names[0] == names[1]
    different = [n for n in names[0] if not filecmp.cmp(one / n, other / n, shallow=False)]
    assert different == []


def kill_at_times(name, arguments, *, ranks, num_kills, longest, rng, log, done):
    """Start a job and kill it after up to `longest` seconds, again and again, then let it end.

    A start that ends by itself is checked by `done`, which also clears the table for another.
    """
    kills = 0
    while kills < num_kills:
        running = Running(name, *arguments, ranks=ranks, log=log)
        seconds = rng.uniform(0.3, longest)
        deadline = time.monotonic() + seconds
        if running.wait_until(lambda deadline=deadline: time.monotonic() > deadline):
            one = bool(ranks) and kills % 2 == 0 and len(running.workers()) == ranks
            if one:
                os.kill(running.workers()[int(rng.integers(ranks))], signal.SIGKILL)
                assert running.finish(seconds=60) != 0
            else:
                running.kill()
            kills += 1
            victim = "one" if one else "all"
            print(f"seed {SEED} kill {kills}: {name}, {ranks} rank(s), {seconds:.2f} s, {victim}")
        else:
            assert running.process.returncode == 0, running.said()[-3000:]
            done()
    running = Running(name, *arguments, ranks=ranks, log=log)
    assert running.finish(seconds=300) == 0, running.said()[-3000:]
    done()


def test_prepare_killed_at_random_times_leaves_the_same_files(workspace, tmp_path):
    folder = tmp_path / "w"
    folder.mkdir()
    arguments = ["data=demo", f"workspace={folder}", f"data.source={workspace / 'raw'}"]
    whole = tmp_path / "whole"
    running = Running("prepare", *arguments, log=tmp_path / "log")
    started = time.monotonic()
    assert running.finish() == 0, running.said()
    seconds = time.monotonic() - started
    (folder / "prepared").rename(whole)

    def done():
        same_files(folder / "prepared", whole)
        assert [path.name for path in folder.iterdir()] == ["prepared"]
        shutil.rmtree(folder / "prepared")

    rng = np.random.default_rng([SEED, 7])
    kill_at_times(
        "prepare",
        arguments,
        ranks=0,
        num_kills=8,
        longest=seconds,
        rng=rng,
        log=tmp_path / "log",
        done=done,
    )


def test_evaluate_killed_at_random_times_leaves_the_same_predictions(workspace, job, tmp_path):
    done = job("train", *options(workspace, "scored", "train.epochs=1"), ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    arguments = [
        "data=demo",
        f"workspace={workspace}",
        "run.name=scored",
        "bootstrap.num_replicates=50",
    ]
    folder = workspace / "runs" / "scored" / "eval" / "test"
    running = Running("evaluate", *arguments, ranks=2, log=tmp_path / "log")
    started = time.monotonic()
    assert running.finish() == 0, running.said()[-3000:]
    seconds = time.monotonic() - started
    expected = {p.name for p in folder.iterdir()}
    table = pq.read_table(folder / "predictions.parquet")
    shutil.rmtree(folder.parent)

    def check():
        assert {p.name for p in folder.iterdir()} == expected
        assert pq.read_table(folder / "predictions.parquet").equals(table)
        assert leftovers(workspace / "runs" / "scored") == []
        shutil.rmtree(folder.parent)

    kill_at_times(
        "evaluate",
        arguments,
        ranks=2,
        num_kills=4,
        longest=seconds,
        rng=np.random.default_rng([SEED, 8]),
        log=tmp_path / "log",
        done=check,
    )


EMBED = ["encoder.image.size=32", "encoder.image.pretext_epochs=3", "shard_rows=8"]
EMBED += ["encoder.image.pretext_min_count=2", "encoder.image.style_dim=8"]
EMBED += ["encoder.text.max_pairs=200", "encoder.text.epochs=1", "encoder.text.save_every_steps=2"]


def test_embed_killed_at_random_times_leaves_the_same_vectors(workspace, tmp_path):
    """Inside the encoders' training and inside the extraction; two ranks."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        shutil.copytree(workspace / "prepared", folder / "prepared")
    arguments = ["data=demo", *EMBED]
    started = time.monotonic()
    running = Running("embed", *arguments, f"workspace={whole}", ranks=2, log=tmp_path / "log")
    assert running.finish() == 0, running.said()[-3000:]
    seconds = time.monotonic() - started

    def done():
        tables = {n: FeatureTable(cut / "features" / n) for n in ("semantic", "style", "text")}
        for name, table in tables.items():
            values = np.array(table.read(0, table.num_rows))
            assert np.isfinite(values).all() and len(values) == 121, name
        for path in sorted((whole / "features").rglob("*.npy")):
            assert filecmp.cmp(path, cut / path.relative_to(whole), shallow=False), path
        assert leftovers(cut / "encoders") == []
        assert not [path for path in leftovers(cut / "features") if path.endswith(".part")]
        shutil.rmtree(cut / "features")
        shutil.rmtree(cut / "encoders")

    kill_at_times(
        "embed",
        [*arguments, f"workspace={cut}"],
        ranks=2,
        num_kills=8,
        longest=seconds,
        rng=np.random.default_rng([SEED, 9]),
        log=tmp_path / "log",
        done=done,
    )
