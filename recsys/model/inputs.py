"""Inputs of a ranker: lookups in trainable and frozen tables, numbers, and the tensors that they give.

RankerInputs is the sparse half of a Scorer (recsys/model/ranker.py); DenseInputs is the border to the
dense half, which can be exported without KeyedJaggedTensors.
Shapes: B rows, D table width, E modality width, S width of the similarity histograms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from recsys.batch import Features
from recsys.model.config import RankerConfig
from recsys.model.dense_columns import DenseColumns, names_of
from recsys.model.history import SimilarityTiers
from recsys.model.modality import ModalityTables
from recsys.model.tables import FeatureColumns, TableForm, build_tables
from recsys.schema import DenseSpec, FeatureSpec, Manifest, history_of


@dataclass
class LookedUp:
    """Lookups of B rows, before they are taken apart: one tensor a collection of tables."""

    embeddings: KeyedTensor
    """Of trainable tables, by feature."""
    vectors: KeyedTensor | None
    """Of frozen tables; None without modalities."""
    sparse: KeyedJaggedTensor
    """The ids, of which the lengths of lists are read."""
    dense_BK: torch.Tensor | None
    """Numbers, as `Features` has them."""
    similarity_BS: torch.Tensor | None
    """Histograms of similarities; None without."""


@dataclass
class DenseInputs:
    """Inputs of the dense part of a ranker; tensors only, of B rows each."""

    user_BX: torch.Tensor
    """User features and context, concatenated: vectors of ids, then value and flag of every number."""
    item_BY: torch.Tensor
    """The item's features, likewise."""
    modalities: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Per modality: the item's vector [B, E] and whether it has one [B]."""
    interests: list[tuple[torch.Tensor, torch.Tensor]]
    """In the order of `RankerInputs.interests`: the interest vector [B, E] and whether the history
    holds any [B]."""
    first_order_B: torch.Tensor
    """Sum of the first-order weights."""
    similarity_BS: torch.Tensor
    """Histograms of similarities between the item and the history; [B, 0] without."""

    def first(self, num_rows: int) -> "DenseInputs":
        """Return the first rows alone."""
        return DenseInputs(
            user_BX=self.user_BX[:num_rows],
            item_BY=self.item_BY[:num_rows],
            modalities={
                name: (vector_BE[:num_rows], present_B[:num_rows])
                for name, (vector_BE, present_B) in self.modalities.items()
            },
            interests=[
                (vector_BE[:num_rows], present_B[:num_rows])
                for vector_BE, present_B in self.interests
            ],
            first_order_B=self.first_order_B[:num_rows],
            similarity_BS=self.similarity_BS[:num_rows],
        )


@dataclass(frozen=True, kw_only=True)
class InputSizes:
    """Widths of DenseInputs, from which a dense half is built."""

    user_dim: int
    """Width of `user_BX`."""
    item_dim: int
    """Width of `item_BY`; 0 without item features."""
    modality_dims: dict[str, int]
    """Vector width E by modality, in order; may be empty."""
    interests: list[str]
    """Modality of every interest vector, in order."""
    num_features: int
    """Sparse features of both sides."""
    field_dim: int
    """Common width of the feature vectors; 0 if they differ in width."""
    vector_dim: int
    """The same; 0 also if a side lacks features."""
    similarity_dim: int
    """Width S of the similarity histograms; 0 without."""
    user_dense: int = 0
    """Dense features among the last columns of `user_BX`, two columns each."""
    item_dense: int = 0
    """The same of `item_BY`."""


