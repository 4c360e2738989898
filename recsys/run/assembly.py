"""Assembly of a run: its ranker, plan, shards and loaders, from its configuration and data.

Called by launch/train.py (a new or resumed run), launch/evaluate.py (a finished one) and
launch/plan.py (one that may never be).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys.data.dataset import Dataset
from recsys.data.device_arrays import (
    DeviceArrays,
    array_names,
    can_hold,
    num_bytes,
    planned_bytes,
)
from recsys.data.loader import Loader, ReadAhead
from recsys.data.passes import LoaderSequence, PooledSplits, TimeOrdered
from recsys.data.replay import SplitRange
from recsys.errors import UserError
from recsys.model.build import batch_features, build_ranker
from recsys.model.ranker import Ranker
from recsys.run.components import fit_components
from recsys.run.config import RunConfig
from recsys.runtime.collectives import gather, sharing_errors
from recsys.runtime.env import Env, allow_tf32
from recsys.schema import Manifest, local_path
from recsys.sharding.apply import ShardedRanker, shard_ranker, share_plan
from recsys.sharding.cluster import ClusterConfig, local_cluster
from recsys.sharding.coded import codebooks_of
from recsys.sharding.id_maps import IdMaps
from recsys.sharding.optimizers import check_dense_penalties
from recsys.sharding.plan import REPLICATED, Plan, PlanConfig, read_plan
from recsys.sharding.search import plan_tables
from recsys.sharding.shards import Vectors
from recsys.sharding.tables import TableSettings, resolve_tables

LIST_LENGTH = 4.0
"""Ids that a list is planned with where plan.feature_lengths does not say."""


def build_plannable(
    *,
    config: RunConfig,
    manifest: Manifest,
    modality_dims: Mapping[str, int],
    device_type: str,
    modality_bits: Mapping[str, int] | None = None,
) -> tuple[Ranker, dict[str, TableSettings]]:
    """Return the ranker, its tables on the meta device, and the settings of every table.

    Args:
        modality_bits: bits of a number by modality where its table holds codes.

    Raises:
        UserError: a part of the configuration does not fit the data or the device.
    """
    ranker = build_ranker(
        manifest=manifest,
        config=config.model,
        modality_dims=modality_dims,
        seed=config.run.seed,
        forms=config.tables,
    )
    if ranker.inputs.modality is not None:
        ranker.inputs.modality.bits = dict(modality_bits or {})
    check_dense_penalties(config.optim, [name for name, _ in ranker.dense.named_children()])
    tables = resolve_tables(
        model=ranker,
        tables=config.tables,
        optim=config.optim,
        device_type=device_type,
        unread=[table.name for table in manifest.tables],
    )
    _check_times(manifest, tables)
    return ranker, tables


def _check_times(manifest: Manifest, tables: Mapping[str, TableSettings]) -> None:
    """Raise UserError where ids are to be forgotten by their age and the log has no times."""
    train = manifest.splits.get("train")  # no splits where nothing is prepared
    if train is None or train.timestamp_min is not None:
        return
    asked = [n for n, t in tables.items() if t.ids is not None and t.ids.forget.after_days]
    if asked:
        raise UserError(
            f"tables.{asked[0]}.ids.forget.after_days: the log of {manifest.name!r} has no times; name "
            f"interactions.timestamp in the recipe and run launch/prepare.py again, or use "
            f"tables.{asked[0]}.ids.forget.least_recent=true"
        )


def plan_model(
    *,
    config: RunConfig,
    manifest: Manifest,
    ranker: Ranker,
    tables: Mapping[str, TableSettings],
    cluster: ClusterConfig,
    trains: bool = True,
) -> Plan:
    """Return the best plan for a cluster.

    Args:
        trains: checkpoints are written, of copies in host memory where tables are on accelerators, and
            where train.save_in_background asks for them; accelerators keep arrays of the data, as
            train.arrays_on_gpu_bytes allows.

    Raises:
        UserError: constraints that do not fit the tables or the cluster.
        DoesNotFitError: no plan holds all tables.
    """
    on_gpu = cluster.device == "cuda"
    return plan_tables(
        model=ranker,
        cluster=cluster,
        tables=tables,
        config=config.plan,
        feature_lengths=feature_lengths(manifest, config.plan),
        global_batch_size=config.train.global_batch_size,
        host_copies=trains and (on_gpu or config.train.save_in_background),
        array_bytes=_array_bytes(ranker, manifest, config) if trains and on_gpu else 0,
    )


def _array_bytes(ranker: Ranker, manifest: Manifest, config: RunConfig) -> int:
    """Return the bytes of the data's arrays that a GPU keeps a copy of in training, by the manifest."""
    lengths = feature_lengths(manifest, config.plan)
    names = batch_features(ranker)
    if any(table.ids for table in config.tables.values()):
        return 0
    num_bytes = planned_bytes(manifest, names, lengths)
    return num_bytes if num_bytes <= config.train.arrays_on_gpu_bytes else 0


