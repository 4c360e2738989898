"""The feature store: one fp16 vector per item row, in checksummed shards.

    features/<name>/manifest.json           encoder, dim, count, shards, whose items
    features/<name>/shard-00000.npy         float16 [rows, dim]
    features/<name>/shard-00000.rows.npy    ROW [rows]: what each row was made of
    features/<name>/.shard-00000.json       the shard's entry: it is finished

Written by embedding/features/extraction.py, beside and exchanged when whole (replacement.py); read by
training (`open_features`). A row without a picture or text is masked: all zero, and counted.
"""

import bisect
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from embedding.image.pictures import REASONS
from recsys.errors import UserError
from recsys.files import (
    EMBED_AGAIN,
    put_back,
    read_array,
    reading,
    sha256_of,
    write_array,
    write_json,
)
from recsys.record_types import misfits
from recsys.runtime.hosts import once_a_host
from recsys.schema import Manifest, check_inside

STORE_VERSION = 2

ROW = np.dtype([("high", "<u8"), ("low", "<u8"), ("masked", "u1")])
"""128 bits of hash over what a row's vector is made of (0 where there is nothing), and why the row is
masked: 0 where it is not, else 1 + the place of the reason in pictures.REASONS. 17 bytes."""

MASK_CODES = {reason: 1 + place for place, reason in enumerate(REASONS)}
"""Codes of ROW for the reasons of a mask; `none` is 1, larger codes are of named pictures."""


@dataclass(frozen=True, kw_only=True)
class ShardSpec:
    """One file of a feature table."""

    file: str
    rows_file: str
    """Content hashes and masks of the rows, ROW [rows]."""
    start_row: int
    end_row: int
    sha256: str
    """SHA-256 of `file`, hex."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry(ShardSpec):
    """A finished shard: written last, when its files are whole."""

    dim: int
    masked: dict[str, int]
    """Masked rows by reason."""
    size_bytes: int
    """Size of `file`."""
    mtime_ns: int
    """Modification time of `file`; while it is unchanged, the file is not read to check it."""


@dataclass(frozen=True, kw_only=True)
class FeatureManifest:
    """Description of a feature table."""

    name: str
    """`semantic`, `style`, `text`, or the name of own vectors (items.vectors)."""
    encoder: str
    """Encoder of the vectors, for people."""
    revision: str
    """Fingerprint of encoder weights and settings; shards of another revision are made anew."""
    dim: int
    """Width of a vector."""
    count: int
    """Rows, unknown row 0 included."""
    items_checksum: str
    """Checksum of the item ids in row order (Manifest.items_checksum)."""
    made_of: str = ""
    """Checksum of the texts or picture names in row order (Manifest.column_checksums); "": not known."""
    made_of_before: str = ""
    """Of own vectors that grew: `made_of` of the table that vectors were added to."""
    num_masked: int = 0
    """Rows without a vector, row 0 included."""
    masked: dict[str, int] = field(default_factory=dict)
    """Masked rows by reason."""
    scaling: str = ""
    """Scaling of the vectors."""
    scale: float | None = None
    """Number by which own vectors were multiplied; null: encoded vectors, or not known."""
    row_hash: str = ""
    """Definition of the hashes in the shards' `rows_file`, in words."""
    shards: tuple[ShardSpec, ...] = ()
    """In row order."""
    dtype: str = "float16"
    version: int = STORE_VERSION

    @property
    def identity(self) -> str:
        """Hash of all vectors, in row order: equal, a run reads what it was trained on."""
        digests = "\n".join(shard.sha256 for shard in self.shards)
        return hashlib.sha256(f"{self.dim}\n{digests}".encode()).hexdigest()[:16]


def write_feature_manifest(folder: Path, manifest: FeatureManifest) -> None:
    """Write manifest.json; its presence says that the table is complete."""
    write_json(folder / "manifest.json", dataclasses.asdict(manifest))


def read_feature_manifest(folder: Path) -> FeatureManifest:
    """Read manifest.json.

    Raises:
        UserError: missing (says to run embed), broken, or of another version.
    """
    path = folder / "manifest.json"
    put_back(folder)
    if not path.is_file():
        raise UserError(
            f"{path}: no features here; run launch/embed.py with the same data= and workspace= "
            f"(or leave {folder.name!r} out of model.modalities)"
        )
    with reading(path, EMBED_AGAIN):
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != STORE_VERSION:
            raise UserError(f"version {raw['version']}, expected {STORE_VERSION}")
        raw["shards"] = tuple(ShardSpec(**shard) for shard in raw["shards"])
        manifest = FeatureManifest(**raw)
        if problems := misfits(manifest):
            raise UserError("; ".join(problems)[:400])
        for shard in manifest.shards:
            check_inside(shard.file)
            check_inside(shard.rows_file)
    return manifest


def masked_counts(rows: np.ndarray) -> dict[str, int]:
    """Return how many of rows ROW [N] are masked, by reason."""
    counts = np.bincount(rows["masked"], minlength=1 + len(REASONS))[1:].tolist()
    return {reason: count for reason, count in zip(REASONS, counts, strict=True) if count}


