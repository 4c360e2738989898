"""The UMAIR-FPS ranker: towers, UMCM, DCN-V2, logit. Also what every ranker shares.

What enters: a Batch of ids. What leaves: the loss and per-row logits and modality weights.
Built by `build_ranker` (called from launch/), sharded by recsys/distributed.
Shapes: B rows, D table width, E modality width, M modalities, H tower width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import record_function

from recsys.batch import Batch
from recsys.errors import UserError
from recsys.model.cross import build_cross
from recsys.model.fusion import UMCM_FORMS
from recsys.model.history import SimilarityTiers
from recsys.model.linear import joined
from recsys.model.loss import bce_loss
from recsys.model.mlp import Tower
from recsys.model.modality import ModalityTables
from recsys.model.tables import FeatureColumns, build_tables
from recsys.schema import FeatureSpec, Manifest, TableSpec

DENSE_PRECISIONS = ("fp32", "tf32", "bf16")
SPARSE_MODALITY = "ids"
"""Name of the modality made of the item's sparse features, beside semantic, style and text."""


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Architecture of a ranker; presets in configs/model/."""

    REMOVED: ClassVar[Mapping[str, tuple[Any, str]]] = {
        "two_streams": (
            False,
            "it brought no gain (LOG.md, 2026-11-26); model=finalmlp is the ranker of two streams",
        ),
        "history_attention": (
            False,
            "it brought no gain (LOG.md, 2026-11-26); model.similarity_tiers=16 compares the item with "
            "the history's items",
        ),
    }
    """Keys of earlier versions: off value, and what does their job now (recsys.config)."""
    name: str = "umair_fps"
    """`umair_fps`, or a baseline of recsys/model/baselines."""
    features: list[str] | None = None
    """Sparse features to read; null: all of the manifest."""
    exclude_features: list[str] = field(default_factory=list)
    """Sparse features to leave out of `features`."""
    modalities: list[str] = field(default_factory=lambda: ["semantic", "style", "text"])
    """Item modalities to read; those without features in the workspace are left out."""
    interest_modalities: list[str] = field(default_factory=lambda: ["text"])
    """Modalities pooled over the history into interest vectors; the paper uses text alone."""
    shared_projection: bool = True
    """Interest vectors pass the item's own projection W_m (fewer weights, one space for taste and
    item); false: raw into the user tower, as in the paper."""
    match: bool = True
    """Feed the match u . m_k of user and modality, as it is before the softmax, to the final layers
    beside the fused vector; false: the fused vector alone, as in the paper."""
    embedding_dim: int = 16
    """Stored width of every table, a multiple of 4; the last column is the first-order weight."""
    table_dims: dict[str, int] = field(default_factory=dict)
    """Width of single tables that differ, by table name."""
    half_tables: list[str] = field(default_factory=list)
    """Trainable tables held in half precision (fp16): half the memory, optimizer state in fp32."""
    embedding_init: float = 0.01
    """Tables start uniform in plus or minus this."""
    tower_dims: list[int] = field(default_factory=lambda: [128, 64])
    """Hidden widths of the user tower and of the item's id tower; the last is the UMCM width H."""
    umcm: str = "attention"
    """Fusion: `attention`, `senet`, `mixture`, `global` (equal for all users), or `concat` (no
    measurement)."""
    cross: str = "low_rank_mixture"
    """Cross network: `low_rank_mixture`, `low_rank`, `full` or `none`."""
    cross_layers: int = 2
    """Layers of the cross network; of a baseline's CIN or attention, or its mask blocks."""
    cross_heads: int = 2
    """Attention heads of AutoInt; parts into which FinalMLP's streams are cut for their product."""
    cross_width: int = 16
    """Width of a baseline's layer: CIN's feature maps, an attention head, a mask block, a gate."""
    cross_rank: int = 32
    """Rank of the low-rank forms."""
    cross_experts: int = 4
    """Experts of the low-rank mixture."""
    deep_dims: list[int] = field(default_factory=lambda: [64, 32, 16])
    """Hidden widths of the final MLP (of FinalMLP: the first stream)."""
    second_deep_dims: list[int] = field(default_factory=list)
    """Hidden widths of FinalMLP's second stream; empty: those of the first."""
    similarity_tiers: int = 0
    """Tiers of the histogram of similarities between the item and the history, per modality
    (SimTier); 0: none. Needs frozen tables held whole (plan.replicate_modality_bytes)."""
    first_order: bool = True
    """Add a first-order weight of every sparse feature to the logit."""
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
    dense_precision: str = "fp32"
    """Of the dense part's matrix products: `fp32`; `tf32` (NVIDIA GPU: fp32 with a short mantissa);
    `bf16` (autocast; GPU, or a CPU with avx512_bf16 or AMX). Weights and tables stay fp32."""


