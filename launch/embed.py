"""Turn pictures and texts into vectors: train or load the encoders, then encode every item.

In: W/prepared/. Out: W/encoders/{image,text}/ and W/features/{semantic,style,text}/.

    torchrun --standalone --nproc-per-node 2 launch/embed.py data=demo workspace=W
    python launch/embed.py data=movielens workspace=W encoder/image=squeezenet \\
        encoder.image.weights=squeezenet1_0.safetensors encoder/text=minilm encoder.text.path=FOLDER
"""

import dataclasses
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from omegaconf import DictConfig

from embedding.features.catalogue import Catalogue, drawn
from embedding.features.extraction import (
    UNUSABLE_FILE,
    Extraction,
    ImageExtractor,
    TextExtractor,
    check_pictures,
    extract_features,
    fingerprint,
    sample_rows,
)
from embedding.holdout import held_out
from embedding.image.encoder import ImageConfig, ImageEncoder, chosen_style_head
from embedding.image.heads import Pictures, fit_heads, gathered, measure
from embedding.image.pictures import load_pictures
from embedding.image.pretext import (
    PictureCache,
    PretextConfig,
    TagData,
    tag_targets,
    train_on_tags,
)
from embedding.text.encoder import (
    TextConfig,
    TextEncoder,
    build_scratch_encoder,
    has_bfloat16,
    load_text_encoder,
)
from embedding.text.fine_tuning import fine_tune
from embedding.text.pairs import BatchPlan, Pairs, read_pairs, readable, split_by_entity
from embedding.text.retrieval import retrieval_tasks
from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.errors import UserError
from recsys.files import (
    EMBED_AGAIN,
    new_folder,
    put_back,
    read_json,
    reading,
    write_json,
)
from recsys.job import hydra_job, next_command, run_job, say, stage
from recsys.listing import check_listing
from recsys.report.neighbour_accuracy import print_agreement
from recsys.report.retrieval import show_retrieval, write_retrieval
from recsys.runtime.env import Env, first_rank_work, start, stop
from recsys.runtime.threads import ProcessConfig
from recsys.schema import Manifest, local_path, read_manifest
from recsys.sharding.batch_norm import synchronise

_MEASURED_PICTURES = 4096
"""Most unseen pictures the image encoder is measured on."""
_SCALING_TEXTS = 2048
"""Most texts the scaling of text vectors is fitted on."""


@dataclass(frozen=True, kw_only=True)
class EncodersConfig:
    """Both encoders."""

    image: ImageConfig = field(default_factory=ImageConfig)
    """Of pictures."""
    text: TextConfig = field(default_factory=TextConfig)
    """Of texts."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The encoders, and how their vectors are made and kept."""

    run: ProcessConfig = field(default_factory=ProcessConfig)
    """Threads."""
    encoder: EncodersConfig = field(default_factory=EncodersConfig)
    """Of pictures and of texts."""
    device: str = "auto"
    """`auto` (GPU where present), `cpu` or `cuda`."""
    seed: int = 0
    """Of the encoders' training and of samples."""
    retrain: bool = False
    """Train an encoder anew when items or pairs were added or changed since; every vector is made
    anew with it. False: it is kept, and only new vectors are made."""
    forget_missing: bool = False
    """Mask items whose picture is gone or cannot be read any more, and go on where the picture folder
    is missing or empty. False: such items keep their vectors, and such a folder is refused."""
    shard_rows: int | None = None
    """Items per file of the feature store; null: as the tables that are there, else 1024, and more
    above 4 million items (32768 at most)."""


KEYS = (WorkspaceConfig, EmbedConfig)


