"""One run: its configuration, its folder, and the model put together from both.

Called by launch/train.py (a new or resumed run) and launch/evaluate.py (a finished one).
"""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recsys.config import from_config
from recsys.data.dataset import Dataset, Loader
from recsys.distributed.env import Env
from recsys.distributed.plan import MODALITY_PATH, PlanConfig, constrain, make_plan, plan_rows
from recsys.distributed.shard import ShardedRanker, Vectors, shard_ranker
from recsys.model.build import build_ranker
from recsys.model.modality import TABLE_PREFIX, stored_dim
from recsys.model.ranker import Ranker, RankerConfig
from recsys.schema import Manifest
from recsys.train.loop import TrainConfig
from recsys.train.optim import OptimConfig, check_optim, resolve_table_optimizers


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Name and circumstances of a run."""

    name: str = "default"
    """Folder below workspace/runs/."""
    seed: int = 0
    """Of weights, batch order and dropout."""
    device: str = "auto"
    """`auto` (GPU where present), `cpu` or `cuda`."""
    resume: str = "auto"
    """`auto`: go on from the newest checkpoint; `never`: refuse a folder that has one."""
    overwrite: bool = False
    """Delete an earlier run of this name first."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All sections of a training configuration."""

    run: RunSettings = field(default_factory=RunSettings)
    """Name and circumstances."""
    model: RankerConfig = field(default_factory=RankerConfig)
    """Architecture."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizers and schedule."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length and rhythm."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """Sharding constraints."""


SECTIONS = {
    "run": RunSettings,
    "model": RankerConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "plan": PlanConfig,
}


def read_run_config(sections: Mapping[str, Any]) -> RunConfig:
    """Return the checked configuration.

    Args:
        sections: plain dicts by section name; missing ones take their defaults.

    Raises:
        ValueError: every problem of every section at once.
    """
    problems: list[str] = []
    built: dict[str, Any] = {}
    for name, schema in SECTIONS.items():
        try:
            built[name] = from_config(schema, sections.get(name), name)
        except ValueError as error:
            problems.append(str(error).removeprefix("configuration: "))
    if "optim" in built:
        try:
            check_optim(built["optim"])
        except ValueError as error:
            problems.append(str(error).removeprefix("configuration: "))
    if "train" in built:
        problems += _train_problems(built["train"])
    if "run" in built:
        problems += _run_problems(built["run"])
    if problems:
        raise ValueError("configuration: " + "\n  ".join(problems))
    return RunConfig(**built)


def _train_problems(train: TrainConfig) -> list[str]:
    problems = []
    for key in ("epochs", "global_batch_size", "log_every_steps", "num_lanes", "keep_last"):
        if getattr(train, key) < 1:
            problems.append(f"train.{key}={getattr(train, key)}: expected 1 or more")
    if train.metric not in ("auc", "log_loss"):
        problems.append(f"train.metric={train.metric!r}: expected auc or log_loss")
    return problems


def _run_problems(run: RunSettings) -> list[str]:
    problems = []
    if not run.name or Path(run.name).name != run.name or run.name.startswith("."):
        problems.append(f"run.name={run.name!r}: expected a plain folder name")
    if run.resume not in ("auto", "never"):
        problems.append(f"run.resume={run.resume!r}: expected auto or never")
    return problems


def open_run_folder(workspace: Path, config: RunConfig, manifest: Manifest) -> Path:
    """Create or re-open the run's folder and write its config.yaml; rank 0 only.

    Raises:
        ValueError: the folder holds a run that may not be resumed, or one of another configuration
            (names the keys that differ).
    """
    folder = workspace / "runs" / config.run.name
    if config.run.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    stored_file = folder / "config.yaml"
    if stored_file.is_file():
        if config.run.resume == "never":
            raise ValueError(
                f"{folder}: holds a run already; use run.resume=auto to go on with it, "
                f"run.overwrite=true to delete it, or another run.name"
            )
        changed = setting_changes(folder, config, manifest)
        if changed:
            raise ValueError(
                f"{folder}: its run was started with other settings ({'; '.join(changed)}); "
                f"restore them, or use run.overwrite=true or another run.name"
            )
    folder.mkdir(parents=True, exist_ok=True)
    beside = stored_file.with_name(".config.yaml")
    now = _as_stored(config, manifest)
    beside.write_text(yaml.safe_dump(now, sort_keys=False, allow_unicode=True), encoding="utf-8")
    beside.replace(stored_file)
    return folder


def setting_changes(folder: Path, config: RunConfig, manifest: Manifest) -> list[str]:
    """Return what `config` and the data would change of the run in `folder`, one text a key.

    Only keys that decide the result count; how a run is carried out may change on a resume.
    """
    stored = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    return _changed_keys(stored, _as_stored(config, manifest))


def _as_stored(config: RunConfig, manifest: Manifest) -> dict[str, Any]:
    return {
        **dataclasses.asdict(config),
        "data": {"name": manifest.name, "checksums": manifest.checksums},
    }


def read_run_folder(folder: Path) -> RunConfig:
    """Return the configuration a run was trained with.

    Raises:
        ValueError: no run there (says to train).
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ValueError(
            f"{file}: no run here; expected one trained with this run.name and workspace= "
            f"(launch/train.py)"
        )
    stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    return read_run_config({name: stored.get(name) for name in SECTIONS})


