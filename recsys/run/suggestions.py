"""What to change where a plan does not fit: every suggestion is planned before it is made.

What enters: a run's configuration, its data's manifest, the cluster, and what stands in the way.
What leaves: changes that work, with the keys to set and the plan they lead to. Called by
launch/plan.py.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recsys.data.planned_manifest import with_rows
from recsys.errors import UserError
from recsys.model.modality import TABLE_PREFIX
from recsys.run.assembly import RunConfig, build_plannable, plan_model
from recsys.schema import Manifest
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.optimizers import TableOptimConfig
from recsys.sharding.search import DoesNotFitError

_NARROWEST = 8
"""Columns below which no table is narrowed."""
_FEWEST_ROWS_SHARE = 0.01
"""Share of its rows below which no table is cut."""
_MOST_HOSTS = 128
_CACHED_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Everything that decides a plan."""

    config: RunConfig
    manifest: Manifest
    modality_dims: Mapping[str, int]
    cluster: ClusterConfig

    def plan(self) -> dict[str, Any]:
        """Return the plan.

        Raises:
            DoesNotFitError: no plan holds all tables.
            UserError: constraints that do not fit the tables or the cluster.
        """
        ranker, optimizers = build_plannable(
            config=self.config,
            manifest=self.manifest,
            modality_dims=self.modality_dims,
            device_type=self.cluster.device,
        )
        return plan_model(
            config=self.config,
            manifest=self.manifest,
            ranker=ranker,
            optimizers=optimizers,
            cluster=self.cluster,
        )


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A change that makes the plan fit."""

    change: str
    """What to do, in words."""
    keys: str
    """The same as keys of the command line."""
    verdict: str
    """What the plan with the change says."""


def suggest(planned: Planned, reason: DoesNotFitError) -> Iterator[Suggestion]:
    """Yield the changes that work, each planned; at most one of a kind."""
    kinds = (_without_copies, _free_sharding, _other_optimizer, _half, _narrower, _fewer_rows)
    for kind in (*kinds, _cached, _hosts):
        for change, keys, changed in kind(planned, reason):
            verdict = _verdict(changed)
            if verdict is not None:
                yield Suggestion(change=change, keys=keys, verdict=verdict)
                break


def _verdict(planned: Planned) -> str | None:
    """Return what the plan says, None where there is none."""
    try:
        return planned.plan()["summary"]["verdict"]
    except UserError:
        # A change that asks for what does not go together is no suggestion.
        return None


Change = tuple[str, str, Planned]
"""What to do, the keys, and everything with the change."""


def _with(planned: Planned, section: str, **keys: Any) -> Planned:
    changed = dataclasses.replace(getattr(planned.config, section), **keys)
    return dataclasses.replace(
        planned, config=dataclasses.replace(planned.config, **{section: changed})
    )


def _without_copies(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    if planned.config.train.save_in_background and planned.cluster.device == "cpu":
        yield (
            "write checkpoints from the tables themselves, while training waits",
            "train.save_in_background=false",
            _with(planned, "train", save_in_background=False),
        )


def _free_sharding(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    plan, table = planned.config.plan, reason.table
    if table in plan.sharding or table in plan.ranks:
        free = _with(
            planned,
            "plan",
            sharding={t: k for t, k in plan.sharding.items() if t != table} | {table: "row_wise"},
            ranks={t: r for t, r in plan.ranks.items() if t != table},
        )
        unpin = f" ~plan.ranks.{table}" if table in plan.ranks else ""
        yield f"cut {table} by rows", f"plan.sharding.{table}=row_wise{unpin}", free


def _other_optimizer(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    optim, table = planned.config.optim, reason.table
    if table is None or table.startswith(TABLE_PREFIX):
        return
    asked = optim.tables.get(table, optim.table)
    if asked.name == "adam":
        tables = optim.tables | {table: TableOptimConfig(name="rowwise_adagrad")}
        without = " and without its L2 penalty" if asked.l2 else ""
        yield (
            f"train {table} with row-wise Adagrad, whose state is one value a row{without}",
            f"optim.tables.{table}.name=rowwise_adagrad",
            _with(planned, "optim", tables=tables),
        )


def _trainable_rows(planned: Planned) -> dict[str, int]:
    """Rows of the tables the model trains, largest first."""
    ranker, optimizers = build_plannable(
        config=planned.config,
        manifest=planned.manifest,
        modality_dims={},
        device_type=planned.cluster.device,
    )
    rows = {c.name: c.num_embeddings for c in ranker.inputs.embeddings.embedding_bag_configs()}
    return dict(sorted(rows.items(), key=lambda item: -item[1]))


def _half(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    large = [t for t, rows in _trainable_rows(planned).items() if rows > 100_000]
    for count in range(1, len(large) + 1):
        tables = sorted({*planned.config.model.half_tables, *large[:count]})
        if tables != sorted(planned.config.model.half_tables):
            yield (
                f"hold {', '.join(large[:count])} in half precision",
                f"model.half_tables=[{','.join(tables)}]",
                _with(planned, "model", half_tables=tables),
            )


def _narrower(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    dim = planned.config.model.embedding_dim // 2 // 4 * 4
    while dim >= _NARROWEST:
        yield (
            f"make the tables {dim} wide instead of {planned.config.model.embedding_dim}",
            f"model.embedding_dim={dim}",
            _with(planned, "model", embedding_dim=dim),
        )
        dim = dim // 2 // 4 * 4


def _fewer_rows(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    if reason.table is None:
        return
    # The rows of a modality table are the items.
    table = "item_id" if reason.table.startswith(TABLE_PREFIX) else reason.table
    rows = planned.manifest.table(table).num_rows
    fewer = rows
    while fewer > max(1, _FEWEST_ROWS_SHARE * rows):
        fewer = int(float(f"{fewer * 0.7:.2g}"))
        yield (
            f"keep {fewer:,} rows of {table} instead of {rows:,} (min_count or hash_rows in the "
            f"recipe)",
            f"rows.{table}={fewer}",
            dataclasses.replace(planned, manifest=with_rows(planned.manifest, {table: fewer})),
        )


def _cached(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    if planned.cluster.device != "cuda":
        return
    candidates = [reason.table, *_trainable_rows(planned)]
    candidates += [TABLE_PREFIX + name for name in planned.modality_dims]
    tables = [t for t in dict.fromkeys(candidates) if t is not None]
    plan = planned.config.plan
    for count in range(1, len(tables) + 1):
        kernels = plan.kernels | dict.fromkeys(tables[:count], "fused_uvm_caching")
        shares = plan.cache_load_factor | dict.fromkeys(tables[:count], _CACHED_SHARE)
        yield (
            f"keep {', '.join(tables[:count])} in main memory, {_CACHED_SHARE:.0%} cached on the "
            f"accelerators (slower)",
            " ".join(
                f"plan.kernels.{t}=fused_uvm_caching plan.cache_load_factor.{t}={_CACHED_SHARE}"
                for t in tables[:count]
            ),
            _with(planned, "plan", kernels=kernels, cache_load_factor=shares),
        )


def _hosts(planned: Planned, reason: DoesNotFitError) -> Iterator[Change]:
    """The fewest hosts by doubling and halving: only the last candidate is yielded."""

    def on(hosts: int) -> Planned:
        return dataclasses.replace(
            planned, cluster=dataclasses.replace(planned.cluster, hosts=hosts)
        )

    hosts = _fewest(lambda hosts: _verdict(on(hosts)) is not None, planned.cluster.hosts)
    if hosts is not None:
        yield (
            f"use {hosts} hosts instead of {planned.cluster.hosts}",
            f"cluster.hosts={hosts}",
            on(hosts),
        )


def _fewest(fits: Callable[[int], bool], too_few: int) -> int | None:
    """Return the smallest number above `too_few` that fits, to a quarter; None up to _MOST_HOSTS."""
    enough = too_few * 2
    while not fits(enough):
        too_few, enough = enough, enough * 2
        if enough > _MOST_HOSTS:
            return None
    while enough - too_few > max(1, math.floor(0.25 * too_few)):
        middle = (enough + too_few) // 2
        too_few, enough = (too_few, middle) if fits(middle) else (middle, enough)
    return enough


def rate_clusters(
    planned: Planned, clusters: list[ClusterConfig]
) -> list[tuple[ClusterConfig, dict[str, Any] | None, str]]:
    """Plan for every cluster; return (cluster, plan or None, verdict) from the smallest up.

    Small is: fewest ranks, then least memory.
    """
    ordered = sorted(clusters, key=lambda c: (c.num_ranks, c.num_ranks * c.table_memory_bytes))
    rated: list[tuple[ClusterConfig, dict[str, Any] | None, str]] = []
    for cluster in ordered:
        try:
            content = dataclasses.replace(planned, cluster=cluster).plan()
            rated.append((cluster, content, content["summary"]["verdict"]))
        except DoesNotFitError as reason:
            rated.append((cluster, None, str(reason)))
    return rated


def examples_per_second(content: Mapping[str, Any]) -> float:
    """Return the estimated rows a second of all ranks: a batch in the time of the critical path."""
    rows = content["num_ranks"] * content["batch_size_per_rank"]
    return rows / max(content["summary"]["critical_path_ms"], 1e-9) * 1e3
