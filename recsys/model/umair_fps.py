"""UMAIR-FPS (arXiv 2402.10381): towers, user-aware fusion (UMCM), DCN-V2, MLP, logit.

Shapes: B rows, D table width, E modality width, M modalities, H tower width, N input of the cross.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import nn

from recsys.model.components import build_components
from recsys.model.config import RankerConfig
from recsys.model.cross import CROSS_FORMS, build_cross
from recsys.model.dense_columns import DenseVectors, dense_vectors, split_dense
from recsys.model.dropout import Dropout
from recsys.model.fusion import UMCM_FORMS
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.linear import linear
from recsys.model.mlp import Tower, run_towers
from recsys.model.projections import Projections, Vector
from recsys.model.row_products import row_dots

SPARSE_MODALITY = "ids"
"""Name of the modality made of the item's sparse features, beside semantic, style and text."""


class SecondOrder(nn.Module):
    """q . p: every vector of the user side against every vector of the item side.

    q = sum of the user's feature vectors,
    p = sum of the item's feature vectors + sum_m P_m e_m (modalities).
    The second-order term of a factorization machine (Rendle 2010) across the two sides, where image
    and text vectors enter as real-valued features: small data is learned through it first.
    """

    def __init__(self, sizes: InputSizes):
        """Every feature vector is `sizes.vector_dim` wide."""
        super().__init__()
        self.dim = dim = sizes.vector_dim
        self.items = nn.ModuleDict({
            name: nn.Linear(width, dim, bias=False) for name, width in sizes.modality_dims.items()
        })
        for parameter in self.items.parameters():
            nn.init.normal_(parameter, std=0.002)
        self.user_dense = dense_vectors(sizes.user_dense, dim)
        self.item_dense = dense_vectors(sizes.item_dense, dim)

    def user(self, user_BX: torch.Tensor) -> torch.Tensor:
        """Return q [B, D]; every feature vector is D wide: [B, F * D] is [B, F, D]."""
        return self._sum(user_BX, self.user_dense)

    def _sum(self, columns_BX: torch.Tensor, dense: DenseVectors | None) -> torch.Tensor:
        """Return the sum of a side's feature vectors, those of numbers included [B, D]."""
        if dense is None:
            return columns_BX.unflatten(1, (-1, self.dim)).sum(dim=1)
        vectors_BX, pairs_BP = split_dense(columns_BX, dense.num_features)
        sum_BD = vectors_BX.unflatten(1, (-1, self.dim)).sum(dim=1)
        return sum_BD + dense(pairs_BP).sum(dim=1)

    def item(
        self, item_BY: torch.Tensor, modalities: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """Return the terms of p [B, M, D]: of the features, then of every modality."""
        terms = [self._sum(item_BY, self.item_dense)]
        weights: dict[str, Any] = {name: layer.weight for name, layer in self.items.items()}
        terms += [linear(modalities[name][0], weight) for name, weight in weights.items()]
        return torch.stack(terms, dim=1)

    def forward(
        self, query_BD: torch.Tensor, products_BMD: torch.Tensor, present_BM: torch.Tensor
    ) -> torch.Tensor:
        """Return the term [B]; a masked modality adds nothing to the item's side."""
        # One after the other: a sum over M adds in another order, and losses stay equal bit by bit.
        terms = (products_BMD * present_BM[:, :, None]).unbind(dim=1)
        return (query_BD * sum(terms[1:], start=terms[0])).sum(dim=1)


@dataclass(frozen=True)
class UserSide:
    """The user's half of UMAIR-FPS."""

    user_BH: torch.Tensor
    """Output u of the user tower."""
    query_BD: torch.Tensor
    """q of the second-order term; [B, 0] without."""


@dataclass(frozen=True)
class ItemSide:
    """The item's half of UMAIR-FPS, by modality."""

    vectors_BMH: torch.Tensor
    """m_k; [B, 0, 0] without item features and modalities."""
    present_BM: torch.Tensor
    """Whether the item has the modality: 1 or 0."""
    products_BMD: torch.Tensor
    """Terms of p in the second-order term; [B, M, 0] without."""


@dataclass(frozen=True, kw_only=True)
class UmairFpsConfig(RankerConfig):
    """Settings of UMAIR-FPS beside those that all rankers share."""

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **RankerConfig.CHOICES,
        "umcm": tuple(UMCM_FORMS),
        "cross": CROSS_FORMS,
    }
    """Forms of the fusion and of the cross network."""
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = (*RankerConfig.MAY_BE_ZERO, "similarity_tiers")
    """Integers that may be 0."""
    shared_projection: bool = True
    """Interest vectors pass the item's own projection W_m (fewer weights, one space for taste and
    item); false: raw into the user tower, as in the paper."""
    match: bool = True
    """Feed the match u . m_k of user and modality, as it is before the softmax, to the final layers
    beside the fused vector; false: the fused vector alone, as in the paper."""
    tower_dims: list[int] = field(default_factory=lambda: [128, 64])
    """Hidden widths of the user tower and of the item's id tower; the last is the UMCM width H."""
    umcm: str = "attention"
    """Form of the fusion (recsys/model/fusion.py); `global` weighs equally for all users, `concat` does
    not weigh."""
    cross: str = "low_rank_mixture"
    """Form of the cross network (recsys/model/cross.py)."""
    cross_layers: int = 2
    """Layers of the cross network."""
    cross_rank: int = 32
    """Rank of the low-rank forms."""
    cross_experts: int = 4
    """Experts of the low-rank mixture."""
    deep_dims: list[int] = field(default_factory=lambda: [64, 32, 16])
    """Hidden widths of the final MLP."""
    similarity_tiers: int = 0
    """Tiers of the histogram of similarities between the item and the history, per modality
    (SimTier); 0: none. Needs frozen tables held whole (plan.replicate_modality_bytes)."""
    similarity_histories: list[str] = field(default_factory=lambda: ["history"])
    """Histories that get such a histogram each; `history_negative`, of negatives, needs
    data.history.negative_length."""
    second_order: bool = False
    """Add the products of all user vectors with all item vectors to the logit (a factorization
    machine across the sides, modalities included): for small logs with many features."""
    dropout: float = 0.0
    """Share of activations dropped in towers and final MLP."""
    projection_dropout: float | None = None
    """The same of the item's projected modality vectors; null: as `dropout`."""
    umcm_dropout: float = 0.0
    """Share of the modality weights dropped in training; of the form `attention`, alone or in
    `mixture`."""
    user_activation: bool = False
    """The user tower ends as its other layers do (batch norm, ReLU, dropout), as in the authors'
    code; false: in a linear layer, so that u . m_k can be negative."""
    batch_norm: bool = False
    """Batch norm in towers and final MLP."""