class RankerInputs(nn.Module):
    """Sparse half of a ranker: trainable and frozen tables, and numbers; Features in, DenseInputs out."""

    def __init__(
        self,
        *,
        config: RankerConfig,
        manifest: Manifest,
        features: Sequence[FeatureSpec],
        forms: Mapping[str, TableForm],
        modality_dims: Mapping[str, int],
        similarity_tiers: int = 0,
        similarity_histories: Sequence[str] = ("history",),
        dense: Sequence[DenseSpec] = (),
    ):
        """Build the tables on the meta device.

        Args:
            features: of the manifest, those that the ranker reads.
            forms: of single tables, by name.
            modality_dims: vector width E of every modality in use; may be empty.
            similarity_tiers: of the histogram over each of `similarity_histories`; 0, or no history or
                modality: none.
            similarity_histories: history features that histograms are made of; those that the manifest
                lacks are left out.
            dense: dense features of the manifest that the ranker reads.
        """
        super().__init__()
        self.embeddings = build_tables(
            tables=manifest.tables,
            features=features,
            embedding_dim=config.embedding_dim,
            forms=forms,
        )
        dims = {c.name: c.embedding_dim for c in self.embeddings.embedding_bag_configs()}
        sides = [
            [f for f in features if (f.side == "item") == is_item] for is_item in (False, True)
        ]
        self.user_columns, self.item_columns = (
            FeatureColumns(features=side, dims=dims, first_order=config.first_order)
            for side in sides
        )
        self.dense_names = [f.name for f in dense]  # in the order of a batch's columns
        self.user_dense = _dense_columns(dense, is_item=False)
        self.item_dense = _dense_columns(dense, is_item=True)
        self.modality_dims = dict(modality_dims)
        self._read_vectors(config, manifest, similarity_tiers, similarity_histories)

    def _read_vectors(
        self,
        config: RankerConfig,
        manifest: Manifest,
        num_tiers: int,
        compared_histories: Sequence[str],
    ) -> None:
        """Build what reads frozen vectors, of items and of histories; arguments as of the class."""
        histories = [f.name for f in manifest.features if f.source == "history"]
        compared = [name for name in histories if name in compared_histories]
        # Interests are of positives alone: a mean of negatives gains nothing (LOG.md).
        liked = [name for name in histories if history_of(name) == "history"]
        pooled = [name for name in self.modality_dims if name in config.interest_modalities]
        self.interests = [(name, feature) for name in pooled for feature in liked]
        self.similarity = (
            SimilarityTiers(
                modality_dims=self.modality_dims,
                num_tiers=num_tiers,
                num_histories=len(compared),
            )
            if num_tiers and self.modality_dims and compared
            else None
        )
        self.modality = (
            ModalityTables(
                dims=self.modality_dims,
                num_rows=manifest.num_item_rows,
                item_feature="item_id",
                history_features=liked,
                pooled=[modality for modality, _ in self.interests],
                sequence_features=compared if self.similarity is not None else (),
                shrinkage=config.interest_shrinkage,
            )
            if self.modality_dims
            else None
        )

    @property
    def sizes(self) -> InputSizes:
        """Widths of what `forward` returns."""
        user, item = self.user_columns, self.item_columns
        widths = {*user.feature_dims, *item.feature_dims}
        field_dim = widths.pop() if len(widths) == 1 else 0
        user_dense, item_dense = (len(names_of(c)) for c in (self.user_dense, self.item_dense))
        return InputSizes(
            user_dim=user.out_dim + 2 * user_dense,
            item_dim=item.out_dim + 2 * item_dense,
            modality_dims=self.modality_dims,
            interests=[modality for modality, _ in self.interests],
            num_features=len(user.feature_names) + len(item.feature_names),
            field_dim=field_dim,
            vector_dim=field_dim if user.feature_names and item.feature_names else 0,
            similarity_dim=0 if self.similarity is None else self.similarity.out_dim,
            user_dense=user_dense,
            item_dense=item_dense,
        )

    def forward(self, features: Features) -> DenseInputs:
        """Look everything up: [B, user_dim], [B, item_dim], interests and items [B, E], [B]."""
        return self.columns(self.look_up(features))

    def look_up(self, features: Features) -> LookedUp:
        """Return what the tables hold for B rows."""
        embeddings = _there(self.embeddings(features.table_rows))
        vectors = similarity_BS = None
        if self.modality is not None:
            vectors = _there(self.modality(features.sparse))
            if self.similarity is not None:
                looked_up = self.modality.columns(vectors)
                items = {name: looked_up[name]["item_id"] for name in self.modality_dims}
                similarity_BS = self.similarity(self.modality.sequences(features.sparse), items)
        return LookedUp(embeddings, vectors, features.sparse, features.dense_BK, similarity_BS)

    def columns(self, looked_up: LookedUp) -> DenseInputs:
        """Return what `forward` does, of what the tables hold for B rows."""
        user_BD, user_first_order_B = self.user_columns(looked_up.embeddings, looked_up.sparse)
        item_BD, item_first_order_B = self.item_columns(looked_up.embeddings, looked_up.sparse)
        if self.user_dense is not None:
            user_BD = torch.cat([user_BD, self.user_dense(looked_up.dense_BK)], dim=1)
        if self.item_dense is not None:
            item_BD = torch.cat([item_BD, self.item_dense(looked_up.dense_BK)], dim=1)
        items: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        interests: list[tuple[torch.Tensor, torch.Tensor]] = []
        first_order_B = user_first_order_B + item_first_order_B
        if self.modality is not None:
            vectors = self.modality.columns(looked_up.vectors)
            items = {name: vectors[name]["item_id"] for name in self.modality_dims}
            # Indexed, not unpacked: the pipeline traces this method with symbolic tensors.
            interests = [
                (vectors[m][feature][0], vectors[m][feature][1]) for m, feature in self.interests
            ]
        similarity_BS = looked_up.similarity_BS
        if similarity_BS is None:
            similarity_BS = first_order_B[:, None][:, :0]
        return DenseInputs(
            user_BX=user_BD,
            item_BY=item_BD,
            modalities=items,
            interests=interests,
            first_order_B=first_order_B,
            similarity_BS=similarity_BS,
        )


def _there(looked_up: KeyedTensor) -> KeyedTensor:
    """Return a plain tensor; sharded tables answer with one that is awaited when it is first read."""
    return KeyedTensor(
        keys=looked_up.keys(),
        length_per_key=looked_up.length_per_key(),
        values=looked_up.values(),
    )


def _dense_columns(dense: Sequence[DenseSpec], *, is_item: bool) -> DenseColumns | None:
    """Return the columns of one side's dense features; None without any."""
    places = [i for i, feature in enumerate(dense) if (feature.side == "item") == is_item]
    return DenseColumns([dense[i].name for i in places], places) if places else None
