"""Small trainings on a small drawn world: how they are called, and what they left."""

import json
from pathlib import Path

import numpy as np

from recsys.schema import read_manifest
from tests.feature_tables import write_table

SMALL = ["model.embedding_dim=8", "model.tower_dims=[16,8]", "model.deep_dims=[8]"]
SMALL += ["train.global_batch_size=256", "train.log_every_steps=1"]


def write_features(workspace: Path, items_checksum: str | None = None) -> None:
    """Write seeded vectors for every modality, as embed would."""
    manifest = read_manifest(workspace)
    for index, (name, dim) in enumerate({"semantic": 12, "style": 8, "text": 10}.items()):
        vectors = np.random.default_rng(index).normal(size=(manifest.num_item_rows, dim))
        vectors[0] = 0
        write_table(
            workspace / "features" / name,
            vectors,
            items_checksum=items_checksum or manifest.items_checksum,
            num_masked=1,
        )


def make_workspace(folder: Path, job) -> Path:
    """A drawn, prepared and embedded world of 120 pictures."""
    sizes = ["world.num_items=120", "world.num_users=60", "world.num_exposures=1500"]
    done = job("demo", f"workspace={folder}", "processes=1", *sizes)
    assert done.returncode == 0, done.stderr
    done = job("prepare", "data=demo", f"workspace={folder}")
    assert done.returncode == 0, done.stderr
    write_features(folder)
    return folder


def options(workspace: Path, name: str, *more: str) -> list[str]:
    """Arguments of launch/train.py."""
    return ["data=demo", f"workspace={workspace}", f"run.name={name}", *SMALL, *more]


def metrics(workspace: Path, name: str) -> list[dict]:
    """Lines of metrics.jsonl; a last one that is being written is left out."""
    file = workspace / "runs" / name / "metrics.jsonl"
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def losses(workspace: Path, name: str) -> list[tuple[int, float]]:
    """(step, training loss) of every line that has one."""
    lines = metrics(workspace, name)
    return [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]


def steps_saved(workspace: Path, name: str) -> list[int]:
    """Steps of the checkpoints that are in place."""
    folder = workspace / "runs" / name / "checkpoints"
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def leftovers(folder: Path) -> list[str]:
    """Hidden and half-written files and folders below `folder`."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.startswith(".") or path.suffix == ".part"
    )