class UmairFps(nn.Module):
    """The dense part of UMAIR-FPS (arXiv 2402.10381).

    u = MLP(x); m_1 = MLP(y); m_k = ReLU(W_k e_k + b_k); c, a = UMCM(u, m);
    z = [c ; u ; u . m_k]; logit = w . MLP(cross(z)) + b + v . (u . m_k) + q . p.

    Two terms are ours. The match u . m_k (`match`): the softmax of the attention keeps only how the
    modalities compare, and forgets whether the user likes any of them. The second-order term q . p
    (`second_order`, see SecondOrder): what small data says plainly need not pass through towers.
    Beyond the paper too: histograms of similarities between the item and the history join z, and e_k may
    be the principal components of a vector (`modality_components`).
    """

    def __init__(self, config: UmairFpsConfig, sizes: InputSizes):
        """Without item features there is no m_1; without modalities, neither c nor a match."""
        super().__init__()
        dim = config.tower_dims[-1]
        self.components = build_components(sizes.modality_dims, config.modality_components)
        if self.components is not None:
            sizes = replace(sizes, modality_dims=self.components.dims)
        self.projections = Projections(
            modality_dims=sizes.modality_dims,
            interests=sizes.interests,
            dim=dim,
            shared_projection=config.shared_projection,
        )
        self.user_tower = Tower(
            in_dim=sizes.user_dim + self.projections.interest_dim,
            hidden_dims=config.tower_dims,
            activation_on_last=config.user_activation,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        )
        self.item_tower = (
            Tower(
                in_dim=sizes.item_dim,
                hidden_dims=config.tower_dims,
                dropout=config.dropout,
                batch_norm=config.batch_norm,
            )
            if sizes.item_dim
            else None
        )
        has_products = config.second_order and sizes.vector_dim
        self.second_order = SecondOrder(sizes) if has_products else None
        dropped = config.projection_dropout
        self.dropout = Dropout(config.dropout if dropped is None else dropped)
        self.modality_names = [SPARSE_MODALITY] * bool(sizes.item_dim) + list(sizes.modality_dims)
        num_modalities = len(self.modality_names)
        self.umcm = UMCM_FORMS[config.umcm](
            num_modalities=num_modalities, dim=dim, dropout=config.umcm_dropout
        )
        num_matches = num_modalities if config.match else 0
        self.match = nn.Linear(num_matches, 1, bias=False) if num_matches else None
        if self.match is not None:
            # All positive: with random signs the softmax points away from a user's likes at some seeds.
            nn.init.constant_(self.match.weight, num_modalities**-0.5)
        fused_dim = self.umcm.out_dim if num_modalities else 0
        cross_dim = dim + fused_dim + num_matches + sizes.similarity_dim
        self.cross = build_cross(
            form=config.cross,
            in_dim=cross_dim,
            num_layers=config.cross_layers,
            rank=config.cross_rank,
            num_experts=config.cross_experts,
        )
        self.deep = Tower(
            in_dim=cross_dim,
            hidden_dims=config.deep_dims,
            dropout=config.dropout,
            batch_norm=config.batch_norm,
        )
        self.logit = nn.Linear(self.deep.out_dim, 1)

    def forward(self, inputs: DenseInputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], modality weights [B, M])."""
        interests, modalities = inputs.interests, inputs.modalities
        if self.components is not None:
            interests = self.components.interests(self.projections.interests, interests)
            modalities = self.components.items(modalities)
        user_BX, projected = self.projections.both(inputs.user_BX, interests, modalities)
        if self.item_tower is None:
            (user_BH,), item_BH = run_towers([self.user_tower], [user_BX]), None
        else:
            towers = [self.user_tower, self.item_tower]
            user_BH, item_BH = run_towers(towers, [user_BX, inputs.item_BY])
        user = self._user_side(inputs.user_BX, user_BH)
        item = self._item_side(inputs.item_BY, item_BH, modalities, projected)
        return self.combine(user, item, inputs.similarity_BS)

    def user_side(
        self, user_BX: torch.Tensor, interests: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> UserSide:
        """Return what depends on the user alone.

        Args:
            user_BX: user features and context [B, X].
            interests: interest vectors [B, E] and whether the history holds any [B], as in DenseInputs.
        """
        if self.components is not None:
            interests = self.components.interests(self.projections.interests, interests)
        user_BH = self.user_tower(self.projections.user(user_BX, interests))
        return self._user_side(user_BX, user_BH)

    def _user_side(self, user_BX: torch.Tensor, user_BH: torch.Tensor) -> UserSide:
        """Return the user's half of features [B, X] and the tower's output u [B, H]."""
        if self.second_order is None:
            return UserSide(user_BH=user_BH, query_BD=user_BH[:, :0])
        return UserSide(user_BH=user_BH, query_BD=self.second_order.user(user_BX))

    def item_side(self, item_BY: torch.Tensor, modalities: Mapping[str, Vector]) -> ItemSide:
        """Return what depends on the item alone.

        Args:
            item_BY: the item's features [B, Y].
            modalities: the item's vector [B, E] and whether it has one [B], by modality.
        """
        if self.components is not None:
            modalities = self.components.items(modalities)
        item_BH = None if self.item_tower is None else self.item_tower(item_BY)
        return self._item_side(item_BY, item_BH, modalities, self.projections.items(modalities))

    def _item_side(
        self,
        item_BY: torch.Tensor,
        item_BH: torch.Tensor | None,
        modalities: Mapping[str, Vector],
        projected: Sequence[Vector],
    ) -> ItemSide:
        """Return the item's half of features [B, Y], the tower's output m_1 [B, H], vectors [B, E] and
        projected ones [B, H].
        """
        vectors, present = [], []
        if item_BH is not None:
            vectors.append(item_BH)
            present.append(item_BY.new_ones(item_BY.shape[0]))
        for vector_BH, present_B in projected:
            vectors.append(self.dropout(vector_BH))
            present.append(present_B)
        if not vectors:
            nothing_BM = item_BY[:, :0]
            empty_BMD = nothing_BM[:, :, None]
            return ItemSide(vectors_BMH=empty_BMD, present_BM=nothing_BM, products_BMD=empty_BMD)
        vectors_BMH = torch.stack(vectors, dim=1)
        if self.second_order is None:
            products_BMD = vectors_BMH[:, :, :0]
        else:
            products_BMD = self.second_order.item(item_BY, modalities)
        return ItemSide(
            vectors_BMH=vectors_BMH,
            present_BM=torch.stack(present, dim=1),
            products_BMD=products_BMD,
        )

    def combine(
        self, user: UserSide, item: ItemSide, similarity_BS: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], modality weights [B, M]) of pairs of a user and an item.

        A presence between 0 and 1, or above 1, scales a modality's weight, match and second-order
        product.
        """
        user_BH, vectors_BMH, present_BM = user.user_BH, item.vectors_BMH, item.present_BM
        parts, weights_BM = [user_BH], user_BH[:, :0]
        direct_B = similarity_BS.new_zeros(similarity_BS.shape[0])
        if self.modality_names:
            fused_BC, weights_BM = self.umcm(user_BH, vectors_BMH, present_BM)
            parts.insert(0, fused_BC)
            if self.match is not None:
                match_BM = row_dots(user_BH, vectors_BMH) * present_BM
                parts.append(match_BM)
                direct_B = direct_B + self.match(match_BM)[:, 0]
        if self.second_order is not None:
            direct_B = direct_B + self.second_order(user.query_BD, item.products_BMD, present_BM)
        parts.append(similarity_BS)
        crossed_BN = self.cross(torch.cat(parts, dim=1))
        logits_B = self.logit(self.deep(crossed_BN))[:, 0]
        return logits_B + direct_B, weights_BM

    def user_vector(self, user: UserSide) -> torch.Tensor:
        """Return the user's vector of the direct term [B, R]: u beside q, as far as the terms are on.

        Its inner product with `item_vector` is v . (u . m) + q . p; [B, 0] without both terms.
        """
        parts = [user.user_BH[:, :0]]
        parts += [] if self.match is None else [user.user_BH]
        parts += [] if self.second_order is None else [user.query_BD]
        return torch.cat(parts, dim=1)

    def item_vector(self, item: ItemSide) -> torch.Tensor:
        """Return the item's vector of the direct term [B, R]: sum_k v_k m_k beside p."""
        parts = [item.present_BM[:, :0]]
        if self.match is not None:
            scaled_BM = item.present_BM * self.match.weight[0]
            parts.append(torch.einsum("bm,bmh->bh", scaled_BM, item.vectors_BMH))
        if self.second_order is not None:
            parts.append(torch.einsum("bm,bmd->bd", item.present_BM, item.products_BMD))
        return torch.cat(parts, dim=1)
