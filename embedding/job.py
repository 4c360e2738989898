"""Extraction: every item's vectors, in shards, over any number of ranks, restartable.

What enters: prepared/items.parquet and an encoder. What leaves: features/<name>/. Called by
launch/embed.py. A shard is written beside and renamed; one that is finished, of the same encoder and
the same items, is skipped on a re-run. Memory does not grow with the number of items.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from embedding.catalogue import Catalogue
from embedding.pictures import load_pictures
from embedding.store import FeatureManifest, ShardSpec, write_feature_manifest, write_shard
from recsys.schema import Manifest, sha256_of, write_json


class Extractor(Protocol):
    """Turns item rows into vectors of one or more feature tables."""

    names: list[str]
    columns: list[str]

    def extract(self, rows: dict[str, list[Any]]) -> tuple[dict[str, np.ndarray], list[str | None]]:
        """Return ({name: float16 [N, D]}, reasons [N]); a row with a reason is masked."""
        ...


class ImageExtractor:
    """Semantic and style vectors of pictures, in one pass."""

    columns = ["image"]

    def __init__(self, encoder: Any, *, image_root: Path, size: int, batch_size: int, threads: int):
        """Args: encoder: an ImageEncoder; threads: that decode pictures."""
        self.names = ["semantic", "style"]
        self.encoder = encoder
        self.image_root = image_root.resolve()
        self.size = size
        self.batch_size = batch_size
        self.pool = ThreadPoolExecutor(threads)

    def extract(self, rows: dict[str, list[Any]]) -> tuple[dict[str, np.ndarray], list[str | None]]:
        """Decode and encode batch by batch; a picture that cannot be used is masked."""
        images = rows["image"]
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.names}
        reasons: list[str | None] = []
        for at in range(0, len(images), self.batch_size):
            pixels, batch_reasons = load_pictures(
                self.pool, self.image_root, images[at : at + self.batch_size], self.size
            )
            good = np.array([reason is None for reason in batch_reasons])
            encoded = self.encoder.encode(pixels)
            for name in self.names:
                vectors = encoded[name].numpy()
                vectors[~good] = 0
                parts[name].append(vectors.astype(np.float16))
            reasons += batch_reasons
        return {name: np.concatenate(parts[name]) for name in self.names}, reasons


class TextExtractor:
    """Text vectors of items."""

    names = ["text"]
    columns = ["text"]

    def __init__(self, encoder: Any):
        """Args: encoder: a TextEncoder."""
        self.encoder = encoder

    def extract(self, rows: dict[str, list[Any]]) -> tuple[dict[str, np.ndarray], list[str | None]]:
        """Encode texts; an item without one is masked."""
        texts = rows["text"]
        reasons: list[str | None] = [None if text else "none" for text in texts]
        vectors = self.encoder.encode([text or "" for text in texts]).astype(np.float16)
        vectors[[reason is not None for reason in reasons]] = 0
        return {"text": vectors}, reasons


def extract_features(
    extractor: Extractor,
    *,
    workspace: Path,
    manifest: Manifest,
    encoder_name: str,
    revision: str,
    scaling: str,
    shard_rows: int,
    rank: int,
    world_size: int,
    barrier: Callable[[], None],
) -> dict[str, FeatureManifest]:
    """Write the extractor's tables below `<workspace>/features/`; all ranks call this.

    Shards go round robin over ranks. Returns the manifests on rank 0, {} elsewhere.

    Args:
        revision: fingerprint of the encoder; finished shards of another one are made anew.
        barrier: waits for all ranks.

    Raises:
        ValueError: items.parquet is missing or does not have the manifest's rows.
    """
    catalogue = Catalogue(workspace / "prepared")
    if catalogue.num_rows != manifest.num_item_rows:
        raise ValueError(
            f"{catalogue.path}: has {catalogue.num_rows:,} rows, the manifest says "
            f"{manifest.num_item_rows:,}; run launch/prepare.py again"
        )
    folders = {name: workspace / "features" / name for name in extractor.names}
    stamp = {
        "revision": revision,
        # Ids, pictures' names and texts: whatever of them changes, the vectors are made anew.
        "items": manifest.checksums["items.parquet"],
        "shard_rows": shard_rows,
    }
    if rank == 0:
        for folder in folders.values():
            _open_folder(folder, stamp)
    barrier()
    starts = range(0, catalogue.num_rows, shard_rows)
    mine = [i for i in range(len(starts)) if i % world_size == rank]
    bar = tqdm(
        mine, desc="+".join(extractor.names), unit="shard", disable=None if rank == 0 else True
    )
    for index in bar:
        if all(_finished(folder, index) for folder in folders.values()):
            continue
        start = starts[index]
        stop = min(start + shard_rows, catalogue.num_rows)
        table = catalogue.read(start, stop, extractor.columns)
        rows = {name: table.column(name).to_pylist() for name in extractor.columns}
        vectors, reasons = extractor.extract(rows)
        counts = Counter(reason for reason in reasons if reason)
        for name, folder in folders.items():
            shard = write_shard(folder, index, start, vectors[name])
            entry = {**dataclasses.asdict(shard), "masked": counts, "dim": vectors[name].shape[1]}
            write_json(folder / f".shard-{index:05d}.json", entry)
    barrier()
    if rank != 0:
        return {}
    manifests = {}
    for name, folder in folders.items():
        entries = [_entry(folder, index) for index in range(len(starts))]
        masked: Counter[str] = Counter()
        for entry in entries:
            masked.update(entry["masked"])
        manifests[name] = FeatureManifest(
            name=name,
            encoder=encoder_name,
            revision=revision,
            dim=entries[0]["dim"],
            count=catalogue.num_rows,
            items_checksum=manifest.items_checksum,
            num_masked=sum(masked.values()),
            masked=dict(sorted(masked.items())),
            scaling=scaling,
            shards=tuple(
                ShardSpec(**{f.name: e[f.name] for f in dataclasses.fields(ShardSpec)})
                for e in entries
            ),
        )
        write_feature_manifest(folder, manifests[name])
    return manifests


def _open_folder(folder: Path, stamp: dict[str, Any]) -> None:
    """Keep the finished shards of the same encoder and items, clear those of another."""
    file = folder / ".stamp.json"
    if folder.is_dir() and not (file.is_file() and json.loads(file.read_text()) == stamp):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Complete again only when the last shard is there.
    (folder / "manifest.json").unlink(missing_ok=True)
    write_json(file, stamp)


def _finished(folder: Path, index: int) -> bool:
    entry_file = folder / f".shard-{index:05d}.json"
    shard = folder / f"shard-{index:05d}.npy"
    if not (entry_file.is_file() and shard.is_file()):
        return False
    return _entry(folder, index)["sha256"] == sha256_of(shard)


def _entry(folder: Path, index: int) -> dict[str, Any]:
    return json.loads((folder / f".shard-{index:05d}.json").read_text())


def fingerprint(*parts: Any) -> str:
    """Return a short hash over settings and files (paths are hashed by content)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                digest.update(f"{os.path.relpath(file, part)}:{sha256_of(file)};".encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def sample_rows(num_rows: int, count: int, seed: int) -> list[int]:
    """Return up to `count` item rows (never row 0), seeded, ascending."""
    pool = np.random.default_rng(seed).permutation(np.arange(1, num_rows))[:count]
    return sorted(int(row) for row in pool)


def batched(values: np.ndarray, size: int) -> Iterable[np.ndarray]:
    """Yield consecutive slices of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