class RankerInputs(nn.Module):
    """The trainable and the frozen tables: a batch of ids in, named dense inputs out."""

    def __init__(
        self,
        *,
        tables: Sequence[TableSpec],
        features: Sequence[FeatureSpec],
        num_item_rows: int,
        modality_dims: Mapping[str, int],
        interest_modalities: Sequence[str],
        history_features: Sequence[str],
        embedding_dim: int,
        table_dims: Mapping[str, int],
        half_tables: Sequence[str],
        first_order: bool,
        similarity_tiers: int = 0,
    ):
        """Args: modality_dims: vector width E of every modality in use; may be empty.
        similarity_tiers: of the histogram over the first history; 0, or no history or modality: none.
        """
        super().__init__()
        self.embeddings = build_tables(
            tables=tables,
            features=features,
            embedding_dim=embedding_dim,
            table_dims=table_dims,
            half_tables=half_tables,
        )
        dims = {c.name: c.embedding_dim for c in self.embeddings.embedding_bag_configs()}
        user_side = [f for f in features if f.side != "item"]
        item_side = [f for f in features if f.side == "item"]
        self.user_columns = FeatureColumns(features=user_side, dims=dims, first_order=first_order)
        self.item_columns = FeatureColumns(features=item_side, dims=dims, first_order=first_order)
        self.modality_dims = dict(modality_dims)
        self.interests = [
            (modality, feature)
            for modality in modality_dims
            if modality in interest_modalities
            for feature in history_features
        ]
        has_history = bool(modality_dims) and bool(history_features)
        self.similarity = (
            SimilarityTiers(modality_dims=modality_dims, num_tiers=similarity_tiers)
            if similarity_tiers and has_history
            else None
        )
        self.modality = (
            ModalityTables(
                dims=modality_dims,
                num_rows=num_item_rows,
                item_feature="item_id",
                history_features=history_features if self.interests else [],
                sequence_feature=history_features[0] if self.similarity is not None else None,
            )
            if modality_dims
            else None
        )

    @property
    def user_dim(self) -> int:
        """Width of the user's sparse features and context, interests not counted."""
        return self.user_columns.out_dim

    @property
    def num_features(self) -> int:
        """Sparse features of both sides."""
        return len(self.user_columns.feature_names) + len(self.item_columns.feature_names)

    @property
    def field_dim(self) -> int:
        """Common width of the feature vectors; 0 where widths differ."""
        widths = {*self.user_columns.feature_dims, *self.item_columns.feature_dims}
        return widths.pop() if len(widths) == 1 else 0

    @property
    def vector_dim(self) -> int:
        """Width of the feature vectors; 0 where a side lacks features or widths differ."""
        both = self.user_columns.feature_names and self.item_columns.feature_names
        return self.field_dim if both else 0

    @property
    def item_dim(self) -> int:
        """Width of the item's sparse input y."""
        return self.item_columns.out_dim

    @property
    def similarity_dim(self) -> int:
        """Width S of the similarity histograms; 0 without."""
        return 0 if self.similarity is None else self.similarity.out_dim

    def forward(self, batch: Batch) -> "DenseInputs":
        """Look everything up: [B, user_dim], [B, item_dim], interests and items [B, E], [B]."""
        embeddings = self.embeddings(batch.sparse)
        user_BD, user_first_order_B = self.user_columns(embeddings, batch.sparse)
        item_BD, item_first_order_B = self.item_columns(embeddings, batch.sparse)
        items: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        interests: list[tuple[torch.Tensor, torch.Tensor]] = []
        first_order_B = user_first_order_B + item_first_order_B
        similarity_BS = first_order_B[:, None][:, :0]
        if self.modality is not None:
            looked_up = self.modality(batch.sparse)
            items = {name: looked_up[name]["item_id"] for name in self.modality_dims}
            # Indexed, not unpacked: the pipeline traces this method with symbolic tensors.
            interests = [
                (looked_up[m][feature][0], looked_up[m][feature][1])
                for m, feature in self.interests
            ]
            if self.similarity is not None:
                similarity_BS = self.similarity(self.modality.sequence(batch.sparse), items)
        return DenseInputs(
            user_BX=user_BD,
            item_BY=item_BD,
            modalities=items,
            interests=interests,
            first_order_B=first_order_B,
            similarity_BS=similarity_BS,
        )


@dataclass
class DenseInputs:
    """Inputs of the dense part of a ranker; tensors only, of B rows each."""

    user_BX: torch.Tensor
    """User features and context, concatenated."""
    item_BY: torch.Tensor
    """The item's sparse features, concatenated."""
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


