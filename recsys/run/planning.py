"""Planning for a cluster that need not exist: tables of prepared data or of a recipe, cluster presets.

In: a run's configuration, the workspace or the rows of every table. Out: everything that decides a
plan, and the plan of every cluster of a list. Called by launch/plan.py and recsys/run/suggestions.py.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from hydra.core.hydra_config import HydraConfig
from pydantic import Field

from embedding.features.codes import BITS
from embedding.features.opening import open_features
from embedding.features.store import FeatureTable
from recsys.config import from_config
from recsys.config_files import read_yaml
from recsys.data.planned_manifest import planned_manifest, with_rows
from recsys.data.workspace import WorkspaceConfig
from recsys.errors import UserError
from recsys.job import say
from recsys.model.config import RankerConfig
from recsys.run.assembly import build_plannable, plan_model
from recsys.run.config import RunConfig
from recsys.schema import Manifest, read_manifest
from recsys.sharding.cluster import ClusterConfig
from recsys.sharding.coded import codebooks_of
from recsys.sharding.plan import Plan
from recsys.sharding.shortage import DoesNotFitError

CLUSTERS = Path(__file__).resolve().parents[2] / "configs" / "cluster"


@dataclass(frozen=True, kw_only=True)
class PlanningConfig:
    """The cluster, and the tables that no prepared data has."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Hardware; presets in configs/cluster/."""
    rows: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Rows by table name, the unknown row included; null: as in the workspace's prepared data."""
    modality_dims: dict[str, Annotated[int, Field(ge=1)]] | None = None
    """Width by modality name; null: as in the workspace's features; empty: none."""
    modality_bits: int = 16
    """Bits of a number of the vectors of `modality_dims`: 16 (fp16), or 2 or 4 as codes (`vector_bits` of
    embed), which training decodes to fp16 unless 8 / bits divides all widths; those of the workspace's
    features are as they are."""
    out: str | None = None
    """Folder for plan.json and plan.html; null: <workspace>/plans/<cluster.name>."""
    search: Literal["min_cluster"] | None = None
    """`min_cluster`: plan for all of `clusters`, name the smallest that fits and the fastest; null: plan
    for `cluster`."""
    clusters: list[str] = field(default_factory=list)
    """Files of configs/cluster/, for search=min_cluster."""

    def problems(self) -> Iterator[str]:
        """Yield a text for every modality that no ranker has, and for a search without clusters."""
        if self.modality_bits not in BITS:
            yield f"modality_bits={self.modality_bits}: expected one of 16, 4 and 2"
        known = RankerConfig().modalities
        for name in self.modality_dims or {}:
            if name not in known:
                yield f"modality_dims.{name}: expected one of {', '.join(known)}"
        if self.search is not None and not self.clusters:
            yield "clusters=[]: expected at least one file of configs/cluster/"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Everything that decides a plan."""

    config: RunConfig
    manifest: Manifest
    modality_dims: Mapping[str, int]
    cluster: ClusterConfig
    modality_bits: Mapping[str, int] = field(default_factory=dict)
    """Bits of a number by modality whose table holds codes."""

    def plan(self) -> Plan:
        """Return the plan.

        Raises:
            DoesNotFitError: no plan holds all tables.
            UserError: constraints that do not fit the tables or the cluster.
        """
        ranker, tables = build_plannable(
            config=self.config,
            manifest=self.manifest,
            modality_dims=self.modality_dims,
            modality_bits=self.modality_bits,
            device_type=self.cluster.device,
        )
        return plan_model(
            config=self.config,
            manifest=self.manifest,
            ranker=ranker,
            tables=tables,
            cluster=self.cluster,
        )


@dataclass(frozen=True, kw_only=True)
class RatedCluster:
    """A cluster and its plan."""

    cluster: ClusterConfig
    plan: Plan | None
    """None: the tables do not fit."""
    verdict: str
    """Of the plan, or the reason why there is none."""


def read_tables(
    place: WorkspaceConfig, run: RunConfig, config: PlanningConfig
) -> tuple[Manifest, Mapping[str, int]]:
    """Return the manifest and the modality widths: of the workspace where it has them, else given.

    Raises:
        UserError: rows or widths are neither given nor in the workspace.
    """
    workspace, rows = place.folder, config.rows or {}
    prepared = (workspace / "prepared" / "manifest.json").is_file()
    if prepared and read_manifest(workspace).name == place.data.name:
        manifest = with_rows(read_manifest(workspace), rows)
        say(f"tables: as prepared in {workspace}{', rows as given' if rows else ''}")
    else:
        manifest = planned_manifest(place.data, rows)
        say(f"tables: of recipe {manifest.name!r}, rows as given (no data)")
    if config.modality_dims is not None:
        return manifest, config.modality_dims
    names = [name for name in run.model.modalities if manifest.has_modality(name)]
    if not prepared or not (workspace / "features").is_dir():
        if names:
            say(
                f"modalities: none, as no features are here; give modality_dims={{{names[0]}: 512}}"
            )
        return manifest, {}
    stored = read_manifest(workspace)
    vectors = open_features(workspace, names, stored, say)
    return manifest, {name: table.dim for name, table in vectors.items()}


def read_bits(
    workspace: Path, config: PlanningConfig, modality_dims: Mapping[str, int]
) -> dict[str, int]:
    """Return the bits of a number by modality, of those whose tables hold codes: as given, or as there.

    Given bits hold where training looks codes up: where they cut every width into whole bytes.

    Args:
        modality_dims: of `read_tables`.
    """
    if config.modality_dims is None:
        tables = {name: FeatureTable(workspace / "features" / name) for name in modality_dims}
        return {name: books.bits for name, books in codebooks_of(tables).items()}
    bits = config.modality_bits
    is_coded = bits != 16 and not any(dim * bits % 8 for dim in modality_dims.values())
    return dict.fromkeys(modality_dims, bits) if is_coded else {}


def arguments_of_training() -> list[str]:
    """Return this job's arguments beside data, workspace, plan and the keys of PlanningConfig."""
    others = {f.name for f in dataclasses.fields(PlanningConfig)}
    others |= {"data", "workspace", "plan", "catalogue"}
    given = [argument.removeprefix("++") for argument in HydraConfig.get().overrides.task]
    return [a for a in given if re.split(r"[.=]", a, maxsplit=1)[0] not in others]