def feature_lengths(manifest: Manifest, plan: PlanConfig) -> dict[str, float]:
    """Return the ids a row of every feature: as configured, else 1, 4 for a list, and for a history
    the most it may hold.

    Raises:
        UserError: plan.feature_lengths names an unknown feature.
    """
    lengths = {f.name: LIST_LENGTH if f.is_list else 1.0 for f in manifest.features}
    if manifest.history is not None:
        longest = manifest.history.lengths
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
    trains: bool = True,
) -> tuple[Ranker, Plan, ShardedRanker]:
    """Return a new ranker, sharded in place, the plan for this world, made or read, and what trains it.

    Args:
        trains: leave memory for what training takes beside the tables (plan_model).

    Raises:
        UserError: the configuration does not fit the data or the cluster, or a saved plan this job.
    """
    ranker, tables = build_plannable(
        config=config,
        manifest=manifest,
        modality_dims={name: table.dim for name, table in vectors.items()},
        modality_bits={name: books.bits for name, books in codebooks_of(vectors).items()},
        device_type=env.device.type,
    )
    fit_components(ranker.dense, vectors)

    def make() -> Plan:
        if config.plan.file != "auto":
            return read_plan(local_path(config.plan.file, "plan.file"))
        return plan_model(
            config=config,
            manifest=manifest,
            ranker=ranker,
            tables=tables,
            cluster=local_cluster(env),
            trains=trains,
        )

    allow_tf32(config.model.dense_precision == "tf32")
    plan = share_plan(env=env, make=make, tables=tables, source=config.plan.file)
    used = {} if ranker.inputs.modality is None else ranker.inputs.modality.dims
    _check_similarity(ranker, tables, plan, config.plan.replicate_modality_bytes)
    sharded = shard_ranker(
        ranker=ranker,
        plan=plan,
        env=env,
        optim=config.optim,
        tables=tables,
        modality_vectors={name: vectors[name] for name in used},
        id_maps=IdMaps(
            tables,
            manifest,
            exchange_every_steps=config.train.exchange_ids_every_steps,
            bound=config.model.embedding_init,
            seed=config.run.seed,
        ),
        embedding_init=config.model.embedding_init,
        seed=config.run.seed,
    )
    return ranker, plan, sharded


def _check_similarity(
    ranker: Ranker, tables: Mapping[str, TableSettings], plan: Plan, most_bytes: int
) -> None:
    """Raise UserError where the model reads single items of histories from tables that are sharded."""
    replicated = any(table.sharding == REPLICATED for table in plan.tables)
    if ranker.inputs.similarity is None or ranker.inputs.modality is None or replicated:
        return
    modality_bytes = sum(table.num_bytes for table in tables.values() if table.is_frozen)
    raise UserError(
        f"model.similarity_tiers reads single items of the histories and needs the frozen tables "
        f"whole on every rank: they take {modality_bytes:,} bytes, "
        f"plan.replicate_modality_bytes={most_bytes:,} allows less"
    )


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


