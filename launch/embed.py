"""Turn pictures and texts into vectors: train or load the encoders, then encode every item.

In: W/prepared/. Out: W/encoders/{image,text}/ and W/features/{semantic,style,text}/.

    torchrun --standalone --nproc-per-node 2 launch/embed.py data=demo workspace=W
    python launch/embed.py data=movielens workspace=W encoder/image=squeezenet \\
        encoder.image.weights=squeezenet1_0.safetensors encoder/text=minilm encoder.text.path=FOLDER
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig

from embedding.catalogue import Catalogue
from embedding.fine_tuning import fine_tune
from embedding.image import ImageConfig, ImageEncoder
from embedding.job import (
    ImageExtractor,
    TextExtractor,
    batched,
    extract_features,
    fingerprint,
    sample_rows,
)
from embedding.pairs import BatchPlan, Pairs, read_pairs, split_by_entity
from embedding.pictures import load_pictures
from embedding.pretext import TagData, tag_targets, train_on_tags
from embedding.retrieval import retrieval_tasks
from embedding.store import FeatureManifest
from embedding.text import (
    TextConfig,
    TextEncoder,
    build_scratch_encoder,
    has_bfloat16,
    load_text_encoder,
)
from recsys.config import from_config, plain
from recsys.distributed.env import Env, first_rank_work, start, stop
from recsys.job import run_job, say, stage
from recsys.report.retrieval import show_retrieval, write_retrieval
from recsys.schema import Manifest, read_manifest, write_json


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to an item's picture and text."""
    # 1. Settings and data.
    image = from_config(ImageConfig, plain(cfg.encoder.image), "encoder.image")
    text = from_config(TextConfig, plain(cfg.encoder.text), "encoder.text")
    workspace = Path(cfg.workspace).resolve()
    env = start(cfg.device)
    manifest = read_manifest(workspace)
    shared: dict[str, Any] = {
        "workspace": workspace,
        "manifest": manifest,
        "shard_rows": int(cfg.shard_rows),
        "rank": env.rank,
        "world_size": env.world_size,
        "barrier": dist.barrier,
    }
    if not (manifest.has_images or manifest.has_texts):
        raise ValueError(
            f"{workspace / 'prepared'}: the recipe maps neither items.image nor items.text, so there "
            f"is nothing to embed; train without modalities"
        )

    # 2. Pictures: one network, two outputs.
    if manifest.has_images:
        with stage("image encoder") as encoder_stage:
            encoder, revision = image_encoder(workspace, manifest, image, int(cfg.seed), env)
            encoder_stage.done(f"{image.backbone}, weights {image.weights}, {image.style_head}")
        with stage("encode pictures") as encoding:
            tables = extract_features(
                ImageExtractor(
                    encoder,
                    image_root=Path(str(manifest.image_root)),
                    size=image.size,
                    batch_size=image.batch_size,
                    threads=max(2, len(os.sched_getaffinity(0)) // env.local_world_size),
                ),
                encoder_name=f"{image.backbone}/{image.style_head}",
                revision=revision,
                scaling="mean 0, then deviation 1 per dimension (gram_pca: 1 over all)",
                **shared,
            )
            encoding.done(described(tables))

    # 3. Texts.
    if manifest.has_texts:
        with stage("text encoder") as encoder_stage:
            text_model, revision = text_encoder(workspace, manifest, text, int(cfg.seed), env)
            encoder_stage.done(text.path)
        with stage("encode texts") as encoding:
            tables = extract_features(
                TextExtractor(text_model),
                encoder_name=text.path,
                revision=revision,
                scaling="unit length, then mean 0 and mean deviation 1 over a sample of items",
                **shared,
            )
            encoding.done(described(tables))

    # 4. What came out, and what to do next.
    say(f"results: {workspace / 'features'}")
    say(f"next: launch/train.py data={cfg.data.name} workspace={cfg.workspace} run.name=...")
    stop()


def described(tables: dict[str, FeatureManifest]) -> str:
    """Return counts of finished tables for the stage's line."""
    parts = []
    for name, table in tables.items():
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in table.masked.items())
        parts.append(f"{name} {table.count:,} x {table.dim} (masked: {reasons or 'none'})")
    return "; ".join(parts)


