"""Lineage of a run: the run that it goes on from, and what both have been trained on.

In: the keys `init` and `train` of a run, and the manifest of its data. Out: the parent, its checkpoint,
the splits that are trained on and their order. Called by recsys/run/training.py and
recsys/run/folder.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.checkpoint.integrity import best_checkpoint, latest_checkpoint
from recsys.config_files import read_yaml
from recsys.data.replay import SplitRange, replay_ranges
from recsys.errors import UserError
from recsys.files import reading, sha256_of
from recsys.run.config import RunConfig
from recsys.schema import Manifest, identity_of, local_path, name_problems
from recsys.train.loop import TrainConfig

TRAIN = ["train"]
"""Splits of a run that says nothing of them."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A run that another one goes on from."""

    folder: Path
    checkpoint: Path
    """Folder of its weights: those of its best validation."""
    digest: str
    """Of the checkpoint: equal, the weights are."""
    data: dict[str, str]
    """Checksums of the files below prepared/ of its data, by path."""
    splits: list[str]
    """Splits that it and the runs before it were trained on; empty where its data is no ancestor."""
    table_rows: dict[str, int] | None
    """Rows by table of its data where today's was grown from it; None: it is other data."""
    encoders: dict[str, str]
    """Revision of the encoder of every feature table that it reads; empty where it does not say."""

    @property
    def as_stored(self) -> dict[str, Any]:
        """The section `parent` of config.yaml."""
        return {"run": str(self.folder), "checkpoint": self.digest, "splits": self.splits}


@dataclass(frozen=True, kw_only=True)
class Course:
    """Course of a run: the splits that it is trained on, their order, and its validation."""

    splits: list[str]
    """Splits that are trained on."""
    in_time_order: bool
    """Whether the rows are read by their time, one split after the other."""
    epochs: int
    """Most passes."""
    patience: int
    """Validations without improvement after which training stops; 0: never."""
    validates: bool
    """Whether split valid chooses among checkpoints. False: the last one counts."""
    parent: Parent | None
    replayed: list[SplitRange]
    """Rows of earlier splits that are trained on beside those of `splits`."""

    @property
    def num_replayed(self) -> int:
        """Rows of `replayed`."""
        return sum(one.num_rows for one in self.replayed)

    @property
    def parts(self) -> list[list[str]]:
        """Splits that are read together, part after part of a pass."""
        return [[name] for name in self.splits] if self.in_time_order else [self.splits]

    @property
    def scored_parts(self) -> list[list[str]]:
        """Splits of each part that are scored before it is trained on; empty without a parent.

        They are those that the parent and the runs before it were not trained on, or all where none is.
        """
        if self.parent is None:
            return []
        known = self.parent.splits
        return [[name for name in part if name not in known] or part for part in self.parts]


def course_of(workspace: Path, config: RunConfig, manifest: Manifest) -> Course:
    """Return what a run is trained on.

    Raises:
        UserError: there is no such parent, or it is not finished; a split that the data does not have;
            nothing is left to train on; rows in time order without times; nothing to replay, or in time
            order.
    """
    parent = None if config.init is None else open_parent(workspace, config.init, manifest)
    if parent is not None and parent.folder == workspace / "runs" / config.run.name:
        raise UserError(
            f"init={config.init} run.name={config.run.name}: a run cannot go on from itself; expected "
            f"another run.name"
        )
    splits = _splits(config.train, manifest, parent)
    replayed = _replayed(config, manifest, parent, splits)
    is_shuffled = bool(replayed) or parent is None or splits == TRAIN
    order = config.train.order or ("shuffled" if is_shuffled else None)
    timeless = [name for name in splits if order != "shuffled" and not _has_times(manifest, name)]
    if order == "time" and timeless:
        raise UserError(
            f"train.order=time: split {timeless[0]} has no times; map interactions.timestamp in the "
            f"recipe and run launch/prepare.py again, or use train.order=shuffled"
        )
    in_time_order = order != "shuffled" and not timeless
    validates = splits == TRAIN
    return Course(
        splits=splits,
        in_time_order=in_time_order,
        epochs=1 if in_time_order or replayed else config.train.epochs,
        patience=config.train.patience if validates else 0,
        validates=validates,
        parent=parent,
        replayed=replayed,
    )


