"""Folder of a run: how it is opened, and what its config.yaml says of the run and its data.

In: a workspace and a run's configuration. Out: W/runs/<run.name>/config.yaml, or the configuration a run
was trained with. Called by launch/train.py, launch/evaluate.py, launch/compare.py and recsys/study/.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from recsys.checkpoint.integrity import latest_checkpoint
from recsys.config import from_config
from recsys.config_files import read_yaml
from recsys.errors import UserError
from recsys.files import new_folder, reading, write_text
from recsys.job import say
from recsys.run.config import SECTIONS, RunConfig, read_run_config
from recsys.run.fingerprint import EXTENDABLE, changes, data_identity, deciding
from recsys.run.lineage import Course, course_of
from recsys.runtime.env import Env
from recsys.schema import Manifest, identity_of
from recsys.sharding.plan import PlanConfig
from recsys.tracking.tracker import TrackedRun

_CONFIG_REMEDY = "put back a copy of it, or train anew with run.overwrite=true"


def open_run_folder(
    workspace: Path,
    config: RunConfig,
    manifest: Manifest,
    launch: Sequence[str] = (),
    course: Course | None = None,
) -> Path:
    """Create or re-open the run's folder and write its config.yaml; rank 0 only.

    Args:
        launch: the agents of this start of torchrun; a folder that one of them had a part in is
            resumed, whatever run.overwrite and run.resume say.
        course: what the run is trained on; None: as the configuration says.

    Raises:
        UserError: the folder holds a run that may not be resumed, or one of another configuration
            (names the keys that differ).
    """
    folder = workspace / "runs" / config.run.name
    now = as_stored(workspace, config, manifest, course)
    extended: list[str] = []
    stored_file = folder / "config.yaml"
    own = _is_own(stored_file, launch)
    if config.run.overwrite and own:
        say(f"run.overwrite: {folder} was made by this very start of torchrun and is kept")
    anew = config.run.overwrite and not own and folder.is_dir()
    if stored_file.is_file() and not anew:
        if config.run.resume == "never" and not own:
            raise UserError(
                f"{folder}: holds a run already; use run.resume=auto to go on with it, "
                f"run.overwrite=true to delete it, or another run.name"
            )
        before = read_stored(folder)
        changed = changes(before, now)
        refused = [text for key, text in changed.items() if key not in EXTENDABLE]
        if refused:
            goes_on = ", or go on from it on the data that grew: init={0} and another run.name"
            hint = goes_on.format(config.run.name) if is_grown(before, manifest) else ""
            raise UserError(
                f"{folder}: its run was started with other settings ({'; '.join(refused)}); "
                f"restore them, or use run.overwrite=true or another run.name{hint}"
            )
        if latest_checkpoint(folder / "checkpoints") is not None:
            extended = [*before.get("extended", []), *changed.values()]
            if changed:
                say(_extension(changed, config, before["train"]["epochs"]))
    now |= {"launch": list(launch), "extended": extended}
    text = yaml.safe_dump(now, sort_keys=False, allow_unicode=True)
    if anew:
        with new_folder(folder) as beside:
            write_text(beside / stored_file.name, text)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(stored_file, text)
    return folder


def with_exchange(
    workspace: Path, config: RunConfig, env: Env, launch: Sequence[str] = ()
) -> RunConfig:
    """Return the configuration with precisions of the exchange between ranks in place of `auto`.

    A run that goes on from a checkpoint keeps those of its start; another takes those of this world
    (PlanConfig.with_exchange). A saved plan has its own.

    Args:
        launch: as for `open_run_folder`, which is called next.

    Raises:
        UserError: the folder holds a damaged configuration.
    """
    if config.plan.file != "auto":
        return config
    folder = workspace / "runs" / config.run.name
    stored_file = folder / "config.yaml"
    of_world = partial(
        PlanConfig.with_exchange, device_type=env.device.type, num_ranks=env.world_size
    )
    plan = config.plan
    is_kept = not config.run.overwrite or _is_own(stored_file, launch)
    if is_kept and stored_file.is_file() and latest_checkpoint(folder / "checkpoints") is not None:
        before = read_run_folder(folder).plan
        plan = plan.with_precisions(before.forward_communication, before.backward_communication)
        if of_world(plan) != of_world(config.plan):
            say(
                f"exchange between ranks: as at the start of run {config.run.name!r} "
                f"(plan.forward_communication={plan.forward_communication} "
                f"plan.backward_communication={plan.backward_communication})"
            )
    return dataclasses.replace(config, plan=of_world(plan))


def _extension(changed: Mapping[str, str], config: RunConfig, epochs_before: int) -> str:
    """Return the line on a resume with other settings, and what it does to the learning rate."""
    text = (
        f"note: run {config.run.name!r} goes on with other settings ({'; '.join(changed.values())})"
    )
    if "train.epochs" in changed and config.optim.decay != "constant":
        text += (
            f"; its learning rate now falls to 0 ({config.optim.decay}) over {config.train.epochs} "
            f"epochs instead of {epochs_before}, so the next step's differs from the last one's"
        )
    return f"{text}; config.yaml lists them as extended"


@dataclass(frozen=True, kw_only=True)
class StoredData:
    """The section `data` of a run's config.yaml, as `data_identity` makes it."""

    name: str
    """Name of the recipe."""
    checksums: dict[str, str]
    """SHA-256 of every file below prepared/, by path."""
    features: dict[str, str] | None = None
    """Identity of every feature table, by modality; null in runs of earlier versions."""
    encoders: dict[str, str] | None = None
    """Revision of the encoder of every feature table that has one; null in runs of earlier versions."""
    splits: list[str] | None = None
    """Splits that the run is trained on; null in runs of earlier versions: train."""


