"""A tiny bundle, made by the jobs: drawn world, prepare, embed, train, export."""

from pathlib import Path

from tests.small_runs import SMALL
from tests.warm_jobs import Job

WORLD = ["world.num_items=120", "world.num_users=60", "world.num_exposures=1500", "processes=1"]
ENCODERS = ["encoder/image=tiny", "encoder.image.pretext_epochs=1", "encoder/text=scratch"]
ENCODERS += ["encoder.text.epochs=1", "encoder.text.max_pairs=64"]


def make_workspace(folder: Path, job: Job) -> Path:
    """A drawn, prepared and embedded world of 120 pictures, with encoders of its own."""
    for name, *arguments in (
        ("demo", *WORLD),
        ("prepare", "data=demo"),
        ("embed", "data=demo", *ENCODERS),
    ):
        done = job(name, f"workspace={folder}", *arguments)
        assert done.returncode == 0, done.stderr
    return folder


def train(workspace: Path, job: Job, name: str, *more: str, ranks: int = 0) -> None:
    """Train a small run on the tiny world."""
    place = ["data=demo", f"workspace={workspace}", f"run.name={name}"]
    done = job("train", *place, *SMALL, "train.epochs=1", *more, ranks=ranks)
    assert done.returncode == 0, done.stderr


def export(workspace: Path, job: Job, name: str, *more: str) -> Path:
    """Export a run of the tiny world, and return the bundle's folder."""
    done = job("export", "data=demo", f"workspace={workspace}", f"run.name={name}", *more)
    assert done.returncode == 0, done.stderr
    bundles = workspace / "bundles"
    return bundles / (bundles / "current").read_text().strip()
