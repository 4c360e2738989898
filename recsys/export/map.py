"""Export of the map: a layout of the catalogue by every modality, and groups of items to colour it by.

In: the vectors and the catalogue of a bundle in the making. Out: `map/` below it, as recsys/bundle/map.py
describes it. A layout is kept in the workspace, W/maps/<modality>-<sha16>.npy, named by the hash of its
vectors: an export that was killed, or another run with the same vectors, goes on from there.
Called by export.py of this folder.
Shapes: N items, E modality width.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recsys.bundle.catalogue import Catalogue
from recsys.bundle.map import GROUPINGS, MAX_GROUPS, MODALITIES, Group
from recsys.bundle.spec import EXPORT_AGAIN, BundleSpec
from recsys.export.layout import (
    LAYOUT_VERSION,
    MAX_ANCHORS,
    SEED,
    aligned,
    lay_out,
    normalised,
    num_steps,
)
from recsys.files import read_array, sha256_of, write_array, write_json
from recsys.job import stage
from recsys.progress import progress_bar

MAX_ITEMS = 200_000
"""Items up to which `map=null` makes a map: minutes of two cores."""
_MAX_SHARE = 0.6
"""Share of the items above which a group tells nothing, and is left out."""


def write_map(bundle: Path, spec: BundleSpec, cache: Path, *, threads: int) -> None:
    """Write map/ of a bundle in the making; a modality that no item has is left out.

    Args:
        cache: folder in which layouts are kept from export to export.
    """
    folder = bundle / "map"
    folder.mkdir()
    first_N2: NDArray | None = None
    for name in MODALITIES:
        if name not in spec.widths.modalities:
            continue
        place = list(spec.widths.modalities).index(name)
        has_vector = read_array(bundle / "items/has_vector.npy", EXPORT_AGAIN, mmap=True)
        is_there_N = has_vector[:, place] > 0
        is_there_N[:1] = False  # the unknown item
        if not is_there_N.any():
            continue
        layout_N2 = _layout(bundle / f"items/vectors/{name}.npy", is_there_N, cache, threads)
        # Turned to the first one, so that less moves when one layout becomes another.
        layout_N2 = layout_N2 if first_N2 is None else aligned(layout_N2, first_N2)
        first_N2 = layout_N2 if first_N2 is None else first_N2
        write_array(folder / f"{name}.npy", normalised(layout_N2))
    _write_groups(folder, Catalogue(bundle / "catalogue", spec))


def _layout(
    path: Path, is_there_N: NDArray[np.bool_], cache: Path, threads: int
) -> NDArray[np.float32]:
    """Return the layout [N, 2] of the vectors of a file, of the cache if it is there; nan: no vector."""
    name = path.stem
    key = f"{sha256_of(path)} {LAYOUT_VERSION} {SEED} {MAX_ANCHORS}"
    kept = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    num_items = int(is_there_N.sum())
    with stage(f"map by {name}") as laying:
        if kept.is_file():
            laying.done(f"{num_items:,} items, kept from before: {kept}")
            return read_array(kept, f"delete it and {EXPORT_AGAIN}")
        vectors_NE = read_array(path, EXPORT_AGAIN, mmap=True)[is_there_N]
        total = num_steps(num_items)
        with progress_bar(desc=f"map by {name}", total=total, unit="step") as progress:
            points = lay_out(vectors_NE, progress.update, threads=threads)
        layout_N2 = np.full((len(is_there_N), 2), np.nan, np.float32)
        layout_N2[is_there_N] = points
        cache.mkdir(exist_ok=True)
        write_array(kept, layout_N2)
        laying.done(f"{num_items:,} items, {total:,} steps")
    return layout_N2


def _write_groups(folder: Path, catalogue: Catalogue) -> None:
    """Write the groups of items by artist and by tag, of the columns that the catalogue has."""
    groups = {}
    for name in GROUPINGS:
        if name not in catalogue.columns:
            continue
        found, member_N = groups_of(catalogue.column(name))
        if found:
            groups[name] = [dataclasses.asdict(group) for group in found]
            write_array(folder / f"{name}.npy", member_N)
    write_json(folder / "groups.json", groups)


def groups_of(column_N: pa.ChunkedArray) -> tuple[list[Group], NDArray[np.uint16]]:
    """Return the most frequent values of a column [N], and every item's as bits [N].

    A value of more than six tenths of the items is left out. A column of lists counts each value of an
    item once.
    """
    column = column_N.combine_chunks()
    num_items = len(column)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        rows_V, values_V = pc.list_parent_indices(column), pc.list_flatten(column)
    else:
        rows_V, values_V = pa.array(np.arange(num_items)), column
    pairs = pa.table({"row": rows_V, "value": values_V.cast(pa.string())})
    pairs = pairs.filter(pc.is_valid(pairs["value"])).group_by(["row", "value"]).aggregate([])
    counts = pairs.group_by("value").aggregate([("row", "count")])
    counts = counts.filter(pc.less_equal(counts["row_count"], _MAX_SHARE * num_items))
    counts = counts.sort_by([("row_count", "descending"), ("value", "ascending")])[:MAX_GROUPS]
    groups = [Group(row["value"], row["row_count"]) for row in counts.to_pylist()]
    member_N = np.zeros(num_items, np.uint16)
    if groups:
        listed = pc.index_in(pairs["value"], value_set=counts["value"].combine_chunks())
        kept = pairs.append_column("group", listed).filter(pc.is_valid(listed))
        row_V, group_V = kept["row"].to_numpy(), kept["group"].to_numpy()
        np.bitwise_or.at(member_N, row_V, np.left_shift(1, group_V).astype(np.uint16))
    return groups, member_N