def _replayed(
    config: RunConfig, manifest: Manifest, parent: Parent | None, splits: Sequence[str]
) -> list[SplitRange]:
    """Return the rows of earlier splits that a warm start on `splits` is trained on again."""
    replay = config.train.replay
    if not replay:
        return []
    if config.train.order == "time":
        raise UserError(
            f"train.order=time train.replay={replay:g}: earlier rows are shuffled among the new ones; "
            f"leave out train.order, or use train.replay=0"
        )
    before = [] if parent is None else parent.splits
    known = [name for name in manifest.splits_in_time if name in before and name not in splits]
    num_new = sum(manifest.splits[name].num_rows for name in splits)
    ranges = replay_ranges(manifest, known, round(replay * num_new), config.run.seed)
    if not ranges and any(manifest.splits[name].num_rows for name in known):
        raise UserError(
            f"train.replay={replay:g} of {num_new:,} new rows is none; expected a larger number of rows "
            f"for each new one, or train.replay=0"
        )
    if not ranges:
        raise UserError(
            f"train.replay={replay:g}: there are no earlier rows to train on again; expected init=, a "
            f"run on data that today's was grown from, and splits that it was trained on beside "
            f"{', '.join(splits)}"
        )
    return ranges


def _has_times(manifest: Manifest, split: str) -> bool:
    return manifest.splits[split].timestamp_min is not None


def _splits(train: TrainConfig, manifest: Manifest, parent: Parent | None) -> list[str]:
    """Return the splits that are trained on, in time order."""
    known = manifest.splits_in_time
    if train.splits is not None:
        wanted = known if train.splits == ["all"] else train.splits
        unknown = sorted(set(wanted) - set(known))
        if unknown or not wanted:
            raise UserError(
                f"train.splits={train.splits}: expected all, or some of the splits that data "
                f"{manifest.name!r} has: {', '.join(known)}"
            )
        return [name for name in known if name in wanted and manifest.splits[name].num_rows]
    if parent is None or parent.table_rows is None:
        return TRAIN
    new = [name for name in known if name not in parent.splits and manifest.splits[name].num_rows]
    if not new:
        raise UserError(
            f"init={parent.folder.name}: that run has been trained on every split of the data "
            f"({', '.join(known)}); append new days (launch/prepare.py append=true), or name the splits "
            f"to train on again (train.splits)"
        )
    return new


def open_parent(workspace: Path, init: str, manifest: Manifest) -> Parent:
    """Return the run that the key `init` names.

    Args:
        init: name of a run of the workspace, or the folder of one elsewhere.
        manifest: of the data that the new run is trained on.

    Raises:
        UserError: there is no such run, it is not finished, or its checkpoint is missing.
    """
    is_name = not name_problems("init", init)
    folder = workspace / "runs" / init if is_name else local_path(init, "init")
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"init={init}: {file} is missing; expected the name of a run of this workspace, or the "
            f"folder of a run elsewhere"
        )
    checkpoint = best_checkpoint(folder / "checkpoints")
    _check_finished(folder, init)
    with reading(file, "put back a copy of it, or train that run anew"):
        data: dict[str, Any] = read_yaml(file).get("data") or {}
        checksums = data.get("checksums", {})
    table_rows = _rows_of(manifest, identity_of(checksums))
    listing = checkpoint / "manifest.json"
    return Parent(
        folder=folder,
        checkpoint=checkpoint,
        digest=sha256_of(listing if listing.is_file() else checkpoint / "index.json")[:16],
        data=checksums,
        splits=[] if table_rows is None else trained_splits(folder),
        table_rows=table_rows,
        encoders=data.get("encoders") or {},
    )


def trained_splits(folder: Path) -> list[str]:
    """Return the splits that a run and those that it goes on from were trained on, by its config.yaml."""
    file = folder / "config.yaml"
    with reading(file, "put back a copy of it, or train that run anew"):
        stored = read_yaml(file)
        # Runs of earlier versions do not say their splits: they had one.
        own = (stored.get("data") or {}).get("splits") or TRAIN
        return sorted({*own, *(stored.get("parent") or {}).get("splits", [])})


def _rows_of(manifest: Manifest, identity: str) -> dict[str, int] | None:
    """Return the rows by table of data that today's is or was grown from, None of any other."""
    if identity == manifest.identity:
        return {table.name: table.num_rows for table in manifest.tables}
    ancestor = manifest.ancestor(identity)
    return None if ancestor is None else ancestor.table_rows


def _check_finished(folder: Path, init: str) -> None:
    newest = latest_checkpoint(folder / "checkpoints")
    if newest is None:
        raise UserError(f"init={init}: {folder / 'checkpoints'} has no whole checkpoint")
    with reading(newest / "index.json", "put back a copy, or train that run on"):
        state = json.loads((newest / "index.json").read_text(encoding="utf-8"))["state"]
    if not state["finished"]:
        raise UserError(
            f"init={init}: that run is not finished ({newest.name}); train it to its end by the "
            f"command that started it, or with a smaller train.epochs"
        )
