"""Frozen modality tables: image and text vectors by item row, or pooled over a history.

The vectors never travel in a batch: they lie in embedding tables that are sharded like any other,
have no gradient and no optimizer state, and are filled once from the feature store: with fp16 numbers, or
with codes of vectors in another basis, which pooled vectors are turned back from.
Shapes: B rows, E modality width, M modalities.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.model.history import History

TABLE_PREFIX = "modality_"


_LARGE_BYTES = 1 << 30
"""Size above which a table may have to be cut by columns."""


def stored_dim(dim: int, num_rows: int) -> int:
    """Return the table width for vectors of width `dim`: one mask column more, rounded up to 4.

    A large table's is rounded up to 8, so that it has halves: 1028 = 4 x 257 has no part that FBGEMM
    could hold, 1032 = 8 x 3 x 43 has several.
    """
    multiple = 4 if 2 * num_rows * dim <= _LARGE_BYTES else 8
    return -(-(dim + 1) // multiple) * multiple


class ModalityTables(nn.Module):
    """Looks modality vectors up; the same table serves the row's item and the user's history.

    A stored row is [vector (E), mask (1), zero padding]: mask is 1 for an item that has the
    modality and 0 (with a zero vector) for one that has not. The sum over a history then has the number
    of items that have it, by which the pooled vector is divided: missing pictures do not pull an
    interest vector towards zero.
    """

    def __init__(
        self,
        *,
        dims: Mapping[str, int],
        num_rows: int,
        item_feature: str,
        history_features: Sequence[str],
        pooled: Sequence[str],
        sequence_features: Sequence[str] = (),
        shrinkage: float = 0.0,
    ):
        """Build the tables on the meta device.

        Args:
            dims: vector width E by modality name.
            num_rows: item rows, unknown row included.
            item_feature: key of the row's item in the batch.
            history_features: keys of item lists to pool, possibly none.
            pooled: modalities whose vectors are pooled over these lists; a list costs as many rows of a
                table as it has items, so that no other modality reads it.
            sequence_features: keys of item lists that `sequences` reads item by item.
            shrinkage: added to the number of items that a pooled sum is divided by.
        """
        super().__init__()
        self.dims = dict(dims)
        # Bits of a stored number, and the basis [E, E] of the stored vectors; empty: fp16, as they are.
        self.bits: dict[str, int] = {}
        self.bases: dict[str, torch.Tensor] = {}
        self.item_feature = item_feature
        self.history_features = list(history_features) if pooled else []
        self.pooled = [name for name in self.dims if name in pooled]
        self.sequence_features = list(sequence_features)
        self.shrinkage = shrinkage
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=TABLE_PREFIX + name,
                    num_embeddings=num_rows,
                    embedding_dim=stored_dim(dim, num_rows),
                    feature_names=[item_feature]
                    + (self.history_features if name in self.pooled else []),
                    pooling=PoolingType.SUM,
                    data_type=DataType.FP16,
                )
                for name, dim in self.dims.items()
            ],
            device=torch.device("meta"),
        )

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        """Return the stored rows of items, and their sums over histories, side by side [B, widths]."""
        with torch.no_grad():
            return self.tables(sparse)

    def columns(
        self, looked_up: KeyedTensor
    ) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Return {modality: {feature: (vector [B, E], present [B])}} of what `forward` returned.

        Every modality has the item's vector, a pooled one the histories' too. `present` is 1.0 where
        the item has the modality (for a history: where any of its items has). Nothing has a gradient.
        """
        with torch.no_grad():
            vectors = {}
            for name, dim in self.dims.items():
                # One item, no mean: its row is read where it lies.
                item_BD = _as_read(looked_up[self._key(self.item_feature, name)])
                item_B = item_BD[:, dim].float()
                vectors[name] = {self.item_feature: (item_BD[:, :dim], item_B)}
                for feature in self.history_features if name in self.pooled else ():
                    pooled_BD = looked_up[self._key(feature, name)]
                    vectors[name][feature] = _split(pooled_BD, dim, self.shrinkage)
                if name in self.bases:
                    vectors[name] = {
                        feature: (turned_BE @ self.bases[name].T, present_B)
                        for feature, (turned_BE, present_B) in vectors[name].items()
                    }
            return vectors

    def sequences(self, sparse: KeyedJaggedTensor) -> list[History]:
        """Return the items of each item list of the batch, to be read one by one.

        A sharded collection only answers pooled, so the tables must be held whole
        (recsys/run/assembly.py sees to it).
        """
        tables = {
            name: self.tables.embedding_bags[TABLE_PREFIX + name].weight for name in self.dims
        }
        # values [7, 3, 9, ...] of lengths [2, 0, 1, ...]: the items of row 0, row 1, row 2, ...
        lists = [sparse[feature] for feature in self.sequence_features]
        return [
            History(
                tables=tables,
                dims=self.dims,
                bases=self.bases,
                item_T=items.values(),
                row_T=torch.repeat_interleave(items.lengths()),
            )
            for items in lists
        ]

    def _key(self, feature: str, modality: str) -> str:
        # TorchRec names an output feature@table as soon as several tables read the feature.
        num_tables = len(self.dims if feature == self.item_feature else self.pooled)
        return feature if num_tables == 1 else f"{feature}@{TABLE_PREFIX}{modality}"


@torch.fx.wrap  # the pipeline's symbolic tensors have no precision
def _as_read(stored_BD: torch.Tensor) -> torch.Tensor:
    """Return the same in fp32, or in bf16 where the tables read it for a dense part of bf16."""
    return stored_BD if stored_BD.dtype == torch.bfloat16 else stored_BD.float()


def _split(
    stored_BD: torch.Tensor, dim: int, shrinkage: float
) -> tuple[torch.Tensor, torch.Tensor]:
    sum_BD = _as_read(stored_BD)
    count_B = sum_BD[:, dim]
    divisor_B = count_B.clamp_min(1.0) + shrinkage
    return sum_BD[:, :dim] / divisor_B[:, None], (count_B > 0).float()