def write_shard(
    folder: Path, index: int, start_row: int, vectors: np.ndarray, rows: np.ndarray
) -> ShardEntry:
    """Write one shard, its entry last; return the entry.

    A shard that is there has no entry meanwhile, so that rows of the one never meet vectors of the other.

    Args:
        vectors: [rows, dim].
        rows: dtype ROW, [rows].

    Raises:
        UserError: a vector is not finite.
    """
    name = f"shard-{index:05d}"
    if not np.isfinite(vectors).all():
        bad = start_row + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise UserError(
            f"{folder}: the encoder made a vector of inf or nan for item row {bad:,}, too large for "
            f"float16 or from broken weights; train it anew (retrain=true)"
        )
    entry_file(folder, index).unlink(missing_ok=True)
    write_array(folder / f"{name}.rows.npy", rows.astype(ROW, copy=False))
    digest = write_array(folder / f"{name}.npy", np.ascontiguousarray(vectors, dtype=np.float16))
    stat = (folder / f"{name}.npy").stat()
    entry = ShardEntry(
        file=f"{name}.npy",
        rows_file=f"{name}.rows.npy",
        start_row=start_row,
        end_row=start_row + len(vectors),
        sha256=digest,
        dim=vectors.shape[1],
        masked=masked_counts(rows),
        size_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
    )
    write_json(entry_file(folder, index), dataclasses.asdict(entry))
    return entry


def entry_file(folder: Path, index: int) -> Path:
    """Return the path of a shard's entry."""
    return folder / f".shard-{index:05d}.json"


def finished_shard(folder: Path, index: int) -> ShardEntry | None:
    """Return the entry of a shard whose files are whole, else None.

    Size and time of change tell: files are renamed into place when they are whole, and reading
    terabytes at every start would find no more than a failing disk (`FeatureTable.verify` does). A
    file of another time, as in a copied workspace, is compared with its sha256.
    """
    try:
        raw = json.loads(entry_file(folder, index).read_text(encoding="utf-8"))
        entry = ShardEntry(**raw)
        if misfits(entry):
            return None
        check_inside(entry.file)
        check_inside(entry.rows_file)
        stat = (folder / entry.file).stat()
        is_there = (folder / entry.rows_file).is_file()
    except (FileNotFoundError, ValueError, TypeError):  # ValueError: no JSON, or a path out of here
        return None
    if not is_there or stat.st_size != entry.size_bytes:
        return None
    if stat.st_mtime_ns == entry.mtime_ns:
        return entry
    if sha256_of(folder / entry.file) != entry.sha256:
        return None
    entry = dataclasses.replace(entry, mtime_ns=stat.st_mtime_ns)
    write_json(entry_file(folder, index), dataclasses.asdict(entry))
    return entry


def spec_of(entry: ShardEntry) -> ShardSpec:
    """Return what the manifest says of a finished shard."""
    return ShardSpec(**{f.name: getattr(entry, f.name) for f in dataclasses.fields(ShardSpec)})