def build_training_loader(
    *,
    workspace: Path,
    manifest: Manifest,
    config: RunConfig,
    env: Env,
    parts: Sequence[Sequence[str]],
    in_time_order: bool,
    replayed: Sequence[SplitRange] = (),
    features: list[str],
) -> LoaderSequence:
    """Return the loader of training for this rank.

    Args:
        parts: names of the splits that are read together, part after part of a pass.
        in_time_order: read the rows of a part, one split, by their times; else shuffled.
        replayed: earlier rows that are shuffled among those of a part; none in time order.
    """
    loaders = []
    for splits in parts:
        shared: Any = {"prepared": workspace / "prepared", "manifest": manifest}
        # Ids that come and go are forgotten by time.
        with_times = any(table.ids for table in config.tables.values())
        shared |= {"features": features, "with_times": with_times, "is_trained_on": True}
        if in_time_order:
            (split,) = splits
            dataset: Dataset = TimeOrdered(split=split, **shared)
        elif len(splits) > 1 or replayed:
            dataset = PooledSplits(splits=splits, replayed=replayed, **shared)
        else:
            dataset = Dataset(split=splits[0], **shared)
        shuffle = not in_time_order
        # One lane: the rows of a step follow each other in time.
        lanes = 1 if in_time_order else None
        loaders.append(loader_of(dataset, config=config, env=env, shuffle=shuffle, num_lanes=lanes))
    return LoaderSequence(loaders)


def loader_of(
    dataset: Dataset, *, config: RunConfig, env: Env, shuffle: bool, num_lanes: int | None = None
) -> Loader:
    """Return the loader of any rows for this rank, with the run's batches, lanes and seed.

    All ranks call this: each looks at a share of the data set's files.

    Args:
        num_lanes: in place of train.num_lanes.

    Raises:
        UserError: a file is missing, broken or of other rows than the manifest says; on every rank.
    """
    with sharing_errors():
        dataset.check_files(env.rank, env.world_size)
    arrays = _device_arrays(dataset, config, env) if env.device.type == "cuda" and shuffle else None
    return Loader(
        dataset,
        global_batch_size=config.train.global_batch_size,
        rank=env.rank,
        world_size=env.world_size,
        num_lanes=num_lanes or config.train.num_lanes,
        shuffle=shuffle,
        seed=config.run.seed,
        ahead=_read_ahead(config, env, arrays),
    )


def loader_of_own(dataset: Dataset, *, config: RunConfig, env: Env) -> Loader:
    """Return the loader of a data set that differs by rank: each rank reads all of its own, in order.

    All ranks call this. They take as many steps as the one with the most rows, of the run's batch size.
    """
    loader = Loader(
        dataset,
        global_batch_size=-(-config.train.global_batch_size // env.world_size),
        rank=0,
        world_size=1,
        num_lanes=1,
        shuffle=False,
        seed=config.run.seed,
        ahead=_read_ahead(config, env, None),
    )
    loader.steps_per_epoch = max(gather(lambda: loader.steps_per_epoch))
    return loader


def _read_ahead(config: RunConfig, env: Env, arrays: DeviceArrays | None) -> ReadAhead:
    """Return what the run's loaders do before a step asks, with the threads that this rank has."""
    on_gpu = env.device.type == "cuda"
    spare_threads = max(1, env.threads - 1) if on_gpu else 0  # beside the thread that steps
    num_makers = config.train.loader_threads
    if num_makers is None:
        num_makers = min(8 if arrays is None else 2, spare_threads)
    return ReadAhead(
        num_prefetch=config.train.num_prefetch,
        pin_memory=on_gpu,
        num_readers=spare_threads,
        num_makers=num_makers,
        arrays=arrays,
    )


def _device_arrays(dataset: Dataset, config: RunConfig, env: Env) -> DeviceArrays | None:
    """Return copies of the data set's arrays on a GPU; None where the host gathers the ids."""
    names = array_names(dataset)
    maps_ids = any(table.ids for table in config.tables.values())
    if not names or maps_ids or not can_hold(dataset):
        return None
    if num_bytes(dataset) > config.train.arrays_on_gpu_bytes:
        return None
    return DeviceArrays(dataset, env.device)
