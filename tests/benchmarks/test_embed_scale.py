"""Extraction keeps the network busy, and its memory does not grow with the items. `make bench`."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from embedding.features.extraction import MadeBy, extract_features
from embedding.features.extractor import Extractor
from embedding.image.config import ImageConfig
from embedding.image.encoder import ImageEncoder
from embedding.image.extractor import ImageExtractor
from embedding.image.heads import fit_heads
from embedding.image.pictures import load_picture
from embedding.image.sample import Pictures
from embedding.text.encoder import TextEncoder, load_text_encoder
from embedding.text.extractor import TextExtractor
from recsys.files import sha256_of
from recsys.runtime.env import Env
from recsys.schema import Manifest, write_manifest

pytestmark = pytest.mark.bench
ROUNDS = 5
LEAST = 0.85
"""Of the bare forward pass on ready tensors."""
MOST_GROWTH_BYTES = 12_000_000
"""Of the peak from 2,000 to 40,000 pictures, whose vectors alone take 23 MB."""


def prepare(workspace: Path, **columns: list) -> Manifest:
    """Write items.parquet with row 0 in groups of 1,024; return its manifest."""
    (workspace / "prepared").mkdir(parents=True)
    file = workspace / "prepared" / "items.parquet"
    num_items = len(next(iter(columns.values())))
    columns = {"item_id": [str(row) for row in range(num_items)], **columns}
    columns |= {name: [None] * num_items for name in ("artist", "content")}
    table = pa.table({name: [None, *values] for name, values in columns.items()})
    pq.write_table(table, file, row_group_size=1024)
    manifest = Manifest(
        name="scale",
        tables=(),
        features=(),
        splits={},
        num_user_rows=0,
        num_item_rows=1 + num_items,
        image_root=str(workspace / "images"),
        has_images="image" in columns,
        has_texts="text" in columns,
        checksums={"items.parquet": sha256_of(file)},
    )
    write_manifest(workspace / "prepared", manifest)
    return manifest


def extract(extractor: Extractor, workspace: Path, manifest: Manifest, revision: str) -> int:
    """Run the extraction job as one rank; return the rows that passed through the network."""
    return extract_features(
        extractor,
        workspace=workspace,
        manifest=manifest,
        made_by=MadeBy(encoder="bench", revision=revision, scaling=""),
        env=Env(rank=0, world_size=1, local_rank=0, local_world_size=1, device=torch.device("cpu")),
    ).num_encoded


def compare(what: str, count: int, runs: dict) -> float:
    """Time the runs in turn; print items/s; return the worse of the ratios of best and median.

    Args:
        count: items of a run.
        runs: {name: function of the round}; `job` is held against `bare`.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(-1, ROUNDS):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(round_number)
            if round_number >= 0:  # The first round warms up.
                seconds[name].append(time.perf_counter() - begun)
    best = {name: count / min(times) for name, times in seconds.items()}
    median = {name: count / float(np.median(times)) for name, times in seconds.items()}
    print(f"\n{what}, {count:,} items, {torch.get_num_threads()} threads, items/s:")
    for name in runs:
        print(f"  {name:24s} best {best[name]:8.1f}, median {median[name]:8.1f}")
    ratios = best["job"] / best["bare"], median["job"] / median["bare"]
    print(f"  job / bare: best {ratios[0]:.3f}, median {ratios[1]:.3f}")
    return min(ratios)