def image_encoder(
    workspace: Path, manifest: Manifest, config: ImageConfig, seed: int, env: Env
) -> tuple[ImageEncoder, str]:
    """Return the encoder and its fingerprint: an unchanged one is loaded, else it is made here."""
    folder = workspace / "encoders" / "image"
    weights = Path(config.weights).expanduser()
    wanted = {
        "settings": dataclasses.asdict(config),
        "weights": fingerprint(weights) if weights.is_file() else config.weights,
        "items": manifest.checksums["items.parquet"],
        "seed": seed,
    }
    encoder = ImageEncoder(
        backbone=config.backbone,
        weights=config.weights,
        style_head=config.style_head,
        style_blocks=config.style_blocks,
        style_dim=config.style_dim,
    )
    encoder.to(env.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not agreed(unchanged(folder, wanted), env):
        root = Path(str(manifest.image_root)).resolve()
        catalogue = Catalogue(workspace / "prepared")
        if config.weights == "pretext":
            train_image_encoder(encoder, catalogue, root, config, seed, env)
        encoder.eval()
        with first_rank_work(env) as is_first:
            if is_first:
                rows = sample_rows(catalogue.num_rows, config.fit_pictures, seed)
                pixels = usable_pictures(catalogue, root, rows, config.size)[1]
                encoder.fit_scaling(batched(pixels, config.batch_size))
                with replaced(folder) as beside:
                    encoder.save(beside, wanted)
    encoder.load(folder)
    encoder.eval()
    return encoder, fingerprint(wanted, folder / "weights.safetensors")


def unchanged(folder: Path, wanted: dict[str, Any]) -> bool:
    """Return whether an encoder made with the same settings lies in `folder`."""
    file = folder / "config.json"
    return file.is_file() and json.loads(file.read_text()) == json.loads(json.dumps(wanted))


def agreed(answer: bool, env: Env) -> bool:
    """Return rank 0's answer on every rank: files may change between two ranks' looks."""
    answers = [answer]
    if env.world_size > 1:
        dist.broadcast_object_list(answers, src=0)
    return answers[0]


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that takes its place when the block ends without an error."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def usable_pictures(
    catalogue: Catalogue, root: Path, rows: list[int], size: int
) -> tuple[list[int], np.ndarray]:
    """Return (rows, uint8 [N, S, S, 3]) of those `rows` whose picture can be used."""
    names = catalogue.column("image", rows)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        pixels, reasons = load_pictures(pool, root, names, size)
    good = [index for index, reason in enumerate(reasons) if reason is None]
    return [rows[index] for index in good], pixels[good]


def train_image_encoder(
    encoder: ImageEncoder,
    catalogue: Catalogue,
    root: Path,
    config: ImageConfig,
    seed: int,
    env: Env,
) -> None:
    """Train the network on the items' tags, on all ranks."""
    rows = sample_rows(catalogue.num_rows, config.pretext_max_pictures, seed)
    rows, pixels = usable_pictures(catalogue, root, rows, config.size)
    targets, tags = tag_targets(catalogue.column("tags", rows), config.pretext_min_count)
    say(f"tag pretext: {len(rows):,} pictures, {len(tags)} tags, {env.world_size} rank(s)")
    train_on_tags(
        encoder,
        TagData(pixels=pixels, targets=targets, tags=tags),
        epochs=config.pretext_epochs,
        learning_rate=config.pretext_learning_rate,
        batch_size=config.pretext_batch_size,
        seed=seed,
        device=env.device,
        say=say,
    )


def text_encoder(
    workspace: Path, manifest: Manifest, config: TextConfig, seed: int, env: Env
) -> tuple[TextEncoder, str]:
    """Return the encoder and its fingerprint: an unchanged one is loaded, else it is made here."""
    folder = workspace / "encoders" / "text"
    pairs_file = workspace / "prepared" / "pairs.parquet"
    uses_pairs = manifest.has_pairs and (config.epochs > 0 or config.max_queries > 0)
    wanted = {
        "settings": dataclasses.asdict(config),
        "items": manifest.checksums["items.parquet"],
        "pairs": fingerprint(pairs_file) if uses_pairs else None,
        "seed": seed,
    }
    if not agreed(unchanged(folder, wanted), env):
        make_text_encoder(workspace, manifest, config, seed, env, wanted)
    model = load_text_encoder(str(folder / "model"), config.max_tokens, env.device)
    encoder = TextEncoder(model, config.batch_size)
    encoder.load_scaling(folder)
    return encoder, fingerprint(wanted, folder / "model")


