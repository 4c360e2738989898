"""Extraction: every item's vectors, in shards, over any number of ranks, restartable.

Input: prepared/items.parquet and an extractor. Output: features/<name>/. Called by
launch/embed.py; embedding/features/pipeline.py is the work of one rank.

A vector is made once: what it was made of is hashed, and a row of the same hash and the same encoder
takes the vector that is there, from its own shard or from any shard of an earlier table. The tables that
are there stay readable until the new ones are whole (replacement.py).
"""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedding.features.catalogue import Catalogue
from embedding.features.codebook_fit import fitted_codebooks, known_codebooks
from embedding.features.codes import Codebooks, RowForm
from embedding.features.extractor import Extractor
from embedding.features.pipeline import Pipeline
from embedding.features.replacement import (
    CODES,
    Basis,
    declare_whole,
    next_name,
    open_next_tables,
    replace_tables,
    stamp_of,
)
from embedding.features.reuse import EarlierTables
from embedding.features.store import (
    MASK_CODES,
    STORE_VERSION,
    FeatureManifest,
    ShardEntry,
    finished_shard,
    read_feature_manifest,
    spec_of,
    write_feature_manifest,
)
from embedding.image.pictures import REASONS, write_unusable
from recsys.errors import UserError
from recsys.files import EMBED_AGAIN, read_array
from recsys.progress import progress_bar
from recsys.runtime.collectives import gather, share
from recsys.runtime.env import Env
from recsys.schema import Manifest

UNUSABLE_FILE = "unusable_pictures.csv"
"""Below features/: item_id, file and reason of every picture that is named and cannot be used."""


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """The encoder that makes the vectors, as the feature manifest states it."""

    encoder: str
    """For people."""
    revision: str
    """Fingerprint of its weights and settings; vectors of another revision are made anew."""
    scaling: str
    """Scaling of the vectors."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Finished tables, and how many of their rows were kept, reused and encoded."""

    tables: dict[str, FeatureManifest]
    """By name."""
    num_kept: int
    """Rows of shards that stay as they are, over all ranks."""
    num_reused: int
    """Rows that took a vector which was there, over all ranks."""
    num_encoded: int
    """Rows that passed through the network, over all ranks."""
    num_lost: int = 0
    """Rows with a vector whose picture is gone or cannot be read any more, over all ranks: kept, or
    with `forget_missing` masked."""
    forget_missing: bool = False
    """Whether those rows are masked."""
    seconds: float = 0.0
    """From the first shard to the last manifest."""

    def __str__(self) -> str:
        """Counts by table and in all, for one line."""
        parts = []
        for name, table in self.tables.items():
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in table.masked.items())
            bits = f", {table.bits} bits each" if table.codebooks else ""
            parts.append(
                f"{name} {table.count:,} x {table.dim}{bits} (masked: {reasons or 'none'})"
            )
        rate = self.num_encoded / max(self.seconds, 1e-9)
        counts = [f"{self.num_encoded:,} encoded, {rate:,.0f} items/s"]
        counts += [f"{self.num_kept:,} kept"] if self.num_kept else []
        counts += [f"{self.num_reused:,} reused"] if self.num_reused else []
        return "; ".join([*parts, ", ".join(counts)])

    def notes(self, features: Path) -> list[str]:
        """Return sentences on pictures that are gone or cannot be used."""
        notes = []
        if self.num_lost and self.forget_missing:
            notes.append(
                f"{self.num_lost:,} items had a vector and are masked, their pictures being gone or "
                f"unreadable"
            )
        elif self.num_lost:
            notes.append(
                f"{self.num_lost:,} items keep their vectors though their pictures are gone or "
                f"unreadable (forget_missing=true masks them)"
            )
        if any(reason != "none" for table in self.tables.values() for reason in table.masked):
            notes.append(f"pictures that cannot be used: {features / UNUSABLE_FILE}")
        return notes


def extract_features(
    extractor: Extractor,
    *,
    workspace: Path,
    manifest: Manifest,
    made_by: MadeBy,
    env: Env,
    shard_rows: int | None = None,
    bits: int = 16,
    forget_missing: bool = False,
) -> Extraction:
    """Write the extractor's tables below `<workspace>/features/`; all ranks call this.

    Codebooks are kept as long as the encoder is; without any, fp16 tables are made first, and coded.

    Args:
        forget_missing: mask rows whose picture is gone or cannot be read any more; False: they keep
            the vector they have.
        shard_rows: rows of a shard, 1 or more; None: those of the table that is there, or
            `fitting_shard_rows`.
        bits: of a stored number: 16, or 2 or 4 as codes. For 16, rows of codes are encoded anew.

    Raises:
        UserError: items.parquet is missing or does not have the manifest's rows.
    """
    features, names = workspace / "features", list(extractor.dims)

    def extract(books: dict[str, Codebooks]) -> Extraction:
        return _extract(
            extractor,
            workspace=workspace,
            manifest=manifest,
            made_by=made_by,
            env=env,
            shard_rows=shard_rows,
            books=books,
            forget_missing=forget_missing,
        )

    if bits == 16:
        return extract({})
    if books := share(lambda: known_codebooks(features, names, bits, made_by.revision)):
        return extract(books)
    whole = extract({})
    books = share(lambda: {name: fitted_codebooks(features / name, bits) for name in names})
    coded = extract(books)
    return dataclasses.replace(whole, tables=coded.tables, seconds=whole.seconds + coded.seconds)


