"""Integrity of checkpoints: a manifest with size and sha256 of every file, written last.

    checkpoints/
      best.json                     names the checkpoint of the best validation
      step-00000042/manifest.json   {"files": {"index.json": {"bytes": 512, "sha256": "9f..."}, ...}}

Called by saver.py (writes), launch/train.py (finds the newest whole one), launch/evaluate.py (checks
the best one) and studies.
"""

import json
import re
from pathlib import Path
from typing import Any

from recsys.checkpoint.state import TrainState, stored_state
from recsys.errors import UserError
from recsys.files import put_back, reading, remove_folder, sha256_of, sync, tidy, write_json
from recsys.job import say
from recsys.locks import final_name, is_unfinished
from recsys.runtime.collectives import gather, share
from recsys.runtime.env import Env

MANIFEST = "manifest.json"
BEST = "best.json"


def describe_file(path: Path) -> dict[str, Any]:
    """Bring a finished file to the disk and return its manifest entry."""
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def write_manifest(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write the manifest of a checkpoint whose files are complete."""
    write_json(folder / MANIFEST, {"files": files})


def damage_of(path: Path, *, part: int = 0, num_parts: int = 1, read: bool = True) -> str | None:
    """Return what is wrong with a checkpoint, with file and numbers; None where it is whole.

    Args:
        part, num_parts: of the files, in the manifest's order, only these are looked at.
        read: compare checksums too, which reads every byte; False: presence and sizes.
    """
    try:
        files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = [(name, entry["bytes"], entry["sha256"]) for name, entry in files.items()]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    if not any(name == "index.json" for name, _, _ in entries):
        return f"{MANIFEST} does not list index.json"
    for name, num_bytes, sha256 in entries[part::num_parts]:
        file = path / name
        if Path(name).name != name:
            return f"{MANIFEST} lists {name!r}, which is no plain file name"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != num_bytes:
            return f"{name} has {file.stat().st_size:,} bytes, its manifest says {num_bytes}"
        if read:
            try:
                found = sha256_of(file)
            except OSError as error:
                return f"{name} cannot be read ({error})"
            if found != sha256:
                return f"{name} has other content than its manifest says (sha256 {found[:12]})"
    return None


def shared_damage_of(path: Path, env: Env) -> str | None:
    """Return what `damage_of` finds, every rank reading its share of the files; all ranks call it."""
    found = gather(lambda: damage_of(path, part=env.rank, num_parts=env.world_size))
    return next((damage for damage in found if damage is not None), None)


def newest_whole(folder: Path, env: Env) -> Path | None:
    """Return the newest whole checkpoint below `folder`, or None where there is none at all.

    Damaged ones are named in a warning and skipped. All ranks call this.

    Raises:
        UserError: there are checkpoints and none is whole: nothing starts from scratch unasked.
    """
    names = share(lambda: [path.name for path in checkpoints_of(folder)])
    damages = []
    for name in reversed(names):
        damage = shared_damage_of(folder / name, env)
        if damage is None:
            return folder / name
        damages.append(f"{name}: {damage}")
        say(f"warning: checkpoint {folder / name} is damaged and skipped: {damage}")
    if damages:
        raise UserError(
            f"{folder}: none of its {len(damages)} checkpoint(s) is whole ({'; '.join(damages)}); "
            f"put back a copy of one, or start anew with run.overwrite=true or another run.name"
        )
    return None


def checkpoints_of(folder: Path) -> list[Path]:
    """Return the checkpoint folders below `folder`, whole or not, oldest first."""
    return sorted(folder.glob("step-*"))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint whose files are all there in full size, or None.

    For a quick look from one process; training reads every byte (`newest_whole`).
    """
    there = [p for p in checkpoints_of(folder) if damage_of(p, read=False) is None]
    return max(there, default=None)


def best_checkpoint(folder: Path) -> Path:
    """Return the checkpoint that best.json names.

    Raises:
        UserError: there is none; says whether nothing was trained here, nothing validated yet, or no
            validation had a value.
    """
    pointer = folder / BEST
    if not pointer.is_file():
        raise UserError(f"{pointer}: no best checkpoint here; {_why_none_is_best(folder)}")
    remedy = "train on (launch/train.py), which writes it anew, or put back a copy"
    with reading(pointer, remedy):
        name = json.loads(pointer.read_text(encoding="utf-8"))["checkpoint"]
        if not re.fullmatch(r"step-\d+", name):
            raise UserError(
                f"names {name!r}, expected a checkpoint beside it such as step-00000042"
            )
    return folder / name


def _why_none_is_best(folder: Path) -> str:
    newest = latest_checkpoint(folder)
    if newest is None:
        return "expected a run trained with this run.name and workspace= (launch/train.py)"
    with reading(newest / "index.json", "put back a copy, or train on (launch/train.py)"):
        state = stored_state(
            json.loads((newest / "index.json").read_text(encoding="utf-8"))["state"]
        )
    if state.best_metric is not None:
        return (
            f"the file was lost, the best validation was that of step {state.best_step:,}; train on "
            f"(launch/train.py), which writes it anew"
        )
    if state.evaluations_without_improvement:
        return (
            f"the run was trained up to {newest.name}, but no validation had a value of train.metric: "
            f"auc has none where split valid lacks a class; train with train.metric=log_loss and "
            f"run.overwrite=true, or change split in the recipe and run launch/prepare.py again"
        )
    return (
        f"the run was trained up to {newest.name} and has no validation yet; train on "
        f"(launch/train.py), which validates at the end of a pass"
    )


def check_whole(path: Path, env: Env) -> None:
    """Read a checkpoint's files against its manifest; all ranks call this.

    Raises:
        UserError: it is damaged; on every rank.
    """
    damage = shared_damage_of(path, env)
    if damage is not None:
        raise UserError(
            f"{path}: the checkpoint is damaged ({damage}); put back a copy of it, or go on "
            f"training (launch/train.py), which skips it and saves another"
        )


def point_to_best(folder: Path, name: str, metric: float | None) -> None:
    """Let best.json name a checkpoint."""
    write_json(folder / BEST, {"checkpoint": name, "metric": metric})


def restore_best(folder: Path, state: TrainState) -> None:
    """Make best.json and `state` agree after a resume; all ranks call this.

    A process killed between a checkpoint and best.json leaves the pointer one behind. If the best
    checkpoint is damaged or gone, the next validation is the best so far.
    """
    if not state.best_step:
        return
    name = f"step-{state.best_step:08d}"

    def pointed() -> bool:
        whole = damage_of(folder / name, read=False) is None
        if whole:
            point_to_best(folder, name, state.best_metric)
        return whole

    if not share(pointed):
        say(
            f"warning: the best checkpoint {folder / name} is not whole any more; the next "
            f"validation counts as the best so far"
        )
        state.best_metric, state.best_step = None, 0


def forget_unfinished(folder: Path) -> None:
    """Put back or remove what killed processes of this machine left half-written or half-removed.

    Folders of living processes and of other machines stay (recsys/locks.py). Those of earlier versions
    do not say whose they are: an earlier whole checkpoint gets its name back, others stay, with a note.
    """
    for name in sorted({final_name(lock).name for lock in folder.glob(".step-*.lock")}):
        tidy(folder / name)
    for path in sorted(folder.glob(".step-*")):
        if is_unfinished(path.name):
            continue
        if path.suffix == ".old" and damage_of(path, read=False) is None:
            put_back(folder / path.name.removeprefix(".").removesuffix(".old"))
        if path.exists():
            say(
                f"note: {path} is half a checkpoint of an earlier version; delete it if no job runs"
            )


def prune(folder: Path, newest: Path, keep_last: int) -> None:
    """Remove all checkpoints but the last `keep_last` whole ones up to `newest` and the best one.

    Those after `newest` are damaged ones that training went back behind.
    """
    whole = [
        path
        for path in checkpoints_of(folder)
        if path.name <= newest.name and damage_of(path, read=False) is None
    ]
    kept = {path.name for path in whole[-max(1, keep_last) :]}
    if (folder / BEST).is_file():
        kept.add(best_checkpoint(folder).name)
    for path in checkpoints_of(folder):
        if path.name not in kept:
            remove_folder(path)
