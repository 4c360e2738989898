"""Plan the tables of a model for a cluster: whether they fit, on which ranks, and what to change.

In: configs; W/prepared/ and W/features/ where they are, else rows= and modality_dims=. Needs no
GPU, no process group and no data. Out: plan.json and plan.html in W/plans/<cluster>/, tables in the
terminal; exit code 1 where the tables do not fit.

    python launch/plan.py data=demo workspace=W cluster=cpu_2
    python launch/plan.py cluster=h100_8x8 catalogue=billions
    python launch/plan.py cluster=h100_1x8 catalogue=billions search=min_cluster
"""

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.overrides import override
from recsys.report.plan import print_clusters, print_plan, print_suggestions
from recsys.report.plan_page import write_plan_page
from recsys.run.config import RunConfig
from recsys.run.planning import (
    Planned,
    PlanningConfig,
    arguments_of_training,
    rate_clusters,
    read_bits,
    read_cluster,
    read_tables,
    smallest_and_fastest,
)
from recsys.run.suggestions import half_precision_exchange, suggest
from recsys.runtime.env import silence_libraries
from recsys.schema import local_path
from recsys.sharding.plan import write_plan
from recsys.sharding.shortage import DoesNotFitError
from recsys.tracking.config import TrackingConfig

KEYS = (WorkspaceConfig, RunConfig, PlanningConfig, TrackingConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to a plan."""
    silence_libraries()
    # 1. Configuration, tables and cluster, all of it checked before anything is planned.
    place, run, config, _ = read_job(cfg, KEYS)
    cluster = config.cluster
    manifest, modality_dims = read_tables(place, run, config)
    planned = Planned(
        config=run,
        manifest=manifest,
        modality_dims=modality_dims,
        modality_bits=read_bits(place.folder, config, modality_dims),
        cluster=cluster,
    )
    if config.search is not None:
        rated = rate_clusters(planned, [read_cluster(name) for name in config.clusters])
        print_clusters(rated)
        smallest, fastest = smallest_and_fastest(rated)
        say(f"smallest that fits: {smallest}; fastest by estimate: {fastest}")
        return

    # 2. The plan, verdict first; where there is none, changes that work, each planned.
    try:
        with stage("plan") as planning:
            plan = planned.plan()
            planning.done(f"{len(plan.tables)} tables on {cluster.num_ranks} rank(s)")
    except DoesNotFitError as reason:
        say(f"does not fit {cluster.name}: {reason}")
        say("looking for changes that help, each planned:")
        if not print_suggestions(suggest(planned, reason)):
            say("none is enough alone (row-wise sharding, half precision, more hosts)")
        raise
    print_plan(plan)
    quicker = half_precision_exchange(planned, plan)
    print_suggestions([quicker] if quicker else [])

    # 3. For programs and for the browser.
    folder = place.folder / "plans" / cluster.name
    folder = local_path(config.out, "out") if config.out else folder
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder / "plan.json", plan)
    write_plan_page(folder / "plan.html", plan, title=f"{manifest.name} on {cluster.name}")
    say(f"plan: {folder} (plan.json, plan.html)")
    if plan.on_ssd:
        say(f"on SSD: {', '.join(plan.on_ssd)}; train takes no such table (docs/ids.md)")
        return
    if not (place.folder / "prepared" / "manifest.json").is_file():
        say(f"next: {next_command('prepare', place.workspace)}")
        return
    saved = override("plan", str(folder / "plan.json"))
    say(f"next: {next_command('train', place.workspace, *arguments_of_training(), saved)}")


@hydra_job("plan", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