def job(cfg: DictConfig) -> None:
    """Read down once: this is what happens to an item's picture and text."""
    # 1. Settings and data.
    place, config = read_job(cfg, KEYS)
    image, text, workspace = config.encoder.image, config.encoder.text, place.folder
    if config.shard_rows is not None and config.shard_rows < 1:
        raise UserError(f"shard_rows={config.shard_rows}: expected 1 or more, or null")
    # A rank may wait for another one's shards, or for rank 0's training, longer than any step takes.
    env = start(config.device, threads=config.run.threads, timeout_seconds=7 * 24 * 3600)
    manifest = read_manifest(workspace)
    style_head = chosen_style_head(image.style_head, manifest.has_artists)
    image = dataclasses.replace(image, style_head=style_head)
    shared: dict[str, Any] = {
        "workspace": workspace,
        "manifest": manifest,
        "shard_rows": config.shard_rows,
        "forget_missing": config.forget_missing,
        "rank": env.rank,
        "world_size": env.world_size,
        "gather": partial(gathered, world_size=env.world_size),
        "first_rank_work": partial(first_rank_work, env),
    }
    if not (manifest.has_images or manifest.has_texts):
        raise UserError(
            f"{workspace / 'prepared'}: the recipe maps neither items.image nor items.text, so there "
            f"is nothing to embed; train without modalities"
        )

    with first_rank_work(env) as is_first:
        if is_first and manifest.has_images and not config.forget_missing:
            check_pictures(workspace, manifest)
        if is_first and config.retrain:
            forget_outdated(workspace, trained_on(manifest))

    # 2. Pictures: one network, two outputs.
    if manifest.has_images:
        with stage("image encoder") as encoder_stage:
            encoder, revision = image_encoder(workspace, manifest, image, config.seed, env)
            encoder_stage.done(
                f"{image.backbone}, weights {image.weights}, pretext {image.pretext_epochs} epochs, "
                f"{image.semantic_head} and {image.style_head} heads"
                f"{provenance(workspace, 'image', trained_on(manifest))}"
            )
        with stage("encode pictures") as encoding:
            begun = time.perf_counter()
            extraction = extract_features(
                ImageExtractor(
                    encoder,
                    image_root=Path(str(manifest.image_root)),
                    size=image.size,
                    batch_size=image.batch_size,
                    num_threads=env.threads,
                ),
                encoder_name=f"{image.backbone}/{image.semantic_head}+{image.style_head}",
                revision=revision,
                scaling="mean 0, deviation 1 over a sample of items",
                **shared,
            )
            encoding.done(described(extraction, time.perf_counter() - begun))
        if extraction.num_lost:
            say(lost_pictures(extraction.num_lost, config.forget_missing))
        if any(reason != "none" for t in extraction.tables.values() for reason in t.masked):
            say(f"pictures that cannot be used: {workspace / 'features' / UNUSABLE_FILE}")

    # 3. Texts.
    if manifest.has_texts:
        with stage("text encoder") as encoder_stage:
            text_model, revision = text_encoder(workspace, manifest, text, config.seed, env)
            encoder_stage.done(f"{text.path}{provenance(workspace, 'text', trained_on(manifest))}")
        with stage("encode texts") as encoding:
            begun = time.perf_counter()
            extraction = extract_features(
                TextExtractor(text_model),
                encoder_name=text.path,
                revision=revision,
                scaling="unit length, then mean 0 and mean deviation 1 over a sample of items",
                **shared,
            )
            encoding.done(described(extraction, time.perf_counter() - begun))

    # 4. What came out, and what to do next.
    say(f"results: {workspace / 'features'}")
    say(f"next: {next_command('train', place.workspace)}")
    say(f"next: {next_command('neighbours', place.workspace)}")
    stop()


def lost_pictures(count: int, forgotten: bool) -> str:
    """Return a sentence on items that had a vector and whose picture is gone or broken."""
    if forgotten:
        return (
            f"{count:,} items had a vector and are masked, their pictures being gone or unreadable"
        )
    return (
        f"{count:,} items keep their vectors though their pictures are gone or unreadable "
        f"(forget_missing=true masks them)"
    )


def described(extraction: Extraction, seconds: float) -> str:
    """Return counts of finished tables for the stage's line."""
    parts = []
    for name, table in extraction.tables.items():
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in table.masked.items())
        parts.append(f"{name} {table.count:,} x {table.dim} (masked: {reasons or 'none'})")
    encoded = extraction.num_encoded
    there = [
        f"{count:,} {what}"
        for count, what in (
            (extraction.num_kept, "kept"),
            (extraction.num_reused, "reused"),
        )
        if count
    ]
    parts.append(", ".join([f"{encoded:,} encoded, {encoded / seconds:,.0f} items/s", *there]))
    return "; ".join(parts)


def trained_on(manifest: Manifest) -> dict[str, str | None]:
    """Return checksums of what encoders are trained on."""
    return {name: manifest.checksums.get(name) for name in ("items.parquet", "pairs.parquet")}


