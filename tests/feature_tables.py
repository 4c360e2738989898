"""Feature tables of given vectors, as embed would leave them."""

from pathlib import Path
from typing import Any

import numpy as np

from embedding.features.codebook_fit import fit_codebooks
from embedding.features.codes import RowForm
from embedding.features.store import (
    ROW,
    FeatureManifest,
    FeatureTable,
    spec_of,
    write_feature_manifest,
    write_shard,
)


def write_table(
    folder: Path, vectors: np.ndarray, *, shard_rows: int = 1024, bits: int = 16, **known: Any
) -> FeatureTable:
    """Write vectors [N, D] in shards, rows of zeros as masked; `known` goes to the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    books = None if bits == 16 else fit_codebooks(vectors, bits)
    form = RowForm(dim=vectors.shape[1], codebooks=books)
    if books:
        books.write(folder)
    shards = []
    for index, start in enumerate(range(0, len(vectors), shard_rows)):
        part = vectors[start : start + shard_rows]
        rows = np.zeros(len(part), dtype=ROW)
        rows["masked"] = ~part.astype(np.float16).any(axis=1)
        entry = write_shard(folder, index, start, form.encode(part), rows, form)
        shards.append(spec_of(entry))
    manifest = FeatureManifest(
        name=folder.name,
        encoder="given",
        revision="1",
        dim=vectors.shape[1],
        count=len(vectors),
        shards=tuple(shards),
        bits=bits,
        codebooks=books.digest if books else "",
        dtype=str(form.dtype),
        **{"items_checksum": "c", **known},
    )
    write_feature_manifest(folder, manifest)
    return FeatureTable(folder)
