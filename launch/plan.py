"""Say how the tables lie on a cluster before renting it: whether they fit, where, and what to change.

In: configs; W/prepared/ and W/features/ where they are, else rows= and modality_dims=. Needs no
GPU, no process group and no data. Out: plan.json and plan.html in W/plans/<cluster>/, tables in the
terminal; exit code 1 where the tables do not fit.

    python launch/plan.py data=demo workspace=W cluster=cpu_2
    python launch/plan.py cluster=h100_8x8 catalogue=billions
    python launch/plan.py cluster=h100_1x8 catalogue=billions search=min_cluster
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from embedding.features.store import open_features
from recsys.config import from_config, read_job
from recsys.config_files import read_yaml
from recsys.data.planned_manifest import outline, with_rows
from recsys.data.workspace import WorkspaceConfig
from recsys.errors import UserError
from recsys.files import write_json
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.overrides import override
from recsys.report.neighbour_answers import MODALITIES
from recsys.report.plan import (
    print_clusters,
    print_plan,
    print_suggestions,
    size,
)
from recsys.report.plan_page import write_plan_page
from recsys.run.config import RunConfig
from recsys.run.suggestions import Planned, examples_per_second, rate_clusters, suggest
from recsys.runtime.env import silence_libraries
from recsys.schema import Manifest, local_path, read_manifest
from recsys.sharding.cluster import ClusterConfig, check_cluster
from recsys.sharding.search import DoesNotFitError

CLUSTERS = Path(__file__).resolve().parents[1] / "configs" / "cluster"


@dataclass(frozen=True, kw_only=True)
class PlanningConfig:
    """The cluster, and the tables that no prepared data has."""

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """Hardware; presets in configs/cluster/."""
    rows: dict[str, int] | None = None
    """Rows by table name, the unknown row included; null: as in the workspace's prepared data."""
    modality_dims: dict[str, int] | None = None
    """Width by modality name; null: as in the workspace's features; empty: none."""
    out: str | None = None
    """Folder for plan.json and plan.html; null: <workspace>/plans/<cluster.name>."""
    search: str | None = None
    """`min_cluster`: plan for all of `clusters`, name the smallest that fits and the fastest."""
    clusters: list[str] = field(default_factory=list)
    """Files of configs/cluster/, for search=min_cluster."""


KEYS = (WorkspaceConfig, RunConfig, PlanningConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a plan."""
    silence_libraries()
    # 1. Configuration, tables and cluster, all of it checked before anything is planned.
    place, run, config = read_job(cfg, KEYS)
    cluster = config.cluster
    check_cluster(cluster)
    check_planning(config)
    manifest, modality_dims = read_tables(place, run, config)
    planned = Planned(
        config=run,
        manifest=manifest,
        modality_dims=modality_dims,
        cluster=cluster,
    )
    if config.search is not None:
        search_clusters(planned, config.clusters)
        return

    # 2. The plan, verdict first; where there is none, what would help, each tried.
    try:
        with stage("plan") as planning:
            content = planned.plan()
            planning.done(f"{len(content['tables'])} tables on {cluster.num_ranks} rank(s)")
    except DoesNotFitError as reason:
        explain(planned, reason)
        raise
    print_plan(content)

    # 3. For programs and for the browser.
    folder = place.folder / "plans" / cluster.name
    folder = local_path(config.out, "out") if config.out else folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", content)
    write_plan_page(folder / "plan.html", content, title=f"{manifest.name} on {cluster.name}")
    say(f"plan: {folder} (plan.json, plan.html)")
    if not (place.folder / "prepared" / "manifest.json").is_file():
        say(f"next: {next_command('prepare', place.workspace)}")
        return
    plan = override("plan", str(folder / "plan.json"))
    say(f"next: {next_command('train', place.workspace, *arguments_of_training(), plan)}")


def arguments_of_training() -> list[str]:
    """Return what this job was given beside data, workspace, plan and its own keys."""
    others = {f.name for f in dataclasses.fields(PlanningConfig)}
    others |= {"data", "workspace", "plan", "catalogue"}
    given = [argument.removeprefix("++") for argument in HydraConfig.get().overrides.task]
    return [a for a in given if re.split(r"[.=]", a, maxsplit=1)[0] not in others]


def check_planning(config: PlanningConfig) -> None:
    """Raise UserError for rows and widths that no table has, all at once."""
    problems = [
        f"{key}.{name}={number}: expected 1 or more"
        for key in ("rows", "modality_dims")
        for name, number in (getattr(config, key) or {}).items()
        if number < 1
    ]
    if config.search not in (None, "min_cluster"):
        problems.append(
            f"search={config.search!r}: expected min_cluster, or null to plan for cluster="
        )
    unknown = sorted(set(config.modality_dims or {}) - set(MODALITIES))
    problems += [f"modality_dims.{n}: expected one of {', '.join(MODALITIES)}" for n in unknown]
    if problems:
        raise UserError("configuration: " + "\n  ".join(problems))


def read_tables(
    place: WorkspaceConfig, run: RunConfig, config: PlanningConfig
) -> tuple[Manifest, dict[str, int]]:
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
        manifest = outline(place.data, rows)
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


def explain(planned: Planned, reason: DoesNotFitError) -> None:
    """Print the verdict, and the changes that work."""
    say(f"does not fit {planned.cluster.name}: {reason}")
    say("looking for changes that help, each planned:")
    if not print_suggestions(suggest(planned, reason)):
        say("none is enough alone (row-wise sharding, half precision, more hosts)")


def search_clusters(planned: Planned, names: list[str]) -> None:
    """Plan for every cluster named; say which is the smallest that fits and which the fastest.

    Raises:
        UserError: no cluster, an unknown one, or none fits.
    """
    if not names:
        raise UserError("clusters=[]: expected at least one file of configs/cluster/")
    rated = rate_clusters(planned, [read_cluster(name) for name in names])
    print_clusters([
        [
            cluster.name,
            str(cluster.num_ranks),
            size(cluster.num_ranks * cluster.table_memory_bytes),
            "yes" if content else "no",
            f"{examples_per_second(content):,.0f}" if content else "-",
            verdict,
        ]
        for cluster, content, verdict in rated
    ])
    fitting = [(cluster, content) for cluster, content, _ in rated if content is not None]
    if not fitting:
        raise UserError(f"the tables fit none of {', '.join(names)}; name larger ones in clusters=")
    fastest = max(fitting, key=lambda pair: examples_per_second(pair[1]))
    say(f"smallest that fits: {fitting[0][0].name}; fastest by estimate: {fastest[0].name}")


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
    cluster = from_config(ClusterConfig, given, f"cluster {name}")
    check_cluster(cluster)
    return cluster


@hydra_job("plan", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