class Projections(nn.Module):
    """One linear map W_m per modality into a common width, for items and, shared, for interests."""

    def __init__(
        self,
        *,
        modality_dims: Mapping[str, int],
        interests: Sequence[str],
        dim: int,
        shared_projection: bool,
    ):
        """Args: interests: modality of every interest vector, in order; dim: the common width H."""
        super().__init__()
        self.linear = nn.ModuleDict({
            name: nn.Linear(width, dim) for name, width in modality_dims.items()
        })
        self.shared_projection = shared_projection
        self.interests = list(interests)
        self.interest_dim = sum(dim if shared_projection else modality_dims[m] for m in interests)

    def items(self, inputs: DenseInputs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return (ReLU(W_m e_m + b_m) [B, H], present [B]) of every modality, in order."""
        projected = []
        for name, linear in self.linear.items():
            vector_BE, present_B = inputs.modalities[name]
            projected.append((torch.relu(linear(vector_BE)), present_B))
        return projected

    def forward(self, inputs: DenseInputs) -> torch.Tensor:
        """Return the user input x [B, X]: user features beside the interest vectors.

        An empty history is a zero vector.
        """
        parts = [inputs.user_BX]
        for name, (vector_BE, present_B) in zip(self.interests, inputs.interests, strict=True):
            if self.shared_projection:
                vector_BE = self.linear[name](vector_BE) * present_B[:, None]
            parts.append(vector_BE)
        return joined(parts)


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


@dataclass
class Scores:
    """What a ranker says of a batch; all tensors detached."""

    loss: torch.Tensor
    """This rank's loss, a scalar; the mean over ranks is the mean over the global batch."""
    logits_B: torch.Tensor
    weights_BM: torch.Tensor
    """UMCM weights in the order of `modality_names`; M is 0 for a ranker that measures none."""
    global_rows: int
    """Real rows of the global batch."""


class Ranker(nn.Module):
    """Inputs and dense part put together; the module that is sharded and trained."""

    def __init__(self, *, inputs: RankerInputs, dense: nn.Module, dense_precision: str = "fp32"):
        """Args: dense: maps DenseInputs to (logits [B], weights [B, M]) and has `modality_names`.

        Raises:
            UserError: unknown dense_precision.
        """
        super().__init__()
        if dense_precision not in DENSE_PRECISIONS:
            raise UserError(
                f"model.dense_precision={dense_precision!r}: expected one of "
                f"{', '.join(DENSE_PRECISIONS)}"
            )
        self.inputs = inputs
        self.dense = dense
        self.modality_names: list[str] = list(dense.modality_names)  # type: ignore[arg-type]
        self.use_bf16 = dense_precision == "bf16"
        self.mixes_rows = any(isinstance(module, nn.BatchNorm1d) for module in dense.modules())

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Scores]:
        """Return (loss [], Scores with logits [B] and weights [B, M])."""
        with record_function("## lookup ##"):
            inputs = self.inputs(batch)
        # Padding must not count in the statistics of a batch. Without any, rows do not meet, and are
        # scored as they are: the shapes of all steps stay equal.
        without_padding = self.mixes_rows and self.training
        seen = inputs.first(batch.num_real) if without_padding else inputs
        # Asked of a parameter: the pipeline traces this method with a symbolic batch.
        device_type = next(self.dense.parameters()).device.type
        with (
            record_function("## dense ##"),
            torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.use_bf16),
        ):
            logits_B, weights_BM = self.dense(seen)
        if without_padding:
            num_padding = batch.labels_B.shape[0] - batch.num_real
            logits_B = F.pad(logits_B, (0, num_padding))
            weights_BM = F.pad(weights_BM, (0, 0, 0, num_padding))
        logits_B = logits_B.float() + inputs.first_order_B
        loss = bce_loss(logits_B, batch.labels_B, batch.weights_B, batch.mean_rows)
        scores = Scores(
            loss=loss.detach(),
            logits_B=logits_B.detach(),
            weights_BM=weights_BM.detach().float(),
            global_rows=batch.global_rows,
        )
        return loss, scores


def select_features(manifest: Manifest, config: RankerConfig) -> list[FeatureSpec]:
    """Return the features the ranker reads, in manifest order.

    Raises:
        UserError: the config names a feature that the manifest does not have.
    """
    known = [f.name for f in manifest.features]
    named = list(config.features or []) + list(config.exclude_features)
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise UserError(
            f"model.features / model.exclude_features name {', '.join(unknown)}; the data set "
            f"{manifest.name!r} has {', '.join(known)}"
        )
    wanted = set(known if config.features is None else config.features)
    wanted -= set(config.exclude_features)
    if not wanted:
        raise UserError("model.features leaves no feature; name at least one")
    return [f for f in manifest.features if f.name in wanted]
