"""The feature store: one vector per item row, in fp16 or as codes, in checksummed shards.

    features/<name>/manifest.json           encoder, dim, count, shards, whose items
    features/<name>/shard-00000.npy         stored rows [rows, C], as RowForm describes them (codes.py)
    features/<name>/shard-00000.rows.npy    ROW [rows]: what each row was made of
    features/<name>/.shard-00000.json       the shard's entry: it is finished
    features/<name>/codebooks/              of codes alone (codes.py)

Written by embedding/features/extraction.py, beside and exchanged when whole (replacement.py); read by
training (opening.py). A row without a picture or text is masked: all zero, and counted.
"""

import bisect
import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from embedding.features.codes import CODEBOOKS, Codebooks, RowForm
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
from recsys.schema import check_inside

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
    bits: int = 16
    """Of a stored number: 16 (fp16), or 2 or 4 (codes.py)."""
    codebooks: str = ""
    """Digest of the codebooks; "": fp16."""
    dtype: str = "float16"
    """Of the shards: `float16`, or `uint8` of codes."""
    version: int = STORE_VERSION

    @property
    def identity(self) -> str:
        """Hash of all vectors, in row order: equal, a run reads what it was trained on."""
        digests = "\n".join(shard.sha256 for shard in self.shards)
        content = f"{self.dim}\n{digests}{self.codebooks}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


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
    folder: Path, index: int, start_row: int, stored: np.ndarray, rows: np.ndarray, form: RowForm
) -> ShardEntry:
    """Write one shard, its entry last; return the entry.

    A shard that is there has no entry meanwhile, so that rows of the one never meet vectors of the other.

    Args:
        stored: rows of `form`, [rows, C].
        rows: dtype ROW, [rows].

    Raises:
        UserError: a vector is not finite.
    """
    name = f"shard-{index:05d}"
    if len(infinite := _infinite(stored)):
        bad = start_row + int(infinite[0])
        raise UserError(
            f"{folder}: the encoder made a vector of inf or nan for item row {bad:,}, too large for "
            f"float16 or from broken weights; train it anew (retrain=true)"
        )
    entry_file(folder, index).unlink(missing_ok=True)
    write_array(folder / f"{name}.rows.npy", rows.astype(ROW, copy=False))
    digest = write_array(folder / f"{name}.npy", np.ascontiguousarray(stored))
    stat = (folder / f"{name}.npy").stat()
    entry = ShardEntry(
        file=f"{name}.npy",
        rows_file=f"{name}.rows.npy",
        start_row=start_row,
        end_row=start_row + len(stored),
        sha256=digest,
        dim=form.dim,
        masked=masked_counts(rows),
        size_bytes=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
    )
    write_json(entry_file(folder, index), dataclasses.asdict(entry))
    return entry


def _infinite(stored_NC: np.ndarray) -> np.ndarray:
    """Return the places of stored rows [N, C] that hold inf or nan, ascending; codes never do."""
    if stored_NC.dtype == np.uint8:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(~np.isfinite(stored_NC).all(axis=1))


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
        books = Codebooks.read(folder, EMBED_AGAIN) if self.manifest.codebooks else None
        self.form = RowForm(dim=self.dim, codebooks=books)
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
            shape = (shard.end_row - shard.start_row, self.form.width)
            is_other = values.shape != shape or values.dtype != self.form.dtype
            if shard.start_row != expected or is_other:
                raise UserError(
                    f"{self.folder / shard.file}: holds {values.dtype} {values.shape} from row "
                    f"{shard.start_row}, expected {self.form.dtype} {shape} from row {expected}; run "
                    f"embed again"
                )
            expected = shard.end_row
        if expected != self.num_rows:
            raise UserError(
                f"{self.folder}: shards end at row {expected}, the manifest counts {self.num_rows}; run "
                f"embed again"
            )

    def _map(self, index: int) -> np.ndarray:
        """Return the stored rows [rows, C] of a shard, memory-mapped."""
        return read_array(self.folder / self.manifest.shards[index].file, EMBED_AGAIN, mmap=True)

    def verify(self) -> None:
        """Compare every shard with its sha256, and look for vectors that are not finite.

        Raises:
            UserError: a shard or the codebooks were changed after they were written, or hold inf or nan.
        """
        books = self.form.codebooks
        if books and books.digest != self.manifest.codebooks:
            raise UserError(
                f"{self.folder / CODEBOOKS}: changed since it was written (digest {books.digest}, the "
                f"manifest's is {self.manifest.codebooks}); run launch/embed.py again"
            )
        for index, shard in enumerate(self.manifest.shards):
            bad = _infinite(self._map(index))
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
        # Sorted once: a comparison for every shard would cost rows x shards.
        order_N = np.argsort(shard_N, kind="stable")
        indices, starts = np.unique(shard_N[order_N], return_index=True)
        for index, at in zip(indices, np.split(order_N, starts[1:]), strict=False):
            shard = self.manifest.shards[index]
            rows = read_array(self.folder / shard.rows_file, EMBED_AGAIN, mmap=True)
            found_N[at] = rows["masked"][wanted_N[at] - shard.start_row] == 0
        return found_N

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) as float16 [stop - start, dim]; a masked row is all zero."""
        return self.form.decode(self.stored(start, stop))

    def stored(self, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) as they are stored, [stop - start, C]."""
        parts = []
        index = max(bisect.bisect_right(self._starts, start) - 1, 0)
        while index < len(self._starts) and self._starts[index] < stop:
            first = self._starts[index]
            parts.append(self._open(index)[max(start - first, 0) : stop - first])
            index += 1
        return np.concatenate(parts) if len(parts) != 1 else parts[0]
