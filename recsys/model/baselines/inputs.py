"""Inputs of the baselines, the same as of UMAIR-FPS, in two forms; and the settings they share.

Concatenation puts everything side by side, Fields stacks it as equally wide vectors, which the
factorization machines and their kin need. Every baseline takes one of the two.
Shapes: B rows, N width of the concatenation, F fields, D width of a field, E modality width.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from recsys.errors import UserError
from recsys.model.components import build_components
from recsys.model.config import RankerConfig
from recsys.model.dense_columns import dense_vectors, split_dense
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.linear import joined
from recsys.model.mlp import Tower
from recsys.model.projections import Projections


@dataclass(frozen=True, kw_only=True)
class BaselineConfig(RankerConfig):
    """Settings of any baseline."""

    interest_modalities: list[str] = field(default_factory=lambda: ["semantic", "style", "text"])
    """Modalities pooled over the history into interest vectors."""


@dataclass(frozen=True, kw_only=True)
class DeepConfig(BaselineConfig):
    """Settings of a baseline with a deep network."""

    deep_dims: list[int] = field(default_factory=lambda: [128, 64])
    """Hidden widths of the deep network."""
    dropout: float = 0.1
    """Share of activations dropped in the deep network."""
    batch_norm: bool = False
    """Batch norm in the deep network."""


@dataclass(frozen=True, kw_only=True)
class ConcatenationConfig(DeepConfig):
    """Settings of a baseline with a deep network over the concatenation of all inputs."""

    shared_projection: bool = True
    """Interest vectors pass the item's own projection; false: raw into the concatenation."""
    tower_dims: list[int] = field(default_factory=lambda: [64])
    """The last is the width of a projected modality vector; the others have no part."""
    first_order: bool = False
    """Add a first-order weight of every sparse feature to the logit."""


class Baseline(nn.Module):
    """Dense half of a baseline: logits of all inputs, and a weight of no modality."""

    def __init__(self, config: BaselineConfig, sizes: InputSizes):
        """Keep `sizes`: widths of what `logits` is given, reduced vectors where the config says so."""
        super().__init__()
        self.modality_names: list[str] = []
        self.components = build_components(sizes.modality_dims, config.modality_components)
        if self.components is not None:
            sizes = replace(sizes, modality_dims=self.components.dims)
        self.sizes = sizes

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, 0])."""
        if self.components is not None:
            inputs = replace(
                inputs,
                modalities=self.components.items(inputs.modalities),
                interests=self.components.interests(self.sizes.interests, inputs.interests),
            )
        logits_B = self.logits(inputs)
        return logits_B, logits_B[:, None][:, :0]

    def logits(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the logits [B], without the first-order weights of ids."""
        raise NotImplementedError


