"""Say how the tables lie on a cluster before renting it: whether they fit, where, and what to change.

In: configs; W/prepared/ and W/features/ where they are, else rows= and modality_dims=. Needs no
GPU, no process group and no data. Out: plan.json and plan.html in W/plans/<cluster>/, tables in the
terminal; exit code 1 where the tables do not fit.

    python launch/plan.py data=demo workspace=W cluster=cpu_2
    python launch/plan.py cluster=h100_8x8 catalogue=billions
    python launch/plan.py cluster=h100_1x8 catalogue=billions search=min_cluster
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from embedding.store import open_features
from recsys.config import from_config, plain, read_yaml
from recsys.data.outline import outline, with_rows
from recsys.data.recipe import Recipe
from recsys.distributed.cluster import ClusterConfig, check_cluster
from recsys.distributed.env import silence_libraries
from recsys.distributed.planner import DoesNotFitError
from recsys.files import write_json
from recsys.job import hydra_job, run_job, say, stage
from recsys.report.plan import (
    print_clusters,
    print_plan,
    print_suggestions,
    size,
)
from recsys.report.plan_page import write_plan_page
from recsys.schema import Manifest, local_path, read_manifest
from recsys.train.advice import Planned, examples_per_second, rate_clusters, suggest
from recsys.train.run import SECTIONS, read_run_config

CLUSTERS = Path(__file__).resolve().parents[1] / "configs" / "cluster"


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a plan."""
    silence_libraries()
    # 1. Configuration, tables and cluster, all of it checked before anything is planned.
    cluster = from_config(ClusterConfig, plain(cfg.cluster), "cluster")
    check_cluster(cluster)
    manifest, modality_dims = read_tables(cfg)
    planned = Planned(
        config=read_run_config({name: plain(cfg[name]) for name in SECTIONS}),
        manifest=manifest,
        modality_dims=modality_dims,
        cluster=cluster,
    )
    if cfg.search is not None:
        search_clusters(planned, cfg.search, list(cfg.clusters))
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
    folder = local_path(cfg.workspace, "workspace") / "plans" / cluster.name
    folder = local_path(cfg.out, "out") if cfg.out else folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "plan.json", content)
    write_plan_page(folder / "plan.html", content, title=f"{manifest.name} on {cluster.name}")
    say(f"plan: {folder} (plan.json, plan.html)")
    say(f"next: launch/train.py with the same keys and plan={folder / 'plan.json'}")


def read_tables(cfg: DictConfig) -> tuple[Manifest, dict[str, int]]:
    """Return the manifest and the modality widths: of the workspace where it has them, else given.

    Raises:
        ValueError: rows or widths are neither given nor in the workspace.
    """
    workspace = local_path(cfg.workspace, "workspace")
    rows = {name: int(count) for name, count in (plain(cfg.rows) or {}).items()}
    prepared = (workspace / "prepared" / "manifest.json").is_file()
    if prepared and read_manifest(workspace).name == cfg.data.name:
        manifest = with_rows(read_manifest(workspace), rows)
        say(f"tables: as prepared in {workspace}{', rows as given' if rows else ''}")
    else:
        # Recipes leave the folder of the raw files open (???); no file is read here.
        data: Any = OmegaConf.to_container(cfg.data, resolve=True, throw_on_missing=False)
        manifest = outline(from_config(Recipe, {**data, "source": ""}, "data"), rows)
        say(f"tables: of recipe {manifest.name!r}, rows as given (no data)")
    if cfg.modality_dims is not None:
        return manifest, {name: int(dim) for name, dim in cfg.modality_dims.items()}
    names = [name for name in cfg.model.modalities if manifest.has_modality(name)]
    if not prepared or not (workspace / "features").is_dir():
        if names:
            say(
                f"modalities: none, as no features are here; give modality_dims={{{names[0]}: 512}}"
            )
        return manifest, {}
    stored = read_manifest(workspace)
    vectors = open_features(workspace, names, stored)
    return manifest, {name: table.dim for name, table in vectors.items()}


def explain(planned: Planned, reason: DoesNotFitError) -> None:
    """Print the verdict, and the changes that work."""
    say(f"does not fit {planned.cluster.name}: {reason}")
    say("looking for changes that help, each planned:")
    if not print_suggestions(suggest(planned, reason)):
        say("none of the usual changes is enough alone (fp16, width, rows, main memory, hosts)")


def search_clusters(planned: Planned, search: str, names: list[str]) -> None:
    """Plan for every cluster named; say which is the smallest that fits and which the fastest.

    Raises:
        ValueError: unknown search, unknown cluster, or none fits.
    """
    if search != "min_cluster":
        raise ValueError(f"search={search!r}: expected min_cluster, or null to plan for cluster=")
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
        raise ValueError(
            f"the tables fit none of {', '.join(names)}; name larger ones in clusters="
        )
    fastest = max(fitting, key=lambda pair: examples_per_second(pair[1]))
    say(f"smallest that fits: {fitting[0][0].name}; fastest by estimate: {fastest[0].name}")


def read_cluster(name: str) -> ClusterConfig:
    """Return a cluster of configs/cluster.

    Raises:
        ValueError: no such file.
    """
    file = CLUSTERS / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in CLUSTERS.glob("*.yaml")))
        raise ValueError(f"clusters: {name!r} is no file of {CLUSTERS}; there are {known}")
    given = read_yaml(file)
    given.pop("defaults", None)
    cluster = from_config(ClusterConfig, given, f"cluster {name}")
    check_cluster(cluster)
    return cluster


@hydra_job("plan", sections=(*SECTIONS, "cluster", "rows"))
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
