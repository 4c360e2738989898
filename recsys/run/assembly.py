"""One run: its configuration, its folder, and the model put together from both.

Called by launch/train.py (a new or resumed run), launch/evaluate.py (a finished one) and
launch/plan.py (one that may never be).
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recsys.checkpoint.integrity import latest_checkpoint
from recsys.config import from_config
from recsys.config_files import read_yaml
from recsys.data.dataset import Dataset
from recsys.data.loader import Loader, ReadAhead
from recsys.errors import UserError
from recsys.files import reading, write_text
from recsys.job import say
from recsys.model.build import build_ranker
from recsys.model.modality import stored_dim
from recsys.model.ranker import Ranker, RankerConfig
from recsys.run.fingerprint import EXTENDABLE, changes, data_identity
from recsys.runtime.env import Env, allow_tf32
from recsys.schema import Manifest, local_path, name_problems
from recsys.sharding.apply import ShardedRanker, Vectors, shard_ranker
from recsys.sharding.cluster import ClusterConfig, local_cluster
from recsys.sharding.estimate import REPLICATED
from recsys.sharding.optimizers import (
    OptimConfig,
    TableOptimizer,
    check_dense_penalties,
    check_optim,
    check_penalties,
    resolve_table_optimizers,
)
from recsys.sharding.pipeline import PIPELINES
from recsys.sharding.plan import (
    PlanConfig,
    check_plan,
    plan_tables,
    read_plan,
    sharding_plan,
    share_plan,
)
from recsys.sharding.search import table_sharder
from recsys.train.loop import TrainConfig
from recsys.train.profile import ProfileConfig, check_profile

_CONFIG_REMEDY = "put back a copy of it, or train anew with run.overwrite=true"
LIST_LENGTH = 4.0
"""Ids that a list is planned with where plan.feature_lengths does not say."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Name and circumstances of a run."""

    name: str = "default"
    """Folder below workspace/runs/."""
    seed: int = 0
    """Of weights, batch order and dropout."""
    device: str = "auto"
    """`auto` (GPU where present), `cpu` or `cuda`."""
    threads: int | None = None
    """Threads of every rank; null: OMP_NUM_THREADS where torchrun did not set it, else the cores this
    host may use over its ranks."""
    resume: str = "auto"
    """`auto`: go on from the newest checkpoint; `never`: refuse a folder that has one."""
    overwrite: bool = False
    """Delete an earlier run of this name first."""
    deterministic: bool = False
    """Only operators that give the same bits every time: two runs are equal; slower on GPU."""


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
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Recording of some steps."""


SECTIONS = tuple(section.name for section in dataclasses.fields(RunConfig))


def read_run_config(sections: Mapping[str, Any], *, stored: bool = False) -> RunConfig:
    """Return the checked configuration.

    Args:
        sections: plain dicts, or their short forms, by section name; missing ones take their
            defaults.
        stored: an earlier version may have written them (recsys.config.from_config).

    Raises:
        UserError: every problem of every section at once.
    """
    config = from_config(RunConfig, dict(sections), "", stored=stored)
    check_run_config(config)
    return config


def check_classes(manifest: Manifest, metric: str) -> None:
    """Raise UserError where nothing can be learned, or no checkpoint can be called the best.

    Args:
        metric: the validation metric that names the best checkpoint.
    """
    problems = []
    if lacking := manifest.splits["train"].lacking_class:
        problems.append(
            f"split train has {manifest.splits['train'].num_rows:,} rows and no {lacking}: nothing can "
            f"be learned; change interactions.label, interactions.negatives or split in the recipe and "
            f"run launch/prepare.py again"
        )
    lacking = manifest.splits["valid"].lacking_class
    if lacking and metric == "auc":
        problems.append(
            f"split valid has {manifest.splits['valid'].num_rows:,} rows and no {lacking}: "
            f"train.metric=auc has no value, so no checkpoint would be the best; set "
            f"train.metric=log_loss, or change split in the recipe and run launch/prepare.py again"
        )
    if problems:
        raise UserError(f"data {manifest.name!r}: " + "\n  ".join(problems))


def check_run_config(config: RunConfig) -> None:
    """Raise UserError for values outside their choices, of all sections at once."""
    problems: list[str] = []
    checks: list[Callable[[], None]] = [
        lambda: check_optim(config.optim),
        lambda: check_plan(config.plan),
        lambda: check_profile(config.profile),
    ]
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error).removeprefix("configuration: "))
    problems += _train_problems(config.train)
    problems += _run_problems(config.run)
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def _train_problems(train: TrainConfig) -> list[str]:
    problems = []
    for key in ("epochs", "global_batch_size", "log_every_steps", "num_lanes", "keep_last"):
        if getattr(train, key) < 1:
            problems.append(f"train.{key}={getattr(train, key)}: expected 1 or more")
    if not train.stop_within_seconds > 0:
        problems.append(
            f"train.stop_within_seconds={train.stop_within_seconds}: expected more than 0"
        )
    for key in ("evaluate_every_steps", "save_every_steps", "patience", "num_prefetch"):
        if getattr(train, key) < 0:
            problems.append(f"train.{key}={getattr(train, key)}: expected 0 or more")
    if train.pipeline not in PIPELINES:
        problems.append(f"train.pipeline={train.pipeline!r}: expected {', '.join(PIPELINES)}")
    if train.metric not in ("auc", "log_loss"):
        problems.append(f"train.metric={train.metric!r}: expected auc or log_loss")
    return problems


def _run_problems(run: RunSettings) -> list[str]:
    problems = []
    problems += name_problems("run.name", run.name)
    if run.resume not in ("auto", "never"):
        problems.append(f"run.resume={run.resume!r}: expected auto or never")
    return problems


def open_run_folder(
    workspace: Path, config: RunConfig, manifest: Manifest, launch: Sequence[str] = ()
) -> Path:
    """Create or re-open the run's folder and write its config.yaml; rank 0 only.

    Args:
        launch: the agents of this start of torchrun; a folder that one of them had a part in is
            resumed, whatever run.overwrite and run.resume say.

    Raises:
        UserError: the folder holds a run that may not be resumed, or one of another configuration
            (names the keys that differ).
    """
    folder = workspace / "runs" / config.run.name
    now = as_stored(workspace, config, manifest)
    extended: list[str] = []
    stored_file = folder / "config.yaml"
    own = stored_file.is_file() and not set(_launch_of(stored_file)).isdisjoint(launch)
    if config.run.overwrite and own:
        say(f"run.overwrite: {folder} was made by this very start of torchrun and is kept")
    elif config.run.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    if stored_file.is_file():
        if config.run.resume == "never" and not own:
            raise UserError(
                f"{folder}: holds a run already; use run.resume=auto to go on with it, "
                f"run.overwrite=true to delete it, or another run.name"
            )
        before = read_stored(folder)
        changed = changes(before, now)
        refused = [text for key, text in changed.items() if key not in EXTENDABLE]
        if refused:
            raise UserError(
                f"{folder}: its run was started with other settings ({'; '.join(refused)}); "
                f"restore them, or use run.overwrite=true or another run.name"
            )
        if latest_checkpoint(folder / "checkpoints") is not None:
            extended = [*before.get("extended", []), *changed.values()]
    folder.mkdir(parents=True, exist_ok=True)
    now |= {"launch": list(launch), "extended": extended}
    write_text(stored_file, yaml.safe_dump(now, sort_keys=False, allow_unicode=True))
    return folder


def _read_stored(file: Path) -> dict[str, Any]:
    """Return the content of a run's config.yaml."""
    with reading(file, _CONFIG_REMEDY):
        stored = read_yaml(file)
        if not isinstance(stored, dict):
            raise UserError(f"{type(stored).__name__}, expected sections")
    return stored