class Concatenation(nn.Module):
    """x0 = every embedding, number, interest vector and projected modality vector side by side."""

    def __init__(self, sizes: InputSizes, *, shared_projection: bool, projection_dim: int):
        """Args: projection_dim: width of the projected modality vectors."""
        super().__init__()
        self.projections = Projections(
            modality_dims=sizes.modality_dims,
            interests=sizes.interests,
            dim=projection_dim,
            shared_projection=shared_projection,
        )
        self.user_dim = sizes.user_dim + self.projections.interest_dim
        self.item_dim = sizes.item_dim + projection_dim * len(sizes.modality_dims)

    @property
    def out_dim(self) -> int:
        """Width N of x0."""
        return self.user_dim + self.item_dim

    def sides(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (user and context [B, user_dim], item [B, item_dim]); a masked modality is zero."""
        user_BX, items = self.projections.both(inputs.user_BX, inputs.interests, inputs.modalities)
        parts = [vector_BH * present_B[:, None] for vector_BH, present_B in items]
        return user_BX, joined([inputs.item_BY, *parts])

    def forward(self, inputs: DenseInputs) -> torch.Tensor:
        """Return x0 [B, N]."""
        return joined(self.sides(inputs))


class Fields(nn.Module):
    """One vector v_f per sparse feature, modality, interest and dense feature, all of width D.

    A modality enters as P_m e_m, the vectors of a factorization machine's real-valued features;
    interest vectors pass the same P_m. A number enters as x w, or as w' where it is missing.
    """

    def __init__(self, sizes: InputSizes):
        """One linear map P_m per modality.

        Raises:
            UserError: the features differ in width.
        """
        super().__init__()
        field_dim, modality_dims = sizes.field_dim, sizes.modality_dims
        if not field_dim:
            raise UserError(
                "tables.<table>.width: this model multiplies feature vectors with each other, and "
                "theirs differ in width; leave the width of every table to model.embedding_dim, or "
                "take another model.name"
            )
        self.field_dim = field_dim
        self.linear = nn.ModuleDict({
            name: nn.Linear(width, field_dim, bias=False) for name, width in modality_dims.items()
        })
        for parameter in self.linear.parameters():
            # As small as the embeddings start, so that neither drowns the other.
            nn.init.normal_(parameter, std=0.002)
        self.interests = list(sizes.interests)
        self.user_dense = dense_vectors(sizes.user_dense, field_dim)
        self.item_dense = dense_vectors(sizes.item_dense, field_dim)
        num_dense = sizes.user_dense + sizes.item_dense
        self.num_fields = sizes.num_features + len(modality_dims) + len(sizes.interests) + num_dense

    @property
    def out_dim(self) -> int:
        """Width of all fields side by side."""
        return self.num_fields * self.field_dim

    def forward(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the fields [B, F, D]; a masked modality and an empty history are zero."""
        parts, vectors_of_numbers = [], []
        sides = ((inputs.user_BX, self.user_dense), (inputs.item_BY, self.item_dense))
        for columns_BX, dense in sides:
            if dense is not None:
                columns_BX, pairs_BP = split_dense(columns_BX, dense.num_features)
                vectors_of_numbers.append(dense(pairs_BP).flatten(start_dim=1))
            parts.append(columns_BX)
        for name, linear in self.linear.items():
            vector_BE, present_B = inputs.modalities[name]
            parts.append(linear(vector_BE) * present_B[:, None])
        for name, (vector_BE, present_B) in zip(self.interests, inputs.interests, strict=True):
            parts.append(self.linear[name](vector_BE) * present_B[:, None])
        joined_BX = torch.cat([*parts, *vectors_of_numbers], dim=1)
        return joined_BX.unflatten(1, (self.num_fields, self.field_dim))


class FirstOrder(nn.Module):
    """b + sum_m w_m . e_m over modalities and interests + sum_k w_k x_k over dense features.

    The first-order weights of the sparse features are columns of their tables, and the ranker adds
    them (model.first_order).
    """

    def __init__(self, sizes: InputSizes):
        """Weights start at zero."""
        super().__init__()
        self.items = nn.ModuleDict({
            name: nn.Linear(width, 1, bias=False) for name, width in sizes.modality_dims.items()
        })
        self.interests = nn.ModuleList(
            nn.Linear(sizes.modality_dims[name], 1, bias=False) for name in sizes.interests
        )
        self.bias = nn.Parameter(torch.zeros(1))
        self.user_dense, self.item_dense = (
            nn.Linear(2 * num_features, 1, bias=False) if num_features else None
            for num_features in (sizes.user_dense, sizes.item_dense)
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the term [B]."""
        total_B = self.bias + torch.zeros_like(inputs.first_order_B)
        for name, linear in self.items.items():
            vector_BE, present_B = inputs.modalities[name]
            total_B = total_B + linear(vector_BE)[:, 0] * present_B
        for linear, (vector_BE, present_B) in zip(self.interests, inputs.interests, strict=True):
            total_B = total_B + linear(vector_BE)[:, 0] * present_B
        sides = ((inputs.user_BX, self.user_dense), (inputs.item_BY, self.item_dense))
        for columns_BX, weights in sides:
            if weights is not None:
                total_B = total_B + weights(columns_BX[:, -weights.in_features :])[:, 0]
        return total_B


def concatenation(config: ConcatenationConfig, sizes: InputSizes) -> Concatenation:
    """Return the concatenation that a baseline's settings describe."""
    return Concatenation(
        sizes,
        shared_projection=config.shared_projection,
        projection_dim=config.tower_dims[-1],
    )


def deep_network(config: DeepConfig, in_dim: int) -> Tower:
    """Return the deep network that a baseline's settings describe, over inputs [B, in_dim]."""
    return Tower(
        in_dim=in_dim,
        hidden_dims=config.deep_dims,
        dropout=config.dropout,
        batch_norm=config.batch_norm,
    )