def _extract(
    extractor: Extractor,
    *,
    workspace: Path,
    manifest: Manifest,
    made_by: MadeBy,
    env: Env,
    shard_rows: int | None,
    books: Mapping[str, Codebooks],
    forget_missing: bool,
) -> Extraction:
    """Write the tables in one form: as codes with `books`, by table, else as fp16.

    Shards go round robin over ranks, so that new items spread over all of them.
    """
    begun = time.perf_counter()
    catalogue = Catalogue(workspace / "prepared")
    if catalogue.num_rows != manifest.num_item_rows:
        raise UserError(
            f"{catalogue.path}: has {catalogue.num_rows:,} rows, the manifest says "
            f"{manifest.num_item_rows:,}; run launch/prepare.py again"
        )
    features, names = workspace / "features", list(extractor.dims)
    earlier = EarlierTables(features / f".{'+'.join(names)}.earlier", names)

    def open_tables() -> Basis:
        stamp = {
            "version": STORE_VERSION,
            "revision": made_by.revision,
            "row_hash": extractor.row_hash,
            # Which row is which item: in another order, vectors are looked for by hash.
            "items": manifest.checksums["items.parquet"],
            "shard_rows": shard_rows or _shard_rows_of(features, names[0], catalogue.num_rows),
        }
        if books:  # the stamps of earlier versions have no codes
            stamp[CODES] = "+".join(books[name].digest for name in names)
        return open_next_tables(features, names, stamp, earlier)

    forms = {n: RowForm(dim=dim, codebooks=books.get(n)) for n, dim in extractor.dims.items()}
    basis = share(open_tables)
    pipeline = Pipeline(extractor, catalogue, features, earlier, basis, forms, forget_missing)
    counts = gather(lambda: _run_rank(pipeline, env))
    tables = share(lambda: _close_tables(pipeline, manifest, made_by))
    return Extraction(
        tables=tables,
        **{key: sum(of_rank[key] for of_rank in counts) for key in counts[0]},
        forget_missing=forget_missing,
        seconds=time.perf_counter() - begun,
    )


def _run_rank(pipeline: Pipeline, env: Env) -> dict[str, int]:
    """Make this rank's shards, with a bar on rank 0; return its counts."""
    mine = range(env.rank, pipeline.num_shards, env.world_size)
    ranks = f" (rank 0 of {env.world_size})" if env.world_size > 1 else ""
    bar = progress_bar(
        total=sum(len(pipeline.rows_of(index)) for index in mine),
        desc="+".join(pipeline.names) + ranks,
        unit="item",
        is_shown=env.is_first,
    )
    with bar:
        return pipeline.run(mine, bar.update)


def _close_tables(
    pipeline: Pipeline, manifest: Manifest, made_by: MadeBy
) -> dict[str, FeatureManifest]:
    """Write the manifest of every table, put the tables in their places, list unusable pictures."""
    features, extractor = pipeline.features, pipeline.extractor
    tables = {}
    for name in pipeline.names:
        made, books = features / next_name(name), pipeline.forms[name].codebooks
        if books:
            books.write(made)
        tables[name] = _manifest_of(
            [finished_shard(made, i) for i in range(pipeline.num_shards)],
            name=name,
            encoder=made_by.encoder,
            revision=made_by.revision,
            count=pipeline.catalogue.num_rows,
            items_checksum=manifest.items_checksum,
            made_of=manifest.column_checksums.get(extractor.column, ""),
            scaling=made_by.scaling,
            row_hash=extractor.row_hash,
            bits=books.bits if books else 16,
            codebooks=books.digest if books else "",
            dtype=str(pipeline.forms[name].dtype),
        )
        write_feature_manifest(made, tables[name])
    pipeline.earlier.remove()  # its index holds for the tables that are replaced now
    declare_whole(features, pipeline.names)
    replace_tables(features, pipeline.names)
    if extractor.column == "image":
        pictures = _unusable_pictures(pipeline.catalogue, features / pipeline.names[0])
        write_unusable(features / UNUSABLE_FILE, pictures)
    return tables


def _unusable_pictures(catalogue: Catalogue, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield item_id, file and reason of every picture of a finished table that is named and masked."""
    reasons = ["", *REASONS]
    for shard in read_feature_manifest(folder).shards:
        masked = read_array(folder / shard.rows_file, EMBED_AGAIN)["masked"]
        listed = np.flatnonzero(masked > MASK_CODES["none"])
        if len(listed):
            # Only shards with such pictures are looked up in the catalogue.
            table = catalogue.read(shard.start_row, shard.end_row, ["item_id", "image"])
            for place, row in zip(listed, table.take(listed).to_pylist(), strict=True):
                yield row["item_id"], row["image"], reasons[masked[place]]


def fitting_shard_rows(num_rows: int) -> int:
    """Return the rows of a shard: 1,024, more from 4 million items on, 32,768 at most.

    A shard is what a killed rank loses, and two files of every table; a hundred million items make
    6,104 shards of 16,384.
    """
    return min(max(1024, 1 << max(0, (num_rows // 4096).bit_length() - 1)), 32_768)


def _shard_rows_of(features: Path, name: str, num_rows: int) -> int:
    """Return the rows of a shard in the table that is there or was begun, else those that fit."""
    stamp = stamp_of(features / name) or stamp_of(features / next_name(name))
    return int(stamp["shard_rows"]) if stamp else fitting_shard_rows(num_rows)


def _manifest_of(entries: list[ShardEntry | None], **known: Any) -> FeatureManifest:
    masked: Counter[str] = Counter()
    shards, dim = [], 0
    for index, entry in enumerate(entries):
        if entry is None:
            raise UserError(
                f"features/{known['name']}: shard {index} was removed while it was made; run embed again"
            )
        masked.update(entry.masked)
        shards.append(spec_of(entry))
        dim = entry.dim
    return FeatureManifest(
        dim=dim,
        num_masked=sum(masked.values()),
        masked=dict(sorted(masked.items())),
        shards=tuple(shards),
        **known,
    )