class FeatureTable:
    """A complete table of vectors; shards are memory-mapped when they are read."""

    def __init__(self, folder: Path, manifest: FeatureManifest | None = None):
        """Open the table; without its manifest, read that and check every shard's file.

        Args:
            manifest: of a table that another process of this host has opened and checked.
        """
        self.folder = folder
        self.manifest = read_feature_manifest(folder) if manifest is None else manifest
        self.name = self.manifest.name
        self.dim = self.manifest.dim
        self.num_rows = self.manifest.count
        self._starts = [shard.start_row for shard in self.manifest.shards]
        # A process may hold some 65,000 maps, fewer than a large table has shards.
        self._open = lru_cache(maxsize=64)(self._map)
        if manifest is None:
            self._check_shards()

    def _check_shards(self) -> None:
        """Raise UserError unless every shard is there with its shape, right after the one before."""
        expected = 0
        for index, shard in enumerate(self.manifest.shards):
            values = self._map(index)
            shape = (shard.end_row - shard.start_row, self.dim)
            if shard.start_row != expected or values.shape != shape or values.dtype != np.float16:
                raise UserError(
                    f"{self.folder / shard.file}: holds {values.dtype} {values.shape} from row "
                    f"{shard.start_row}, expected float16 {shape} from row {expected}; run embed again"
                )
            expected = shard.end_row
        if expected != self.num_rows:
            raise UserError(
                f"{self.folder}: shards end at row {expected}, the manifest counts {self.num_rows}; run "
                f"embed again"
            )

    def _map(self, index: int) -> np.ndarray:
        """Return float16 [rows, dim] of a shard, memory-mapped."""
        return read_array(self.folder / self.manifest.shards[index].file, EMBED_AGAIN, mmap=True)

    def verify(self) -> None:
        """Compare every shard with its sha256, and look for vectors that are not finite.

        Raises:
            UserError: a shard was changed after it was written, or holds inf or nan.
        """
        for index, shard in enumerate(self.manifest.shards):
            bad = np.flatnonzero(~np.isfinite(self._map(index)).all(axis=1))
            if len(bad):
                raise UserError(
                    f"{self.folder / shard.file}: {len(bad):,} vectors hold inf or nan, first at "
                    f"item row {shard.start_row + int(bad[0]):,}; run launch/embed.py again"
                )
            if sha256_of(self.folder / shard.file) != shard.sha256:
                raise UserError(
                    f"{self.folder / shard.file}: changed since it was written (sha256 differs from "
                    f"the manifest's); run launch/embed.py again"
                )

    def has_vector(self, item_row_N: np.ndarray | None = None) -> np.ndarray:
        """Return bool [N]: whether each of some item rows has a vector, read from the masks alone.

        Args:
            item_row_N: int [N], in any order; None: every row of the table, [num_rows].

        Raises:
            DamagedFileError: a file of masks is missing or broken.
        """
        wanted_N = np.arange(self.num_rows) if item_row_N is None else np.asarray(item_row_N)
        shard_N = np.searchsorted(self._starts, wanted_N, side="right") - 1
        found_N = np.zeros(len(wanted_N), dtype=bool)
        for index in np.unique(shard_N):
            shard = self.manifest.shards[index]
            rows = read_array(self.folder / shard.rows_file, EMBED_AGAIN, mmap=True)
            at = np.flatnonzero(shard_N == index)
            found_N[at] = rows["masked"][wanted_N[at] - shard.start_row] == 0
        return found_N

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) as float16 [stop - start, dim]; a masked row is all zero."""
        parts = []
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] < stop:
            first = self._starts[index]
            parts.append(self._open(index)[max(start - first, 0) : stop - first])
            index += 1
        return np.concatenate(parts) if len(parts) != 1 else parts[0]


VERIFY_BYTES = 1 << 30
"""Tables up to this size are checked against their sha256 when they are opened for training."""


def open_features(
    workspace: Path,
    names: list[str],
    manifest: Manifest,
    say: Callable[[str], None] = print,
) -> dict[str, FeatureTable]:
    """Open feature tables by name; all ranks call this, and the first of each host reads for the others.

    It looks at every file, and compares small tables with their sha256 (`VERIFY_BYTES`).

    Args:
        manifest: of the prepared data whose items, texts and pictures the vectors must be of.
        say: takes a line on every table that does not know its texts or pictures (one of earlier
            versions); today's are taken for them.

    Raises:
        UserError: on every rank: a table is missing, broken, or of other items, texts or pictures.
    """
    folders = {name: workspace / "features" / name for name in names}

    def checked() -> dict[str, FeatureManifest]:
        tables = {name: FeatureTable(folder) for name, folder in folders.items()}
        for table in tables.values():
            _check_source(table, manifest, say)
            if 2 * table.num_rows * table.dim <= VERIFY_BYTES:
                table.verify()
        return {name: table.manifest for name, table in tables.items()}

    manifests = once_a_host(checked)
    return {name: FeatureTable(folder, manifests[name]) for name, folder in folders.items()}


def _check_source(table: FeatureTable, manifest: Manifest, say: Callable[[str], None]) -> None:
    """Refuse a table that was made for other items, texts or pictures than the prepared data has.

    Raises:
        UserError: names the table and both checksums.
    """
    folder, made = table.folder, table.manifest
    own = manifest.vectors.get(folder.name)
    again = "launch/embed.py again" if own is None else "launch/prepare.py again, which writes them"
    if own is not None and made.made_of_before == own:
        again = "the same launch/prepare.py append=true again, which was stopped before its end"
    if made.items_checksum != manifest.items_checksum or made.count != manifest.num_item_rows:
        raise UserError(
            f"{folder}: made for other items ({made.count:,} rows, checksum "
            f"{made.items_checksum[:12]}); the prepared data has {manifest.num_item_rows:,} rows, "
            f"checksum {manifest.items_checksum[:12]}. Run {again}"
        )
    if own is not None:
        if made.made_of != own:
            raise UserError(
                f"{folder}: other vectors than the prepared data has now (checksum was "
                f"{made.made_of[:12]}, is {own[:12]}). Run {again}"
            )
        return
    column = "text" if folder.name == "text" else "image"
    contents = "texts" if column == "text" else "pictures"
    now = manifest.column_checksums.get(column, "")
    if not made.made_of:
        say(
            f"note: {folder} does not say of which {contents} it was made; today's are taken for "
            f"them (launch/prepare.py and launch/embed.py note it; what has not changed is kept)"
        )
    if made.made_of and now and made.made_of != now:
        raise UserError(
            f"{folder}: made of other {contents} than the "
            f"prepared data has now (checksum of items.{column} was {made.made_of[:12]}, is "
            f"{now[:12]}). Run launch/embed.py again; what has not changed is kept"
        )
