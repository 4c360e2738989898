"""Turn pictures and texts into vectors: train or load the encoders, then encode every item.

In: W/prepared/. Out: W/encoders/{image,text}/ and W/features/{semantic,style,text}/.

    torchrun --standalone --nproc-per-node 2 launch/embed.py data=demo workspace=W
    python launch/embed.py data=movielens workspace=W encoder/image=squeezenet \\
        encoder.image.weights=squeezenet1_0.safetensors encoder/text=minilm encoder.text.path=FOLDER
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from embedding.config import EmbedConfig
from embedding.features.extraction import extract_features
from embedding.image.picture_folder import check_pictures
from embedding.making import makers, open_encoder
from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.report.neighbour_accuracy import show_neighbour_accuracy
from recsys.report.retrieval import show_retrieval
from recsys.runtime.collectives import share
from recsys.runtime.env import start, stop
from recsys.runtime.hosts import once_a_host
from recsys.schema import read_manifest

KEYS = (WorkspaceConfig, EmbedConfig)
SHOW: dict[str, Callable[[Path, Any], None]] = {
    "image": lambda folder, found: show_neighbour_accuracy(found),
    "text": show_retrieval,
}
"""By name of an encoder: shows its evaluation; takes its folder and what its making returned."""
TIMEOUT_SECONDS = 7 * 24 * 3600
"""A rank may wait for another one's shards, or for rank 0's training, longer than any step takes."""


def job(cfg: DictConfig) -> None:
    """Make or load each encoder, and encode every item with it."""
    # 1. Settings and data.
    place, config = read_job(cfg, KEYS)
    workspace = place.folder
    env = start(config.device, threads=config.run.threads, timeout_seconds=TIMEOUT_SECONDS)
    manifest = once_a_host(lambda: read_manifest(workspace))
    encoders = makers(workspace, manifest, config.encoder, seed=config.seed, env=env)
    if manifest.has_images and not config.forget_missing:
        share(lambda: check_pictures(workspace, manifest))

    for maker in encoders:
        # 2. The encoder: loaded where it is unchanged, else trained.
        with stage(f"{maker.name} encoder") as making:
            encoder = open_encoder(maker, retrain=config.retrain)
            making.done(encoder.description)
        if encoder.evaluation:
            share(partial(SHOW[maker.name], maker.folder, encoder.evaluation))

        # 3. Vectors of every item.
        with stage(f"encode {maker.contents}") as encoding:
            extraction = extract_features(
                encoder.extractor,
                workspace=workspace,
                manifest=manifest,
                made_by=encoder.made_by,
                env=env,
                shard_rows=config.shard_rows,
                bits=config.vector_bits,
                forget_missing=config.forget_missing,
            )
            encoding.done(str(extraction))
        for note in extraction.notes(workspace / "features"):
            say(note)

    # 4. The results, and the next commands.
    say(f"results: {workspace / 'features'}")
    say(f"next: {next_command('train', place.workspace)}")
    say(f"next: {next_command('neighbours', place.workspace)}")
    stop()


@hydra_job("embed", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