def _launch_of(stored_file: Path) -> list[str]:
    launch = _read_stored(stored_file).get("launch")
    return launch if isinstance(launch, list) else []


def as_stored(workspace: Path, config: RunConfig, manifest: Manifest) -> dict[str, Any]:
    """Return a run's configuration and the identity of its data as config.yaml keeps them."""
    data = data_identity(workspace, manifest, config.model.modalities)
    return {**dataclasses.asdict(config), "data": data}


def read_stored(folder: Path) -> dict[str, Any]:
    """Return the config.yaml of a run; keys that came later have their defaults.

    Raises:
        UserError: no run there, or no configuration of one.
    """
    config = read_run_folder(folder)
    return {**_read_stored(folder / "config.yaml"), **dataclasses.asdict(config)}


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
    now = as_stored(workspace, config, manifest)
    changed = [text for key, text in changes(stored, now).items() if key.startswith("data.")]
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


def build_plannable(
    *, config: RunConfig, manifest: Manifest, modality_dims: Mapping[str, int], device_type: str
) -> tuple[Ranker, dict[str, TableOptimizer]]:
    """Return the ranker, its tables on the meta device, and every trainable table's optimizer.

    Raises:
        UserError: a part of the configuration does not fit the data or the device.
    """
    ranker = build_ranker(
        manifest=manifest,
        config=config.model,
        modality_dims=modality_dims,
        seed=config.run.seed,
    )
    table_rows = {
        c.name: c.num_embeddings for c in ranker.inputs.embeddings.embedding_bag_configs()
    }
    # Where the optimizer is left to `auto`, what keeps a table from being replicated counts too.
    sharding = dict.fromkeys([*config.model.half_tables, *config.plan.ranks], "table_wise")
    sharding = {
        table: kind
        for table, kind in sharding.items()
        if config.optim.tables.get(table, config.optim.table).name == "auto"
    }
    for table, kinds in config.plan.sharding_types().items():
        sharding[table] = "data_parallel" if "data_parallel" in kinds else "".join(kinds[:1])
    check_penalties(config.optim, table_rows, _sharded_by(config))
    check_dense_penalties(config.optim, [name for name, _ in ranker.dense.named_children()])
    optimizers = resolve_table_optimizers(config.optim, table_rows, sharding, device_type)
    return ranker, optimizers


