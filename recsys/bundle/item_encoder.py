"""Item encoder: the item's half of a bundle's model, for the export, for new items, and for context.

Shapes: B items, V ids, E modality width; the parts are those of recsys/bundle/items.py.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.dense import DenseHalf
from recsys.bundle.items import ItemRow, Items
from recsys.bundle.lookup import Column, Lookup, column_of
from recsys.bundle.spec import TWO_SIDED, BundleSpec
from recsys.bundle.tables import QuantisedTable
from recsys.schema import UNKNOWN_ROW


class ItemEncoder:
    """Feature columns and modality vectors of items in, their parts out."""

    def __init__(self, spec: BundleSpec, tables: Mapping[str, QuantisedTable], dense: DenseHalf):
        """Args: dense: its graph `item` is run for a two-sided model."""
        self._spec = spec
        self._dense = dense
        self._lookup = Lookup(spec, spec.item_features, spec.item_dense, tables)

    def __call__(
        self,
        columns: Mapping[str, Column],
        vectors: list[torch.Tensor],
        presents: list[torch.Tensor],
        num_items: int,
    ) -> dict[str, torch.Tensor]:
        """Return the parts of PARTS that the model has, float32 [B, ...].

        Args:
            columns: of every item feature that the model reads.
            vectors: [B, E] of each of `spec.vector_names`.
            presents: whether the item has it [B], 1 or 0.
        """
        item_BY, first_order_B = self._lookup(columns, num_items)
        parts = {"first_order": first_order_B}
        if self._spec.kind != TWO_SIDED:
            return parts | {"columns": item_BY}
        outputs = self._dense.item(item_BY, vectors, presents)
        vectors_BMH, present_BM, products_BMD, retrieval_BR = outputs
        parts |= {"vectors": vectors_BMH, "present": present_BM, "products": products_BMD}
        if self._spec.widths.retrieval:
            if self._spec.first_order:
                retrieval_BR = torch.cat([retrieval_BR, first_order_B[:, None]], dim=1)
            parts["retrieval"] = retrieval_BR
        return parts

    def row_of(
        self,
        items: Items,
        vectors: Mapping[str, NDArray | None],
        features: dict[str, NDArray],
        weights: dict[str, NDArray],
    ) -> ItemRow:
        """Return what `items` holds of one item whose id is unknown."""
        stored = {
            name: None if vector is None else np.asarray(vector, np.float16)
            for name in items.modalities
            for vector in [vectors.get(name)]
        }
        parts = {}
        if not self._spec.items_at_request:
            columns = {"item_id": column_of([np.array([UNKNOWN_ROW])], is_list=False)}
            for name, feature in items.features.items():
                given = features.get(name, feature.of(UNKNOWN_ROW))
                weighed = [weights.get(name, np.ones(len(given)))] if feature.is_weighted else None
                columns[name] = column_of([given], feature.is_list, weighed)
            dims = self._spec.widths.modalities
            values = [stored[name] for name in self._spec.vector_names]
            rows = [
                torch.zeros(1, dims[name])
                if value is None
                else torch.from_numpy(value).float()[None]
                for name, value in zip(self._spec.vector_names, values, strict=True)
            ]
            presents = [torch.tensor([float(value is not None)]) for value in values]
            made = self(columns, rows, presents, 1)
            parts = {
                name: made[name][0].to(rows_of.fixed.dtype).numpy()
                for name, rows_of in items.parts.items()
            }
        return ItemRow(parts=parts, vectors=stored, features=features, weights=weights)
