"""UMAIR-FPS (arXiv 2402.10381): towers, user-aware fusion (UMCM), DCN-V2, MLP, logit.

Shapes: B rows, D table width, E modality width, M modalities, H tower width, N input of the cross.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from recsys.errors import UserError
from recsys.model.cross import build_cross
from recsys.model.fusion import UMCM_FORMS
from recsys.model.inputs import DenseInputs
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


class UmairFps(nn.Module):
    """The dense part of UMAIR-FPS (arXiv 2402.10381).

    u = MLP(x); m_1 = MLP(y); m_k = ReLU(W_k e_k + b_k); c, a = UMCM(u, m);
    z = [c ; u ; u . m_k]; logit = w . MLP(cross(z)) + b + v . (u . m_k) + q . p.

    Two terms are ours. The match u . m_k (`match`): the softmax of the attention keeps only how the
    modalities compare, and forgets whether the user likes any of them. The second-order term q . p
    (`second_order`, see SecondOrder): what small data says plainly need not pass through towers.
    Beyond the paper too: histograms of similarities between the item and the history join z.
    """

    def __init__(
        self,
        *,
        user_dim: int,
        item_dim: int,
        modality_dims: Mapping[str, int],
        interests: Sequence[str],
        shared_projection: bool,
        match: bool,
        second_order_dim: int,
        tower_dims: Sequence[int],
        umcm: str,
        cross: str,
        cross_layers: int,
        cross_rank: int,
        cross_experts: int,
        deep_dims: Sequence[int],
        dropout: float,
        batch_norm: bool,
        projection_dropout: float | None = None,
        umcm_dropout: float = 0.0,
        user_activation: bool = False,
        similarity_dim: int = 0,
    ):
        """Args: user_dim, item_dim: widths of sparse x and y; item_dim 0 leaves m_1 out.
        second_order_dim: width of the feature vectors; 0 leaves the second-order term out.
        similarity_dim: width of the similarity histograms, which join z.
        projection_dropout: of the projected modality vectors; None: as `dropout`.
        umcm_dropout: of the modality weights.
        user_activation: the user tower ends in an activation.

        Raises:
            UserError: unknown `umcm` or `cross`.
        """
        super().__init__()
        if umcm not in UMCM_FORMS:
            raise UserError(f"model.umcm={umcm!r}: expected one of {', '.join(UMCM_FORMS)}")
        dim = tower_dims[-1]
        self.projections = Projections(
            modality_dims=modality_dims,
            interests=interests,
            dim=dim,
            shared_projection=shared_projection,
        )
        self.user_tower = Tower(
            in_dim=user_dim + self.projections.interest_dim,
            hidden_dims=tower_dims,
            dropout=dropout,
            batch_norm=batch_norm,
            activation_on_last=user_activation,
        )
        self.item_tower = (
            Tower(in_dim=item_dim, hidden_dims=tower_dims, dropout=dropout, batch_norm=batch_norm)
            if item_dim
            else None
        )
        self.second_order = (
            SecondOrder(dim=second_order_dim, modality_dims=modality_dims)
            if second_order_dim
            else None
        )
        self.dropout = nn.Dropout(dropout if projection_dropout is None else projection_dropout)
        self.modality_names = [SPARSE_MODALITY] * bool(item_dim) + list(modality_dims)
        num_modalities = len(self.modality_names)
        self.umcm = UMCM_FORMS[umcm](num_modalities=num_modalities, dim=dim, dropout=umcm_dropout)
        self.match = nn.Linear(num_modalities, 1, bias=False) if match and num_modalities else None
        if self.match is not None:
            # From the start a larger u . m_k says that the user likes it, for every modality: with
            # random signs the softmax would point to what a user cares for from some seeds, and away
            # from it from others.
            nn.init.constant_(self.match.weight, num_modalities**-0.5)
        fused_dim = num_modalities * dim if umcm == "concat" else dim
        fused_dim = fused_dim if num_modalities else 0
        cross_dim = dim + fused_dim + similarity_dim
        cross_dim += num_modalities if self.match is not None else 0
        self.cross = build_cross(
            form=cross,
            in_dim=cross_dim,
            num_layers=cross_layers,
            rank=cross_rank,
            num_experts=cross_experts,
        )
        self.deep = Tower(
            in_dim=cross_dim, hidden_dims=deep_dims, dropout=dropout, batch_norm=batch_norm
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