def _changed_keys(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys that decide the result and differ; how a run is carried out may change on a resume."""
    changed = []
    for section in ("model", "optim", "train", "data"):
        for key, value in now[section].items():
            if section == "train" and key not in ("global_batch_size", "num_lanes", "metric"):
                continue
            before = (stored.get(section) or {}).get(key)
            if before != value:
                shown = "" if key == "checksums" else f" was {before!r}, is {value!r}"
                changed.append(f"{section}.{key}{shown}")
    before_seed = (stored.get("run") or {}).get("seed")
    if before_seed != now["run"]["seed"]:
        changed.append(f"run.seed was {before_seed!r}, is {now['run']['seed']!r}")
    return changed


def plan_and_shard(
    *,
    config: RunConfig,
    manifest: Manifest,
    vectors: Mapping[str, Vectors],
    env: Env,
) -> tuple[Ranker, list[dict[str, Any]], ShardedRanker]:
    """Build the ranker, plan its tables for this world, and shard it.

    Returns the ranker (its tables now sharded in place), the plan's lines, and what trains it.

    Raises:
        ValueError: a part of the configuration does not fit the data or the cluster.
    """
    ranker = build_ranker(
        manifest=manifest,
        config=config.model,
        modality_dims={name: table.dim for name, table in vectors.items()},
        seed=config.run.seed,
    )
    used = {} if ranker.inputs.modality is None else ranker.inputs.modality.dims
    table_rows = {
        c.name: c.num_embeddings for c in ranker.inputs.embeddings.embedding_bag_configs()
    }
    table_optimizers = resolve_table_optimizers(
        config.optim, table_rows, config.plan.sharding, env.device.type
    )
    constraints = constrain(
        optimizers=table_optimizers,
        modality_tables=[TABLE_PREFIX + name for name in used],
        sharding=config.plan.sharding,
        device_type=env.device.type,
        min_partition=config.plan.min_partition,
    )
    plan = make_plan(
        model=ranker,
        env=env,
        constraints=constraints,
        batch_size_per_rank=config.train.global_batch_size // env.world_size,
    )
    modality_bytes = sum(2 * manifest.num_item_rows * stored_dim(dim) for dim in used.values())
    replicate = modality_bytes <= config.plan.replicate_modality_bytes
    if ranker.inputs.sequence and not replicate:
        raise ValueError(
            f"model.similarity_tiers / model.history_attention read single items of the histories "
            f"and need the frozen tables whole on every rank: they take {modality_bytes:,} bytes, "
            f"plan.replicate_modality_bytes={config.plan.replicate_modality_bytes:,} allows less"
        )
    if replicate:
        plan.plan.pop(MODALITY_PATH, None)
    lines = plan_rows(plan, ranker)
    sharded = shard_ranker(
        ranker=ranker,
        plan=plan,
        env=env,
        optim=config.optim,
        table_optimizers=table_optimizers,
        modality_vectors={name: vectors[name] for name in used},
        replicate_modality=replicate,
        embedding_init=config.model.embedding_init,
        seed=config.run.seed,
    )
    return ranker, lines, sharded


def build_loader(
    *,
    workspace: Path,
    manifest: Manifest,
    config: RunConfig,
    env: Env,
    split: str,
    features: list[str],
    shuffle: bool,
) -> Loader:
    """Return a split's loader for this rank, with the run's batches, lanes and seed."""
    return Loader(
        Dataset(workspace / "prepared", manifest, split=split, features=features),
        global_batch_size=config.train.global_batch_size,
        rank=env.rank,
        world_size=env.world_size,
        num_lanes=config.train.num_lanes,
        shuffle=shuffle,
        seed=config.run.seed,
        num_prefetch=config.train.num_prefetch,
    )