def draw(folder: Path, count: int, kind: str) -> list[str]:
    """Write pictures with edges, shades and grain, as a painting has them; return their names."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    height, width = {"png": (96, 96), "jpg": (192, 128)}[kind]
    y, x = np.mgrid[:height, :width]
    names = []
    for index in range(count):
        pixels = np.zeros((height, width, 3))
        for _ in range(6):
            angle, offset, period = rng.uniform(0, 6.3), rng.uniform(0, 50), rng.uniform(8, 80)
            wave = np.sin((x * np.cos(angle) + y * np.sin(angle) + offset) / period)
            pixels += (
                rng.uniform(-90, 90, 3) * np.where(rng.random() < 0.5, wave, wave > 0)[..., None]
            )
        pixels += 128 + rng.normal(0, 2, pixels.shape)
        name = f"{kind}{index:05d}.{kind}"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        names.append(name)
    return names


@pytest.mark.parametrize(
    ("backbone", "size", "kind", "count", "least"),
    [
        ("squeezenet1_0", 128, "jpg", 256, LEAST),
        ("squeezenet1_0", 128, "png", 256, LEAST),
        ("resnet18", 128, "jpg", 192, LEAST),
        ("resnet18", 224, "jpg", 96, LEAST),
        ("resnet_tiny", 72, "png", 2048, 0),
    ],
)
def test_pictures_pass_at_the_speed_of_the_network(tmp_path, backbone, size, kind, count, least):
    """The job, files to files, against the network on decoded pictures; the tiny one only reports."""
    batch_size = 64
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    config = ImageConfig(backbone=backbone, style_head="gram_pca", size=size, batch_size=batch_size)
    encoder = ImageEncoder(config)
    encoder.to(memory_format=torch.channels_last).eval()
    names = draw(tmp_path / "images", count, kind)
    begun = time.perf_counter()
    pixels = np.stack([load_picture(tmp_path / "images" / name, size) for name in names])
    decode_seconds = time.perf_counter() - begun
    sample = Pictures(
        pixels=pixels[:batch_size], artists=[None] * batch_size, contents=[None] * batch_size
    )
    fit_heads(encoder, sample, num_views=1, batch_size=batch_size, seed=0)
    batches = torch.from_numpy(pixels).split(batch_size)
    manifest = prepare(tmp_path / "w", image=names)
    extractor = ImageExtractor(encoder, config, image_root=tmp_path / "images", num_threads=2)

    @torch.inference_mode()
    def bare(_):
        for batch in batches:
            encoder(batch)

    @torch.inference_mode()
    def body(_):
        for batch in batches:
            encoder.features(batch)

    def job(number):
        assert extract(extractor, tmp_path / "w", manifest, str(number)) == count

    ratio = compare(
        f"{backbone} {size} px, {kind}", count, {"bare": bare, "job": job, "backbone": body}
    )
    print(f"  decoding alone, one thread: {decode_seconds / count * 1e6:.0f} us a picture")
    assert ratio >= least


def test_texts_pass_at_the_speed_of_the_network(minilm, tmp_path):
    """MiniLM, texts of 3 to 120 words, against the network on the same batches of tokens."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = load_text_encoder(minilm, 128, torch.device("cpu"))
    encoder = TextEncoder(model, 64)
    rng = np.random.default_rng(0)
    words = ["castle", "fox", "river", "painted", "light", "in", "the", "of", "old", "sorcerer"]
    texts = [
        " ".join(rng.choice(words, size=int(length)))
        for length in np.clip(rng.lognormal(3.0, 0.8, size=384), 3, 120)
    ]
    encoder.fit_scaling(texts[:64])
    batches = [encoder.tokens([texts[i] for i in at]) for at in encoder.batches(texts)]
    manifest = prepare(tmp_path / "w", text=texts)

    @torch.inference_mode()
    def bare(_):
        for tokens in batches:
            model(dict(tokens))

    def job(number):
        assert extract(TextExtractor(encoder), tmp_path / "w", manifest, str(number)) == len(texts)

    ratio = compare("MiniLM", len(texts), {"bare": bare, "job": job})
    assert ratio >= LEAST


def peak_bytes(workspace: Path, repository: Path, num_items: int) -> int:
    """Return the peak resident memory of launch/embed.py on small pictures.

    Without texts, whose network comes and goes with 50 MB from run to run.
    """
    images = workspace / "images"
    images.mkdir(parents=True)
    for number in range(50):
        Image.new("RGB", (16, 16), (5 * number, 90, 200)).save(images / f"{number}.png")
    prepare(
        workspace,
        image=[f"{row % 50}.png" for row in range(num_items)],
        tags=[[]] * num_items,
    )
    process = subprocess.Popen(
        [
            sys.executable,
            str(repository / "launch" / "embed.py"),
            f"workspace={workspace}",
            "encoder.image.weights=none",
            "encoder.image.size=16",
            "encoder.image.fit_pictures=256",
            "encoder.image.pretext_epochs=0",
            # The sample that heads are fitted and measured on, whose default is larger than 2,000.
            "encoder.image.pretext_max_pictures=1000",
        ],
        # One core: on networks as small as these, threads only wait for each other.
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
    )
    # wait4: the peak of this process, not the highest of all children so far.
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_maxrss * 1024


def test_memory_does_not_grow_with_the_items(tmp_path, repository):
    peaks = {n: peak_bytes(tmp_path / str(n), repository, n) for n in (2_000, 40_000)}
    growth = peaks[40_000] - peaks[2_000]
    print(
        f"\nembed: peak {peaks[2_000] / 1e6:.0f} MB for 2,000 items, "
        f"{peaks[40_000] / 1e6:.0f} MB for 40,000: {growth / 1e6:+.1f} MB"
    )
    assert growth < MOST_GROWTH_BYTES