def provenance(workspace: Path, encoder: str, now: dict[str, str | None]) -> str:
    """Return what the stage's line says of an encoder that was trained on other data than today's."""
    made = read_config(workspace / "encoders" / encoder) or {}
    if made.get("trained_on") == now:
        return ""
    return ", kept as trained on earlier data (retrain=true trains it anew)"


def forget_outdated(workspace: Path, now: dict[str, str | None]) -> None:
    """Have encoders that were trained on other data made anew; the old ones lie there until then."""
    for file in (workspace / "encoders").glob("*/config.json"):
        if (read_config(file.parent) or {}).get("trained_on") != now:
            file.unlink()


def image_encoder(
    workspace: Path, manifest: Manifest, config: ImageConfig, seed: int, env: Env
) -> tuple[ImageEncoder, str]:
    """Return the encoder and its fingerprint: an unchanged one is loaded, else it is made here."""
    folder = workspace / "encoders" / "image"
    weights = local_path(config.weights, "encoder.image.weights")
    wanted = {
        "settings": dataclasses.asdict(config),
        "weights": fingerprint(weights) if weights.is_file() else config.weights,
        "trained_on": trained_on(manifest),
        "seed": seed,
    }
    # An untrained network begins with the same weights every time: a killed run that had not ended
    # its first pass is repeated, not replaced by another.
    torch.manual_seed(seed)
    encoder = ImageEncoder(
        backbone=config.backbone,
        weights=config.weights,
        semantic_head=config.semantic_head,
        style_head=config.style_head,
        style_blocks=config.style_blocks,
        style_dim=config.style_dim,
        style_steps=config.style_steps,
        say=say,
    )
    encoder.to(env.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if not agreed(unchanged(folder, wanted), env):
        make_image_encoder(workspace, manifest, encoder, config, wanted, seed, env)
    encoder.load(folder)
    encoder.eval()
    return encoder, fingerprint(folder / "config.json", folder / "weights.safetensors")


def make_image_encoder(
    workspace: Path,
    manifest: Manifest,
    encoder: ImageEncoder,
    config: ImageConfig,
    wanted: dict[str, Any],
    seed: int,
    env: Env,
) -> None:
    """Train the network on tags, fit the heads, measure both on unseen pictures, and save."""
    folder = workspace / "encoders" / "image"
    # 1. Pictures to learn from, and pictures that no training sees.
    catalogue = Catalogue(workspace / "prepared")
    rows = sample_rows(catalogue.num_rows, config.pretext_max_pictures, seed)
    labels = {name: catalogue.column(name, rows) for name in ("item_id", "artist", "content")}
    names = [c or i for c, i in zip(labels["content"], labels["item_id"], strict=True)]
    unseen_hand = np.isin(np.array(labels["artist"], dtype=object), config.held_out_artists)
    unseen = held_out(names, config.held_out_tenths)
    if config.held_out_artists and not unseen_hand.any():
        raise UserError(
            f"encoder.image.held_out_artists={config.held_out_artists}: no picture is by any of "
            f"them; check the column items.artist of the recipe"
        )
    learned = np.random.default_rng(seed).permutation(np.flatnonzero(~unseen & ~unseen_hand))
    measured = np.flatnonzero(unseen)
    measured = measured[drawn(len(measured), _MEASURED_PICTURES, seed)]

    def pictures(picked: np.ndarray) -> Pictures:
        return load_usable(catalogue, Path(str(manifest.image_root)), rows, picked, config.size)

    # 2. The network learns tags, on all ranks; a killed run goes on where it was.
    beside = folder.with_name(".image.training")
    if config.pretext_epochs:
        train_network(encoder, catalogue, manifest, rows, learned, beside, config, wanted, env)
    encoder.eval()

    # 3. Heads and scaling, on a sample of the same pictures: every rank takes its share.
    fitted = learned[: config.fit_pictures]
    fit_heads(
        encoder,
        pictures(fitted[env.rank :: env.world_size]),
        num_views=config.fit_views,
        batch_size=config.batch_size,
        seed=seed,
    )

    # 4. What the encoder knows of unseen pictures, and everything saved at once.
    with first_rank_work(env) as is_first:
        if is_first:
            known = {}
            if len(measured):
                known = measure(
                    encoder,
                    pictures(measured),
                    held_out_artists=config.held_out_artists,
                    batch_size=config.batch_size,
                )
                print_agreement(known, title="image encoder on contents it has not seen")
            with new_folder(folder) as made:
                encoder.save(made, wanted)
                write_json(made / "evaluation.json", known)
            shutil.rmtree(beside, ignore_errors=True)


def train_network(
    encoder: ImageEncoder,
    catalogue: Catalogue,
    manifest: Manifest,
    rows: list[int],
    learned: np.ndarray,
    folder: Path,
    config: ImageConfig,
    wanted: dict[str, Any],
    env: Env,
) -> None:
    """Train the network on the tags of `rows[learned]`, on all ranks."""
    learned = np.sort(learned)
    root = Path(str(manifest.image_root))
    cache = PictureCache(folder, len(learned), config.size)
    with first_rank_work(env) as is_first:
        if is_first:
            cache.create()
    pixels = cache.open()
    usable = np.zeros(len(learned), dtype=bool)
    mine = np.array_split(np.arange(len(learned)), env.world_size)[env.rank]
    for piece in np.array_split(mine, max(1, len(mine) // 512)):
        names = catalogue.column("image", [rows[i] for i in learned[piece]])
        pixels[piece], usable[piece] = decoded(root, names, config.size)
    kept = np.flatnonzero(np.logical_or.reduce(gathered(usable, env.world_size)))
    tagged = [rows[i] for i in learned[kept]]
    targets, tags = tag_targets(catalogue.column("tags", tagged), config.pretext_min_count)
    contents = catalogue.column("content", tagged)
    groups = [c or f"row {row}" for c, row in zip(contents, tagged, strict=True)]
    say(f"tag pretext: {len(kept):,} pictures, {len(tags)} tags, {env.world_size} rank(s)")
    train_on_tags(
        encoder,
        TagData(
            pixels=pixels,
            rows=kept,
            targets=targets,
            tags=tags,
            groups=np.unique(groups, return_inverse=True)[1],
        ),
        PretextConfig(
            epochs=config.pretext_epochs,
            patience=config.pretext_patience,
            learning_rate=config.pretext_learning_rate,
            batch_size=config.pretext_batch_size,
            seed=int(wanted["seed"]),
        ),
        device=env.device,
        folder=folder,
        stamp=wanted,
        say=say,
        synchronise=synchronise,
    )


def unchanged(folder: Path, wanted: dict[str, Any]) -> bool:
    """Return whether an encoder made with the same settings lies in `folder`.

    What it was trained on does not count: with new items, vectors of the old ones stay comparable
    only while the encoder stays (retrain=true, see `forget_outdated`).
    """
    made = read_config(folder)
    return made is not None and made | {"trained_on": None} == as_json(
        wanted | {"trained_on": None}
    )


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return what the encoder in `folder` was made with; None where there is none."""
    put_back(folder)
    file = folder / "config.json"
    return read_json(file, f"delete {folder} and {EMBED_AGAIN}") if file.is_file() else None


def as_json(values: dict[str, Any]) -> Any:
    """Return what is read back when `values` were written: tuples as lists, for comparing."""
    return json.loads(json.dumps(values))


def agreed(answer: bool, env: Env) -> bool:
    """Return rank 0's answer on every rank: files may change between two ranks' looks."""
    answers = [answer]
    if env.world_size > 1:
        dist.broadcast_object_list(answers, src=0)
    return answers[0]


def decoded(root: Path, names: list[str | None], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (uint8 [N, S, S, 3], bool [N] usable) of picture files."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        pixels, reasons = load_pictures(pool, root.resolve(), names, size)
    return pixels, np.array([reason is None for reason in reasons], dtype=bool)


def load_usable(
    catalogue: Catalogue, root: Path, rows: list[int], picked: np.ndarray, size: int
) -> Pictures:
    """Return the pictures of `rows[picked]` that can be used, with artists and contents."""
    chosen = [rows[i] for i in np.sort(picked)]
    columns = {name: catalogue.column(name, chosen) for name in ("image", "artist", "content")}
    pixels, usable = decoded(root, columns["image"], size)
    good = np.flatnonzero(usable)
    return Pictures(
        pixels=pixels[good],
        artists=[columns["artist"][i] for i in good],
        contents=[columns["content"][i] for i in good],
    )


def text_encoder(
    workspace: Path, manifest: Manifest, config: TextConfig, seed: int, env: Env
) -> tuple[TextEncoder, str]:
    """Return the encoder and its fingerprint: an unchanged one is loaded, else it is made here."""
    folder = workspace / "encoders" / "text"
    wanted = {
        "settings": dataclasses.asdict(config),
        "trained_on": trained_on(manifest),
        "seed": seed,
    }
    if not agreed(unchanged(folder, wanted), env):
        make_text_encoder(workspace, manifest, config, seed, env, wanted)
    check_listing(folder, f"delete {folder} and {EMBED_AGAIN}")
    with reading(folder / "model", f"delete {folder} and {EMBED_AGAIN}"):
        model = load_text_encoder(str(folder / "model"), config.max_tokens, env.device)
    encoder = TextEncoder(model, config.batch_size)
    encoder.load_scaling(folder)
    return encoder, fingerprint(folder / "config.json", folder / "scaling.npz", folder / "model")


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
    uses_pairs = manifest.has_pairs and (config.epochs > 0 or config.max_queries > 0)
    pairs = read_pairs(workspace / "prepared") if uses_pairs else nothing
    split = split_by_entity(pairs, config.held_out_tenths)
    tasks = retrieval_tasks(split.held_out, config.max_queries)
    stamp = wanted
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
        if plan.batch_size != config.pair_batch_size:
            say(
                f"note: {env.world_size} ranks do not share {config.pair_batch_size} pairs equally; a "
                f"step takes {plan.batch_size} (encoder.text.pair_batch_size)"
            )
            # A training cut off at batches of another size has taken other pairs so far.
            stamp = stamp | {"pairs_a_step": plan.batch_size}
    elif len(pairs) and config.epochs:
        say(
            f"the text encoder is not trained: {why_no_batches(manifest, config, pairs, split.train)}"
        )
    if config.path == "scratch" and not len(plan):
        raise UserError(
            f"encoder.text.path=scratch: a text encoder is trained on text pairs, and "
            f"{why_no_batches(manifest, config, pairs, split.train)}; or give a folder or hub name"
        )

    # 2. The model as it comes, the same on every rank.
    training = workspace / "encoders" / ".text.training"
    catalogue = Catalogue(workspace / "prepared")
    rows = sample_rows(catalogue.num_rows, 20_000, seed)
    item_ids, texts = (catalogue.column(name, rows) for name in ("item_id", "text"))
    sample = [text for text in texts if text]
    with first_rank_work(env) as is_first:
        if is_first and read_config(training) != as_json(stamp):
            with new_folder(training) as beside:
                seen = readable(item_ids, texts, split, config.held_out_tenths)
                untrained_text_model(config, split.train, seen, seed, env, beside)
                write_json(beside / "config.json", stamp)
    with reading(training / "untrained", f"delete {training} and {EMBED_AGAIN}"):
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
            places = drawn(len(sample), _SCALING_TEXTS, seed)
            encoder.fit_scaling([sample[place] for place in places])
            with new_folder(workspace / "encoders" / "text") as beside:
                encoder.save(beside)
                if shown:
                    write_retrieval(beside, shown, split.counts())
                write_json(beside / "config.json", wanted)
            show_retrieval(shown)
            shutil.rmtree(training)


def why_no_batches(manifest: Manifest, config: TextConfig, pairs: Pairs, train: Pairs) -> str:
    """Return why text pairs make no batch, and what to change."""
    if not manifest.has_pairs:
        return "the data has none; map pairs in the recipe and run launch/prepare.py again"
    if config.epochs < 1:
        return f"encoder.text.epochs={config.epochs}; set it to 1 or more"
    if not any(config.perspective_weights.get(name, 0.0) for name in train.perspective):
        return (
            f"encoder.text.perspective_weights={config.perspective_weights} leave out all "
            f"{len(train):,} to train on; give their perspectives weights above 0"
        )
    return (
        f"{len(train):,} of {len(pairs):,}, of {len(set(train.entity)):,} entities, make no batch: a "
        f"batch is two pairs or more of one perspective and language, of different entities and "
        f"texts. Give pairs of more entities (pairs.entity says what a pair speaks of), or hold "
        f"fewer out (encoder.text.held_out_tenths={config.held_out_tenths})"
    )


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


@hydra_job("embed", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point."""
    run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