def _sharded_by(config: RunConfig) -> dict[str, str]:
    """Return the key that keeps a table from being replicated, by table name."""
    keys = dict.fromkeys(config.model.half_tables, "model.half_tables")
    keys |= {table: f"plan.ranks.{table}" for table in config.plan.ranks}
    keys |= {t: f"plan.kernels.{t}={k}" for t, k in config.plan.kernels.items() if k != "fused"}
    for table, kinds in config.plan.sharding_types().items():
        if "data_parallel" not in kinds:
            keys[table] = f"plan.sharding.{table}={', '.join(kinds)}"
    return keys


def plan_model(
    *,
    config: RunConfig,
    manifest: Manifest,
    ranker: Ranker,
    optimizers: Mapping[str, TableOptimizer],
    cluster: ClusterConfig,
    saves: bool = True,
) -> dict[str, Any]:
    """Return the best plan for a cluster, as the content of plan.json.

    Args:
        saves: checkpoints are written, of copies in host memory where tables lie on accelerators, and
            where train.save_in_background asks for them.

    Raises:
        UserError: constraints that do not fit the tables or the cluster.
        DoesNotFitError: no plan holds all tables.
    """
    return plan_tables(
        model=ranker,
        cluster=cluster,
        optimizers=optimizers,
        config=config.plan,
        feature_lengths=feature_lengths(manifest, config.plan),
        global_batch_size=config.train.global_batch_size,
        host_copies=saves and (cluster.device == "cuda" or config.train.save_in_background),
    )


