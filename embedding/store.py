"""The feature store: one fp16 vector per item row, in checksummed shards.

    features/<name>/manifest.json       encoder, dim, count, shards, whose items
    features/<name>/shard-00000.npy     float16 [rows, dim]

Written by embedding/job.py, read by training (`open_features`). A row without a picture or text is
masked: all zero, and counted.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recsys.schema import sha256_of, write_json

STORE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """One file of a feature table."""

    file: str
    start_row: int
    end_row: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class FeatureManifest:
    """What is known of a feature table."""

    name: str
    """`semantic`, `style` or `text`."""
    encoder: str
    """What made the vectors, for people."""
    revision: str
    """Fingerprint of encoder weights and settings; shards of another revision are made anew."""
    dim: int
    """Width of a vector."""
    count: int
    """Rows, unknown row 0 included."""
    items_checksum: str
    """Of the item ids in row order (Manifest.items_checksum)."""
    num_masked: int = 0
    """Rows without a vector, row 0 included."""
    masked: dict[str, int] = field(default_factory=dict)
    """Masked rows by reason."""
    scaling: str = ""
    """How the vectors are scaled."""
    shards: tuple[ShardSpec, ...] = ()
    """In row order."""
    dtype: str = "float16"
    version: int = STORE_VERSION


def write_feature_manifest(folder: Path, manifest: FeatureManifest) -> None:
    """Write manifest.json; its presence says that the table is complete."""
    write_json(folder / "manifest.json", dataclasses.asdict(manifest))


def read_feature_manifest(folder: Path) -> FeatureManifest:
    """Read manifest.json.

    Raises:
        ValueError: missing (says to run embed), broken, or of another version.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError(
            f"{path}: no features here; run launch/embed.py with the same data= and workspace= "
            f"(or leave {folder.name!r} out of model.modalities)"
        )
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        raw["shards"] = tuple(ShardSpec(**shard) for shard in raw["shards"])
        manifest = FeatureManifest(**raw)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a feature manifest ({error}); run embed again") from error
    if manifest.version != STORE_VERSION:
        raise ValueError(
            f"{path}: version {manifest.version}, expected {STORE_VERSION}; run embed again"
        )
    return manifest


def write_shard(folder: Path, index: int, start_row: int, vectors: np.ndarray) -> ShardSpec:
    """Write one shard beside and rename it; return its entry. `vectors`: [rows, dim]."""
    name = f"shard-{index:05d}.npy"
    beside = folder / f".{name}.{os.getpid()}"
    with open(beside, "wb") as stream:
        np.save(stream, np.ascontiguousarray(vectors, dtype=np.float16))
    digest = sha256_of(beside)
    os.replace(beside, folder / name)
    return ShardSpec(
        file=name, start_row=start_row, end_row=start_row + len(vectors), sha256=digest
    )


class FeatureTable:
    """A complete table of vectors, memory-mapped."""

    def __init__(self, folder: Path):
        """Open the manifest and check that every shard is there with its shape.

        Raises:
            ValueError: a file is missing, truncated or has another shape.
        """
        self.folder = folder
        self.manifest = read_feature_manifest(folder)
        self.name = self.manifest.name
        self.dim = self.manifest.dim
        self.num_rows = self.manifest.count
        self._shards = []
        expected = 0
        for shard in self.manifest.shards:
            path = folder / shard.file
            shape = (shard.end_row - shard.start_row, self.dim)
            try:
                values = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path}: cannot be read ({error}); run embed again") from error
            if shard.start_row != expected or values.shape != shape or values.dtype != np.float16:
                raise ValueError(
                    f"{path}: holds {values.dtype} {values.shape} from row {shard.start_row}, "
                    f"expected float16 {shape} from row {expected}; run embed again"
                )
            expected = shard.end_row
            self._shards.append(values)
        if expected != self.num_rows:
            raise ValueError(
                f"{folder}: shards end at row {expected}, the manifest counts {self.num_rows}; run "
                f"embed again"
            )

    def verify(self) -> None:
        """Compare every shard with its sha256.

        Raises:
            ValueError: a shard was changed after it was written.
        """
        for shard in self.manifest.shards:
            if sha256_of(self.folder / shard.file) != shard.sha256:
                raise ValueError(
                    f"{self.folder / shard.file}: changed since it was written (sha256 differs from "
                    f"the manifest's); run launch/embed.py again"
                )

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) as float16 [stop - start, dim]; a masked row is all zero."""
        parts = [
            values[max(start - shard.start_row, 0) : stop - shard.start_row]
            for values, shard in zip(self._shards, self.manifest.shards, strict=True)
            if shard.start_row < stop and shard.end_row > start
        ]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]


VERIFY_BYTES = 1 << 30
"""Tables up to this size are checked against their sha256 when they are opened for training."""


def open_features(
    workspace: Path, names: list[str], items_checksum: str, num_rows: int
) -> dict[str, FeatureTable]:
    """Open feature tables by name.

    Args:
        items_checksum: of the prepared items that the vectors must belong to.
        num_rows: item rows of the prepared data.

    Raises:
        ValueError: a table is missing, broken, or was made for other items.
    """
    tables = {}
    for name in names:
        folder = workspace / "features" / name
        table = FeatureTable(folder)
        if table.manifest.items_checksum != items_checksum or table.num_rows != num_rows:
            raise ValueError(
                f"{folder}: made for other items ({table.num_rows:,} rows, checksum "
                f"{table.manifest.items_checksum[:12]}); the prepared data has {num_rows:,} rows, "
                f"checksum {items_checksum[:12]}. Run launch/embed.py again"
            )
        if 2 * table.num_rows * table.dim <= VERIFY_BYTES:
            table.verify()
        tables[name] = table
    return tables
