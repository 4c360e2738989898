"""Assembly of a run: its ranker, plan, shards and loaders, from its configuration and data.

Called by launch/train.py (a new or resumed run), launch/evaluate.py (a finished one) and
launch/plan.py (one that may never be).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys.data.dataset import Dataset
from recsys.data.loader import Loader, ReadAhead
from recsys.errors import UserError
from recsys.model.build import build_ranker
from recsys.model.modality import stored_dim
from recsys.model.ranker import Ranker
from recsys.run.config import RunConfig
from recsys.runtime.env import Env, allow_tf32
from recsys.schema import Manifest, local_path
from recsys.sharding.apply import ShardedRanker, Vectors, shard_ranker
from recsys.sharding.cluster import ClusterConfig, local_cluster
from recsys.sharding.estimate import REPLICATED
from recsys.sharding.optimizers import (
    TableOptimizer,
    check_dense_penalties,
    check_penalties,
    resolve_table_optimizers,
)
from recsys.sharding.plan import PlanConfig, plan_tables, read_plan, sharding_plan, share_plan
from recsys.sharding.search import table_sharder

LIST_LENGTH = 4.0
"""Ids that a list is planned with where plan.feature_lengths does not say."""


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
