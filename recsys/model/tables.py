"""Trainable embedding tables: features in, one vector per feature and row out.

Called by the rankers. Shapes: B rows, F features, D stored table width.

A table of width D keeps an id's embedding in columns 0..D-2 and its first-order weight in column
D-1 (all D columns are embedding where no first-order term is asked for): FBGEMM wants widths
divisible by 4, so a table of its own for the weight would spend three columns and a second lookup
on nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.errors import UserError
from recsys.schema import FeatureSpec, TableSpec


class TableForm(Protocol):
    """Stored form of a table; the section `tables` of a run's configuration has one for single tables."""

    @property
    def width(self) -> int | None:
        """Columns; None: model.embedding_dim."""

    @property
    def precision(self) -> str:
        """Precision of its values: `fp32` or `fp16`."""

    @property
    def num_rows(self) -> int | None:
        """Rows of a table of fixed capacity; None: as many as its vocabulary has."""


def check_width(dim: int, table: str, key: str = "model.embedding_dim") -> None:
    """Raise UserError unless FBGEMM can hold rows of `dim` values.

    Args:
        key: that gives the width.

    Raises:
        UserError: dim is not a positive multiple of 4.
    """
    if dim <= 0 or dim % 4:
        raise UserError(
            f"{key}={dim} for table {table!r}: FBGEMM needs a positive "
            f"multiple of 4; use {max(4, 4 * round(dim / 4))}"
        )


def build_tables(
    *,
    tables: Sequence[TableSpec],
    features: Sequence[FeatureSpec],
    embedding_dim: int,
    forms: Mapping[str, TableForm],
) -> EmbeddingBagCollection:
    """Return an EmbeddingBagCollection on the meta device; sharding gives it storage.

    Args:
        tables: rows of the vocabularies by table; tables that no feature reads are left out.
        features: the features the model reads, each naming its table.
        embedding_dim: stored width D of a table whose form says none.
        forms: of single tables, by name; any other is fp32. Names of no table have no effect.

    Raises:
        UserError: a width is not a multiple of 4, or a table has a name that torch keeps for itself.
    """
    read = {f.table for f in features}
    configs = []
    for table in tables:
        if table.name not in read:
            continue
        if hasattr(nn.ModuleDict, table.name):
            raise UserError(
                f"feature {table.name!r}: torch keeps this name for itself; rename the feature in the "
                f"recipe ({table.name}: ... -> my_{table.name}: {{column: {table.name}}}) and run "
                f"launch/prepare.py again"
            )
        form = forms.get(table.name)
        own_width = None if form is None else form.width
        own_rows = None if form is None else form.num_rows
        dim = embedding_dim if own_width is None else own_width
        key = "model.embedding_dim" if own_width is None else f"tables.{table.name}.width"
        check_width(dim, table.name, key)
        is_half = form is not None and form.precision == "fp16"
        configs.append(
            EmbeddingBagConfig(
                name=table.name,
                num_embeddings=table.num_rows if own_rows is None else own_rows,
                embedding_dim=dim,
                feature_names=[f.name for f in features if f.table == table.name],
                # Summed here, divided in FeatureColumns: TorchRec's own mean pooling goes wrong for
                # lists where one plan holds row-wise and column-wise tables (torchrec 1.8).
                pooling=PoolingType.SUM,
                data_type=DataType.FP16 if is_half else DataType.FP32,
            )
        )
    # One collection for all: a batch of weighted lists has weights of 1 for all other ids.
    is_weighted = any(f.is_weighted for f in features)
    return EmbeddingBagCollection(
        tables=configs, is_weighted=is_weighted, device=torch.device("meta")
    )


class FeatureColumns(nn.Module):
    """Picks feature vectors by name out of a KeyedTensor and splits off the first-order weights.

    A sharded collection returns its columns in the order of the sharding plan, not of the config;
    going by key keeps the dense layers right under every plan.
    """

    def __init__(
        self, *, features: Sequence[FeatureSpec], dims: Mapping[str, int], first_order: bool
    ):
        """Args: features in output order; dims: stored width by table name."""
        super().__init__()
        self.feature_names = [f.name for f in features]
        # The weights of a weighted list sum to 1 (recsys/data/loader.py): their sum is the mean.
        self.is_list = [f.is_list and not f.is_weighted for f in features]
        self.first_order = first_order
        self.feature_dims = [dims[f.table] - int(first_order) for f in features]

    @property
    def out_dim(self) -> int:
        """Width of the concatenated embeddings."""
        return sum(self.feature_dims)

    def forward(
        self, embeddings: KeyedTensor, sparse: KeyedJaggedTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (vectors [B, sum of widths], first-order sum [B]).

        A list is the mean of its ids; an empty one is zero. The first-order sum is zeros [B] where the
        term is off or there is no feature.
        """
        values_BD = embeddings.values()
        nothing_B = values_BD.new_zeros(values_BD.shape[0])
        if not self.feature_names:
            return nothing_B[:, None][:, :0], nothing_B
        keys = embeddings.keys()
        if keys == self.feature_names and not any(self.is_list):
            joined_BD = values_BD
        else:
            # Split, not sliced by key: the gradients of slices are full-width tensors of zeros, one for
            # each feature, that of a split is one concatenation.
            parts_BD = values_BD.split(embeddings.length_per_key(), dim=1)
            by_key = dict(zip(keys, parts_BD, strict=True))
            if any(self.is_list):
                lengths_FB = sparse.lengths().reshape(len(sparse.keys()), -1)
                for name, is_list in zip(self.feature_names, self.is_list, strict=True):
                    if is_list:
                        lengths_B = lengths_FB[sparse.keys().index(name)]
                        by_key[name] = by_key[name] / lengths_B.clamp_min(1)[:, None]
            joined_BD = torch.cat([by_key[name] for name in self.feature_names], dim=1)
        if not self.first_order:
            return joined_BD, nothing_B
        if len(set(self.feature_dims)) == 1:
            stored_BFD = joined_BD.unflatten(1, (len(self.feature_dims), -1))
            return stored_BFD[:, :, :-1].flatten(start_dim=1), stored_BFD[:, :, -1].sum(dim=1)
        stored_dims = [dim + 1 for dim in self.feature_dims]
        parts = joined_BD.split(stored_dims, dim=1)
        first_order_B = torch.stack([part[:, -1] for part in parts], dim=1).sum(dim=1)
        return torch.cat([part[:, :-1] for part in parts], dim=1), first_order_B