def feature_lengths(manifest: Manifest, plan: PlanConfig) -> dict[str, float]:
    """Return the ids a row of every feature: as configured, else 1, 4 for a list, and for a history
    the most it may hold.

    Raises:
        UserError: plan.feature_lengths names an unknown feature.
    """
    lengths = {f.name: LIST_LENGTH if f.is_list else 1.0 for f in manifest.features}
    if manifest.history is not None:
        longest = {
            "history": manifest.history.max_length,
            "history_recent": manifest.history.recent_length,
        }
        lengths |= {name: float(n) for name, n in longest.items() if name in lengths}
    unknown = sorted(set(plan.feature_lengths) - set(lengths))
    if unknown:
        raise UserError(
            f"plan.feature_lengths names {', '.join(unknown)}; the data has the features "
            f"{', '.join(lengths)}"
        )
    return lengths | plan.feature_lengths


def plan_and_shard(
    *,
    config: RunConfig,
    manifest: Manifest,
    vectors: Mapping[str, Vectors],
    env: Env,
    saves: bool = True,
) -> tuple[Ranker, dict[str, Any], ShardedRanker]:
    """Build the ranker, plan its tables for this world or read the plan, and shard it.

    Args:
        saves: leave room for what saving checkpoints takes.

    Returns the ranker (its tables now sharded in place), the content of plan.json, and what trains
    it.

    Raises:
        UserError: a part of the configuration does not fit the data or the cluster, or a saved
            plan does not fit this job.
    """
    ranker, optimizers = build_plannable(
        config=config,
        manifest=manifest,
        modality_dims={name: table.dim for name, table in vectors.items()},
        device_type=env.device.type,
    )

    def make() -> dict[str, Any]:
        if config.plan.file != "auto":
            return read_plan(local_path(config.plan.file, "plan.file"))
        return plan_model(
            config=config,
            manifest=manifest,
            ranker=ranker,
            optimizers=optimizers,
            cluster=local_cluster(env),
            saves=saves,
        )

    allow_tf32(config.model.dense_precision == "tf32")
    content = share_plan(
        env=env, make=make, model=ranker, optimizers=optimizers, source=config.plan.file
    )
    used = {} if ranker.inputs.modality is None else ranker.inputs.modality.dims
    replicate = any(line["sharding"] == REPLICATED for line in content["tables"])
    if ranker.inputs.similarity is not None and not replicate:
        modality_bytes = sum(2 * manifest.num_item_rows * stored_dim(dim) for dim in used.values())
        raise UserError(
            f"model.similarity_tiers reads single items of the histories and needs the frozen tables "
            f"whole on every rank: they take {modality_bytes:,} bytes, "
            f"plan.replicate_modality_bytes={config.plan.replicate_modality_bytes:,} allows less"
        )
    sharded = shard_ranker(
        ranker=ranker,
        plan=sharding_plan(content),
        env=env,
        optim=config.optim,
        table_optimizers=optimizers,
        modality_vectors={name: vectors[name] for name in used},
        replicate_modality=replicate,
        sharder=table_sharder(
            content["communication"]["forward"], content["communication"]["backward"], env.device
        ),
        embedding_init=config.model.embedding_init,
        seed=config.run.seed,
    )
    return ranker, content, sharded


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
    dataset = Dataset(workspace / "prepared", manifest, split=split, features=features)
    return loader_of(dataset, config=config, env=env, shuffle=shuffle)


def loader_of(dataset: Dataset, *, config: RunConfig, env: Env, shuffle: bool) -> Loader:
    """Return the loader of any rows for this rank, with the run's batches, lanes and seed."""
    return Loader(
        dataset,
        global_batch_size=config.train.global_batch_size,
        rank=env.rank,
        world_size=env.world_size,
        num_lanes=config.train.num_lanes,
        shuffle=shuffle,
        seed=config.run.seed,
        ahead=ReadAhead(
            num_prefetch=config.train.num_prefetch,
            pin_memory=env.device.type == "cuda",
            # Beside the thread that steps.
            num_readers=max(1, env.threads - 1) if env.device.type == "cuda" else 0,
        ),
    )