def _read_stored(file: Path) -> dict[str, Any]:
    """Return the content of a run's config.yaml."""
    with reading(file, _CONFIG_REMEDY):
        stored = read_yaml(file)
        if not isinstance(stored, dict):
            raise UserError(f"{type(stored).__name__}, expected sections")
        if not file.read_bytes().endswith(b"\n"):
            raise UserError("cut off: its last line has no end")
        if stored.get("data"):  # earlier versions have no such section
            from_config(StoredData, stored["data"], "data")
    return stored


def _is_own(stored_file: Path, launch: Sequence[str]) -> bool:
    """Return whether the folder of a config.yaml was made by one of these agents of torchrun."""
    return stored_file.is_file() and not set(_launch_of(stored_file)).isdisjoint(launch)


def _launch_of(stored_file: Path) -> list[str]:
    launch = _read_stored(stored_file).get("launch")
    return launch if isinstance(launch, list) else []


def as_stored(
    workspace: Path, config: RunConfig, manifest: Manifest, course: Course | None = None
) -> dict[str, Any]:
    """Return a run's configuration, its data and its parent as config.yaml keeps them."""
    course = course or course_of(workspace, config, manifest)
    data = data_identity(workspace, manifest, config.model.modalities)
    parent = None if course.parent is None else course.parent.as_stored
    data["splits"] = course.splits
    return {**dataclasses.asdict(config), "data": data, "parent": parent}


def read_stored(folder: Path) -> dict[str, Any]:
    """Return the config.yaml of a run; keys that came later have their defaults.

    Raises:
        UserError: no run there, or no configuration of one.
    """
    config = read_run_folder(folder)
    return {**_read_stored(folder / "config.yaml"), **dataclasses.asdict(config)}


def tracked_run(folder: Path, *, last_step: int | None = None) -> TrackedRun:
    """Return a run as its trackers know it: with the keys that decide its result.

    Args:
        last_step: step that training goes on from; None: it does not.
    """
    stored = read_stored(folder)
    settings = deciding(stored) if stored.get("data") else {}
    data = settings.get("data.name", folder.parents[1].name)
    return TrackedRun(folder=folder, data=data, settings=settings, last_step=last_step)


def check_run_data(folder: Path, config: RunConfig, manifest: Manifest) -> None:
    """Refuse data other than a run was trained on: its tables would mean other users and items.

    Args:
        folder: of the run, <workspace>/runs/<name>/.

    Raises:
        UserError: prepared/ or a feature table that the run reads has changed (says what).
    """
    stored, workspace = read_stored(folder), folder.parents[1]
    if "features" not in (stored.get("data") or {}):
        what = "vectors" if stored.get("data") else "data"
        say(
            f"note: {folder} does not say on which {what} it was trained; today's are taken for them"
        )
    if not stored.get("data"):
        return
    now = data_identity(workspace, manifest, config.model.modalities)
    different = changes(stored, {**stored, "data": now})
    changed = [text for key, text in different.items() if key.startswith("data.")]
    if changed and is_grown(stored, manifest):
        changed = _other_encoders(stored["data"], now)
    if changed:
        before = stored["data"]["checksums"]
        names = sorted({*before, *manifest.checksums})
        files = [name for name in names if before.get(name) != manifest.checksums.get(name)]
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        differing = f"; prepared/ differs in {', '.join(files[:3])}{more}" if files else ""
        raise UserError(
            f"{folder}: was trained on other data than {workspace} holds now ({'; '.join(changed)}"
            f"{differing}); its tables would mean other users, items or vectors. Put the prepared/ and "
            f"features/ back that it was trained on, or train anew (launch/train.py "
            f"run.name={folder.name} run.overwrite=true)"
        )


def is_grown(stored: Mapping[str, Any], manifest: Manifest) -> bool:
    """Return whether rows were appended to the data of a stored run since: its rows mean the same ids."""
    checksums = (stored.get("data") or {}).get("checksums", {})
    return manifest.ancestor(identity_of(checksums)) is not None


def _other_encoders(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a text for every modality of grown data whose vectors another encoder has made."""
    known = before.get("encoders") or {}
    return [
        f"vectors {name} were made by encoder {known[name]}, are by {revision}"
        for name, revision in now["encoders"].items()
        if known.get(name, revision) != revision
    ]


def read_run_folder(folder: Path) -> RunConfig:
    """Return the configuration a run was trained with.

    Raises:
        UserError: no run there (says to train).
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise UserError(
            f"{file}: no run here; expected one trained with this run.name and workspace= "
            f"(launch/train.py)"
        )
    with reading(file, _CONFIG_REMEDY):
        stored = _read_stored(file)
        return read_run_config({name: stored.get(name) for name in SECTIONS}, stored=True)
