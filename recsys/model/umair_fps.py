"""UMAIR-FPS (arXiv 2402.10381): towers, user-aware fusion (UMCM), DCN-V2, MLP, logit.

Shapes: B rows, D table width, E modality width, M modalities, H tower width, N input of the cross.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from recsys.model.config import RankerConfig
from recsys.model.cross import CROSS_FORMS, build_cross
from recsys.model.fusion import UMCM_FORMS
from recsys.model.inputs import DenseInputs, InputSizes
from recsys.model.mlp import Tower
from recsys.model.projections import Projections

SPARSE_MODALITY = "ids"
"""Name of the modality made of the item's sparse features, beside semantic, style and text."""


class SecondOrder(nn.Module):
    """q . p: every vector of the user side against every vector of the item side.

    q = sum of the user's feature vectors,
    p = sum of the item's feature vectors + sum_m P_m e_m (modalities).
    The second-order term of a factorization machine (Rendle 2010) across the two sides, where image
    and text vectors enter as real-valued features: small data is learned through it first.
    """

    def __init__(self, *, dim: int, modality_dims: Mapping[str, int]):
        """Args: dim: width D of the feature vectors."""
        super().__init__()
        self.dim = dim
        self.items = nn.ModuleDict({
            name: nn.Linear(width, dim, bias=False) for name, width in modality_dims.items()
        })
        for parameter in self.items.parameters():
            nn.init.normal_(parameter, std=0.002)

    def forward(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the term [B]; a masked modality adds nothing to the item's side."""
        # Every feature vector is D wide: [B, F * D] is [B, F, D].
        user_BD = inputs.user_BX.unflatten(1, (-1, self.dim)).sum(dim=1)
        item_BD = inputs.item_BY.unflatten(1, (-1, self.dim)).sum(dim=1)
        for name, linear in self.items.items():
            vector_BE, present_B = inputs.modalities[name]
            item_BD = item_BD + linear(vector_BE) * present_B[:, None]
        return (user_BD * item_BD).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class UmairFpsConfig(RankerConfig):
    """Settings of UMAIR-FPS beside those that all rankers share."""

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **RankerConfig.CHOICES,
        "umcm": tuple(UMCM_FORMS),
        "cross": CROSS_FORMS,
    }
    """Forms of the fusion and of the cross network."""
    MAY_BE_ZERO: ClassVar[tuple[str, ...]] = ("similarity_tiers",)
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
    Beyond the paper too: histograms of similarities between the item and the history join z.
    """

    def __init__(self, config: UmairFpsConfig, sizes: InputSizes):
        """Without item features there is no m_1; without modalities, neither c nor a match."""
        super().__init__()
        dim = config.tower_dims[-1]
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
        self.second_order = (
            SecondOrder(dim=sizes.vector_dim, modality_dims=sizes.modality_dims)
            if config.second_order and sizes.vector_dim
            else None
        )
        dropped = config.projection_dropout
        self.dropout = nn.Dropout(config.dropout if dropped is None else dropped)
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
        user_BH = self.user_tower(self.projections(inputs))
        vectors, present = [], []
        if self.item_tower is not None:
            vectors.append(self.item_tower(inputs.item_BY))
            present.append(torch.ones_like(inputs.first_order_B))
        for vector_BH, present_B in self.projections.items(inputs):
            vectors.append(self.dropout(vector_BH))
            present.append(present_B)
        parts, weights_BM = [user_BH], user_BH[:, :0]
        direct_B = torch.zeros_like(inputs.first_order_B)
        if vectors:
            vectors_BMH, present_BM = torch.stack(vectors, dim=1), torch.stack(present, dim=1)
            fused_BC, weights_BM = self.umcm(user_BH, vectors_BMH, present_BM)
            parts.insert(0, fused_BC)
            if self.match is not None:
                match_BM = torch.einsum("bh,bmh->bm", user_BH, vectors_BMH) * present_BM
                parts.append(match_BM)
                direct_B = direct_B + self.match(match_BM)[:, 0]
        if self.second_order is not None:
            direct_B = direct_B + self.second_order(inputs)
        parts.append(inputs.similarity_BS)
        crossed_BN = self.cross(torch.cat(parts, dim=1))
        logits_B = self.logit(self.deep(crossed_BN))[:, 0]
        return logits_B + direct_B, weights_BM
