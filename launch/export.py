"""Export a trained run as a bundle: one folder from which recommendations are served, without torchrec.

In: W/prepared/, W/features/, W/runs/<run.name>/checkpoints/. Out: W/bundles/<run>-<step>-<sha8>/, and the
file W/bundles/current that names it; W/maps/ keeps the layouts of its map. A bundle that scores otherwise
than the run is refused. With base=, also W/bundles/deltas/<sequence>-<bundle>/, what changed since the
base.

    python launch/export.py data=demo workspace=W run.name=umair_fps
    python launch/export.py data=demo workspace=W run.name=umair_fps precision=fp32
    python launch/export.py data=demo workspace=W run.name=umair_fps base=W/bundles/current
    python launch/export.py data=demo workspace=W run.name=umair_fps gallery=W/gallery
"""

from dataclasses import dataclass, field

from omegaconf import DictConfig

from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.export.delta import DeltaConfig, find_base, remove_old
from recsys.export.export import ExportConfig, export, open_source
from recsys.export.gallery import GalleryConfig, write_gallery
from recsys.job import hydra_job, run_job, say, stage
from recsys.run.scoring import read_run
from recsys.runtime.threads import threads_of_process, use_threads
from recsys.schema import local_path, read_manifest


@dataclass(frozen=True, kw_only=True)
class ExportedRunConfig:
    """The run that is exported; its own config.yaml says what the model is."""

    name: str = "default"
    """Folder below workspace/runs/."""
    threads: int | None = None
    """Threads of the process; null: OMP_NUM_THREADS, else the cores it may use."""


@dataclass(frozen=True, kw_only=True)
class ExportJobConfig:
    """Which run is exported."""

    run: ExportedRunConfig = field(default_factory=ExportedRunConfig)
    """The run."""


KEYS = (WorkspaceConfig, ExportJobConfig, ExportConfig, DeltaConfig, GalleryConfig)


def job(cfg: DictConfig) -> None:
    """Read the run, write its bundle, say how it is served."""
    # 1. The run as it was trained.
    place, asked, config, chain, gallery = read_job(cfg, KEYS)
    workspace = place.folder
    manifest = read_manifest(workspace)
    run_config = read_run(workspace, asked.run.name, manifest)
    threads = threads_of_process(asked.run.threads).count
    use_threads(threads)
    source = open_source(workspace, run_config, manifest)

    # 2. Its bundle, compared with the run before it has a name, and its delta.
    bundles = workspace / "bundles"
    base = find_base(chain, bundles)
    folder = export(source, config, threads=threads, base=base)
    remove_old(bundles, chain)

    # 3. The gallery as a folder.
    if gallery.gallery is not None:
        out = local_path(gallery.gallery, "gallery")
        with stage("gallery") as writing:
            num_people, num_items = write_gallery(folder, out, gallery)
            writing.done(f"{num_people:,} people, {num_items:,} pictures")
        say(f"gallery: open {out / 'index.html'} in a browser")
    say(f"results: {folder} (README.md); {bundles / 'current'} names it")
    say(f"next: python launch/serve.py bundle={bundles / 'current'}")


@hydra_job("export", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
