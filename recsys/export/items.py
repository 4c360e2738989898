"""Export of the items: vectors, feature rows, and the item's half of the model, once per item row.

In: prepared/items, the feature store, and the exported tables and graphs. Out: `items/` of a bundle,
whose files recsys/bundle/items.py describes. Block by block: memory does not grow with the catalogue.
Shapes: N items, B of a block, E modality width, V modalities.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from embedding.features.store import FeatureTable
from recsys.bundle.dense import DenseHalf
from recsys.bundle.item_encoder import ItemEncoder
from recsys.bundle.items import Rows, item_features, open_features
from recsys.bundle.lookup import Column
from recsys.bundle.spec import BundleSpec
from recsys.bundle.tables import QuantisedTable, mapped
from recsys.files import new_array, write_array
from recsys.progress import progress_bar
from recsys.sharding.shards import Vectors

BLOCK_ROWS = 8192


def write_vectors(folder: Path, tables: Mapping[str, Vectors], num_items: int) -> None:
    """Write vectors/<modality>.npy and has_vector.npy.

    Args:
        folder: `items/` of a bundle in the making.
        tables: feature tables by modality, in the order of the specification.
        num_items: N, unknown row 0 included.
    """
    (folder / "vectors").mkdir(parents=True)
    has_vector = new_array(folder / "has_vector.npy", np.uint8, (num_items, len(tables)))
    for place, (name, table) in enumerate(tables.items()):
        file = folder / "vectors" / f"{name}.npy"
        written = new_array(file, np.float16, (num_items, table.dim))
        for start in range(0, num_items, BLOCK_ROWS):
            block_BE = table.read(start, min(num_items, start + BLOCK_ROWS))
            written[start : start + len(block_BE)] = block_BE
            has_vector[start : start + len(block_BE), place] = (block_BE != 0).any(axis=1)
        written.flush()
    has_vector.flush()


def own_scales(tables: Mapping[str, FeatureTable]) -> dict[str, float]:
    """Return by modality of own vectors the number by which they were multiplied, where it is known."""
    found = {name: table.manifest.scale for name, table in tables.items()}
    return {name: scale for name, scale in found.items() if scale is not None}


def copy_features(folder: Path, prepared: Path, names: list[str]) -> None:
    """Copy the feature rows of items or users out of prepared/items or prepared/users."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for part in ("values", "offsets", "weights"):
            file = prepared / f"{name}.{part}.npy"
            if part == "values" or file.is_file():
                shutil.copyfile(file, folder / file.name)


def write_item_side(
    bundle: Path, spec: BundleSpec, tables: Mapping[str, QuantisedTable], precision: str
) -> None:
    """Write the parts of every item; nothing where the item side reads context.

    Args:
        bundle: a bundle in the making, with tables, graphs, vectors and feature rows.
        precision: of the tables; the parts are fp32 beside fp32 tables, else fp16.
    """
    if spec.items_at_request:
        return
    num_items = spec.manifest.num_item_rows
    encoder = ItemEncoder(spec, tables, DenseHalf(bundle / "dense"))
    features = open_features(bundle / "items" / "features", item_features(spec.manifest))
    vectors = {n: Rows(mapped(bundle / f"items/vectors/{n}.npy")) for n in spec.vector_names}
    has_vector = mapped(bundle / "items/has_vector.npy")
    places = [list(spec.widths.modalities).index(name) for name in spec.vector_names]
    dtype = np.float32 if precision == "fp32" else np.float16
    arrays: dict[str, np.memmap] = {}
    starts = range(0, num_items, BLOCK_ROWS)
    for start in progress_bar(starts, desc="items", unit="block"):
        rows_B = torch.arange(start, min(num_items, start + BLOCK_ROWS))
        columns: dict[str, Column] = {"item_id": Column(rows_B)}
        columns |= {name: feature.take(rows_B) for name, feature in features.items()}
        with torch.inference_mode():
            made = encoder(
                columns,
                [vectors[name].take(rows_B).float() for name in spec.vector_names],
                [has_vector[rows_B, place].float() for place in places],
                len(rows_B),
            )
        for part, values in made.items():
            if part not in arrays:
                # The logit adds it as it is, so that fp16 would show.
                kept = np.float32 if part == "first_order" else dtype
                shape = (num_items, *values.shape[1:])
                arrays[part] = new_array(bundle / f"items/{part}.npy", kept, shape)
            arrays[part][start : start + len(rows_B)] = values.numpy()
    for array in arrays.values():
        array.flush()


def write_train_count(folder: Path, train_count_N: np.ndarray) -> None:
    """Write train_count.npy, training interactions of every item [N]."""
    write_array(folder / "train_count.npy", np.asarray(train_count_N, np.int64))
