"""Chains of tiny bundles: a few arrays, exported one after the other with their deltas."""

import datetime
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from recsys.bundle.chain import read_link
from recsys.bundle.delta import DELTAS
from recsys.bundle.spec import point_to
from recsys.export.delta import bundle_in_making
from recsys.files import write_json


def export(bundles: Path, name: str, base: Path | None = None, **arrays: np.ndarray) -> Path:
    """Export a bundle of arrays; with a base, its delta too. The double of the server opens it."""
    bundles.mkdir(parents=True, exist_ok=True)
    link = None if base is None else read_link(base)
    content = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(),
        "parent": link and link.name,
        "chain": link and link.chain,
        "sequence": 0 if link is None else link.sequence + 1,
    }
    with bundle_in_making(bundles, SimpleNamespace(name=name, **content), base) as folder:
        write_json(folder / "bundle.json", {**content, "version": name, "since": 0.0})
        for array, values in arrays.items():
            np.save(folder / f"{array}.npy", values)
    return bundles / name


def chain(bundles: Path, num_deltas: int) -> list[Path]:
    """A whole bundle `v0` and its successors `v1`, ...: a tenth of the rows change, some are added."""
    rng = np.random.default_rng(7)
    table = rng.integers(0, 256, (400, 16), dtype=np.uint8)
    kept = rng.normal(size=(100, 3))
    made = [export(bundles, "v0", table=table, kept=kept)]
    for number in range(1, num_deltas + 1):
        table = np.concatenate([table, rng.integers(0, 256, (3, 16), dtype=np.uint8)])
        table[rng.integers(0, 400, 40)] += 1
        made.append(export(bundles, f"v{number}", made[-1], table=table, kept=kept))
    return made


def delta_folder(bundles: Path, number: int) -> Path:
    return bundles / DELTAS / f"{number:06d}-v{number}"


def copy_base(bundles: Path, elsewhere: Path) -> Path:
    """A folder of bundles on another machine: the whole bundle alone, which is the current one."""
    shutil.copytree(bundles / "v0", elsewhere / "v0")
    point_to(elsewhere, "v0")
    return elsewhere


def send(bundles: Path, elsewhere: Path, *numbers: int) -> None:
    """Copy deltas to another machine, delta.json last, as launch/sync.py does."""
    for number in numbers:
        folder = delta_folder(bundles, number)
        target = elsewhere / DELTAS / folder.name
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("delta.json"))
        shutil.copyfile(folder / "delta.json", target / ".delta.json.part")
        (target / ".delta.json.part").rename(target / "delta.json")