def rate_clusters(planned: Planned, clusters: list[ClusterConfig]) -> list[RatedCluster]:
    """Plan for every cluster; from the smallest up: fewest ranks, then least memory."""
    ordered = sorted(clusters, key=lambda c: (c.num_ranks, c.num_ranks * c.table_memory_bytes))
    rated = []
    for cluster in ordered:
        try:
            plan = dataclasses.replace(planned, cluster=cluster).plan()
            rated.append(RatedCluster(cluster=cluster, plan=plan, verdict=plan.summary.verdict))
        except DoesNotFitError as reason:
            rated.append(RatedCluster(cluster=cluster, plan=None, verdict=str(reason)))
    return rated


def smallest_and_fastest(rated: list[RatedCluster]) -> tuple[str, str]:
    """Return the names of the first cluster that fits, and of the fastest by estimate.

    Raises:
        UserError: the tables fit none of them.
    """
    plans = {line.cluster.name: line.plan for line in rated if line.plan is not None}
    if not plans:
        names = ", ".join(line.cluster.name for line in rated)
        raise UserError(f"the tables fit none of {names}; name larger ones in clusters=")
    return next(iter(plans)), max(plans, key=lambda name: plans[name].examples_per_second)


def read_cluster(name: str) -> ClusterConfig:
    """Return a cluster of configs/cluster.

    Raises:
        UserError: no such file.
    """
    file = CLUSTERS / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in CLUSTERS.glob("*.yaml")))
        raise UserError(f"clusters: {name!r} is no file of {CLUSTERS}; there are {known}")
    given = read_yaml(file)
    given.pop("defaults", None)
    return from_config(ClusterConfig, given, f"cluster {name}")
