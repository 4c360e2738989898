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
from collections.abc import Callable
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
RESUMED = "resumed from"
STARTING = ("", "model: ", "data: ", RESUMED)
"""Texts that a start says one after the other; "" comes first, while it imports."""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, job):
    """A drawn, prepared and embedded world of 120 pictures."""
    return make_workspace(tmp_path_factory.mktemp("world"), job)


class Chain:
    """One training, killed and started again until it has been killed often enough."""

    def __init__(
        self,
        workspace: Path,
        name: str,
        *more: str,
        rng: np.random.Generator,
        log: Path,
        check: Callable[[], None],
    ):
        """Args: check: asserts what holds for the run at its end."""
        self.workspace, self.name, self.rng, self.log = workspace, name, rng, log
        self.more, self.check = more, check
        self.kills = 0
        self.landed: Counter[str] = Counter()
        self.folder = workspace / "runs" / name
        log.touch()

    def start(self, ranks: int) -> Running:
        arguments = options(self.workspace, self.name, *RUN, *self.more)
        return Running("train", *arguments, ranks=ranks, log=self.log)

    def last_step(self) -> int:
        seen = losses(self.workspace, self.name)
        return seen[-1][0] if seen else 0

    def kill(self, ranks: int, moment: str, victim: str) -> None:
        """Start, wait for the moment, kill, and wait until nothing of it runs any more.

        A run that ends before its moment, as it may on a busy machine, is checked like the last one,
        and a new one is begun.
        """
        before = metrics(self.workspace, self.name)
        while (running := self.reach(ranks, moment)) is None:
            shutil.rmtree(self.folder)
            before = []
        now, step = metrics(self.workspace, self.name), self.last_step()
        # A step that is taken again has the loss it had, and another number of rows a second.
        inside = moment != "start" or now == before[: len(now)]
        if victim == "one" and running.workers():
            os.kill(running.workers()[int(self.rng.integers(len(running.workers())))], 9)
            running.thaw()
            started = time.monotonic()
            assert running.finish(seconds=60) != 0
            assert time.monotonic() - started < 30, "the others go, too"
        else:
            running.kill()
        self.kills += 1
        self.landed[moment] += inside
        print(
            f"seed {SEED} kill {self.kills}: {self.name}, {ranks} rank(s), {moment} "
            f"({'inside' if inside else 'beside'}), {victim}, step {step}",
            flush=True,
        )

    def reach(self, ranks: int, moment: str) -> Running | None:
        """Start and freeze inside the moment; None where the run ends first, and is checked.

        Moments are seen, not timed: all processes are stopped, and the moment is looked for again
        before they are killed. One that has passed is let go for the next.
        """
        # Lines after the checkpoint are dropped on a resume: steps count from there.
        resumes = any((self.folder / "checkpoints").glob("step-*"))
        texts = [text for text in STARTING if resumes or text != RESUMED]
        text = str(self.rng.choice(texts)) if moment == "start" else RESUMED if resumes else ""
        earlier = len(self.log.read_text(errors="replace"))
        running = self.start(ranks)
        reached = running.wait_until(lambda: text in running.said()[earlier:], seconds=300)
        if moment == "start":
            time.sleep(self.rng.uniform(0, 0.1 if text else 2.0))
            reached = reached and running.freeze()
        else:
            wanted = self.last_step() + int(self.rng.integers(1, 7))
            while reached := running.wait_until(lambda: self.seen(moment, wanted), seconds=300):
                time.sleep(self.rng.uniform(0, 0.02))
                if not (reached := running.freeze()) or self.seen(moment, wanted):
                    break
                running.thaw()
        if reached:
            return running
        self.end(running)
        print(f"seed {SEED}: {self.name}, {ranks} rank(s), ended before {moment}; a new one begins")
        return None

    def seen(self, moment: str, step: int) -> bool:
        """Whether a step is reached, and the run is inside a moment."""
        last = self.last_step()
        if moment == "write":
            return last >= step and any((self.folder / "checkpoints").glob(".step-*"))
        if moment == "evaluation":
            lines = metrics(self.workspace, self.name)
            done = any("valid/auc" in line and line["step"] == last for line in lines)
            return last >= step and last % 19 == 0 and not done
        return last >= step

    def end(self, running: Running) -> None:
        """Wait for the end of a run and check it."""
        assert running.finish(seconds=300) == 0, running.said()[-3000:]
        assert leftovers(self.folder) == []
        self.check()


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
    name = f"killed{ranks}"

    def check():
        assert losses(workspace, name) == expected

    chain = Chain(workspace, name, rng=rng, log=tmp_path / "log", check=check)
    plan = [MOMENTS[i % len(MOMENTS)] for i in range(num_kills)]
    victims = ["all", "one"] if ranks else ["all"]
    for index, moment in enumerate(plan):
        chain.kill(ranks, moment, victims[(index // len(MOMENTS)) % len(victims)])
        seen = losses(workspace, name)
        assert seen == expected[: len(seen)], "after every kill"
    chain.end(chain.start(ranks))
    print(f"inside what they were aimed at: {dict(chain.landed)}")
    each = num_kills / len(MOMENTS)
    assert all(chain.landed[moment] == each for moment in MOMENTS if moment != "start")

    for run in (f"whole{ranks}", name):
        done = job("evaluate", "data=demo", f"workspace={workspace}", f"run.name={run}")
        assert done.returncode == 0, done.stderr[-2000:]
    tables = [
        pq.read_table(workspace / "runs" / run / "eval" / "test" / "predictions.parquet")
        for run in (f"whole{ranks}", name)
    ]
    assert tables[0].equals(tables[1])


def test_training_that_changes_its_number_of_ranks_at_every_kill_stays_continuous(
    workspace, job, tmp_path
):
    more = ["model.dropout=0"]
    expected = uninterrupted(workspace, job, "steady", 2, *more)
    rng = np.random.default_rng([SEED, 99])

    def check():
        continuous(workspace, "changing", expected)

    chain = Chain(workspace, "changing", *more, rng=rng, log=tmp_path / "log", check=check)
    for index, ranks in enumerate((2, 0, 4, 2, 0, 2, 1, 4)):
        chain.kill(ranks, MOMENTS[index % 3], "all" if index % 2 else "one")
    chain.end(chain.start(2))


def continuous(workspace: Path, name: str, expected: list[tuple[int, float]]) -> None:
    """Assert that a run has the losses of "steady", but for what a sum over other ranks rounds."""
    seen = losses(workspace, name)
    assert [step for step, _ in seen] == [step for step, _ in expected]
    values, steady = (np.array([loss for _, loss in lines]) for lines in (seen, expected))
    assert np.isfinite(values).all()
    norms, steady_norms = (
        np.array([x["train/gradient_norm"] for x in metrics(workspace, run) if "train/loss" in x])
        for run in (name, "steady")
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
        due = time.monotonic() + seconds
        reached = running.wait_until(
            lambda due=due: time.monotonic() > due, seconds=2 * longest + 60
        )
        if reached and running.freeze():
            one = bool(ranks) and kills % 2 == 0 and len(running.workers()) == ranks
            if one:
                os.kill(running.workers()[int(rng.integers(ranks))], signal.SIGKILL)
                running.thaw()
                assert running.finish(seconds=60) != 0
            else:
                running.kill()
            kills += 1
            victim = "one" if one else "all"
            print(f"seed {SEED} kill {kills}: {name}, {ranks} rank(s), {seconds:.2f} s, {victim}")
        else:
            assert running.finish() == 0, running.said()[-3000:]
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