def make_text_encoder(
    workspace: Path,
    manifest: Manifest,
    config: TextConfig,
    seed: int,
    env: Env,
    wanted: dict[str, Any],
) -> None:
    """Load or build the text model, train it on the pairs on all ranks, examine and save it.

    A killed run leaves its checkpoints in encoders/.text.training/, and the next one goes on there.
    """
    # 1. The pairs: entities that training never sees examine the encoder.
    nothing = Pairs([], [], [], [], [])
    pairs = read_pairs(workspace / "prepared") if wanted["pairs"] else nothing
    split = split_by_entity(pairs, config.held_out_tenths)
    tasks = retrieval_tasks(split.held_out, config.max_queries)
    plan = BatchPlan(
        split.train,
        epochs=config.epochs,
        batch_size=config.pair_batch_size,
        weights=config.perspective_weights,
        max_pairs=config.max_pairs,
        num_ranks=env.world_size,
        seed=seed,
    )
    if len(pairs):
        say(
            f"text pairs: {len(split.train):,} to train on, {len(split.held_out):,} of "
            f"{split.num_entities:,} held-out entities, {split.num_left_out:,} left out that share a "
            f"text with these"
        )
    if plan.num_batches:
        say(f"batches an epoch: {plan}")
    if config.path == "scratch" and not len(plan):
        raise ValueError(
            "encoder.text.path=scratch: a text encoder is trained on text pairs; map pairs in the "
            "recipe and set encoder.text.epochs to 1 or more, or give a folder or hub name"
        )

    # 2. The model as it comes, the same on every rank.
    training = workspace / "encoders" / ".text.training"
    catalogue = Catalogue(workspace / "prepared")
    rows = sample_rows(catalogue.num_rows, 20_000, seed)
    sample = [text for text in catalogue.column("text", rows) if text]
    with first_rank_work(env) as is_first:
        if is_first and not unchanged(training, wanted):
            with replaced(training) as beside:
                untrained_text_model(config, split.train, sample, seed, env, beside)
                write_json(beside / "config.json", wanted)
    model = load_text_encoder(str(training / "untrained"), config.max_tokens, env.device)

    # 3. Training and examination.
    evaluations = fine_tune(
        model,
        split.train,
        tasks,
        plan=plan,
        new_characters=config.extend_vocabulary,
        max_tokens=config.pair_max_tokens,
        learning_rate=config.learning_rate,
        use_bfloat16=has_bfloat16(config.precision, env.device),
        evaluations=config.evaluations,
        save_every_steps=config.save_every_steps,
        encode_batch_size=config.batch_size,
        folder=training / "checkpoints",
        seed=seed,
        rank=env.rank,
        num_ranks=env.world_size,
        barrier=dist.barrier,
        say=say,
    )

    # 4. What is kept.
    shown = [dataclasses.asdict(evaluation) for evaluation in evaluations]
    with first_rank_work(env) as is_first:
        if is_first:
            encoder = TextEncoder(model, config.batch_size)
            encoder.fit_scaling(sample[:2048])
            with replaced(workspace / "encoders" / "text") as beside:
                encoder.save(beside)
                if shown:
                    write_retrieval(beside, shown, split.counts())
                write_json(beside / "config.json", wanted)
            show_retrieval(shown)
            shutil.rmtree(training)


def untrained_text_model(
    config: TextConfig, pairs: Pairs, sample: list[str], seed: int, env: Env, folder: Path
) -> None:
    """Load or build the model that training starts from, and save it as folder/untrained."""
    if config.path == "scratch":
        model = build_scratch_encoder(
            pairs.anchor + pairs.positive + sample,
            folder,
            vocabulary_size=config.vocabulary_size,
            hidden_dim=config.hidden_dim,
            num_layers=config.num_layers,
            max_tokens=config.max_tokens,
            seed=seed,
            device=env.device,
        )
    else:
        model = load_text_encoder(config.path, config.max_tokens, env.device)
    model.save(str(folder / "untrained"), create_model_card=False)


@hydra.main(version_base=None, config_path="../configs", config_name="embed")
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
