"""The UMAIR-FPS ranker: towers, UMCM, DCN-V2, logit. Also what every ranker shares.

What enters: a Batch of ids. What leaves: the loss and per-row logits and modality weights.
Built by `build_ranker` (called from launch/), sharded by recsys/distributed.
Shapes: B rows, D table width, E modality width, M modalities, H tower width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from recsys.batch import Batch
from recsys.model.interaction import build_cross
from recsys.model.loss import bce_loss
from recsys.model.modality import ModalityTables
from recsys.model.sparse import FeatureColumns, build_tables
from recsys.model.towers import Tower
from recsys.model.umcm import UMCM_FORMS
from recsys.schema import FeatureSpec, Manifest, TableSpec

SPARSE_MODALITY = "ids"
"""Name of the modality made of the item's sparse features, beside semantic, style and text."""


@dataclass(frozen=True, kw_only=True)
class RankerConfig:
    """Architecture of a ranker; presets in configs/model/."""

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
    embedding_dim: int = 16
    """Stored width of every table, a multiple of 4; the last column is the first-order weight."""
    table_dims: dict[str, int] = field(default_factory=dict)
    """Width of single tables that differ, by table name."""
    tower_dims: list[int] = field(default_factory=lambda: [128, 64])
    """Hidden widths of the user tower and of the item's id tower; the last is the UMCM width H."""
    umcm: str = "attention"
    """Fusion: `attention`, `senet`, `mixture`, or `concat` (no measurement)."""
    cross: str = "low_rank_mixture"
    """Cross network: `low_rank_mixture`, `low_rank`, `full` or `none`."""
    cross_layers: int = 2
    """Layers of the cross network."""
    cross_rank: int = 32
    """Rank of the low-rank forms."""
    cross_experts: int = 4
    """Experts of the low-rank mixture."""
    deep_dims: list[int] = field(default_factory=lambda: [64, 32, 16])
    """Hidden widths of the final MLP."""
    first_order: bool = True
    """Add a first-order weight of every sparse feature to the logit."""
    dropout: float = 0.0
    """Share of activations dropped in towers and final MLP."""
    batch_norm: bool = False
    """Batch norm in towers and final MLP."""
    dense_precision: str = "fp32"
    """`fp32`, or `bf16`: autocast of the dense part (GPU)."""


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
        first_order: bool,
    ):
        """Args: modality_dims: vector width E of every modality in use; may be empty."""
        super().__init__()
        self.embeddings = build_tables(
            tables=tables, features=features, embedding_dim=embedding_dim, table_dims=table_dims
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
        self.modality = (
            ModalityTables(
                dims=modality_dims,
                num_rows=num_item_rows,
                item_feature="item_id",
                history_features=history_features if self.interests else [],
            )
            if modality_dims
            else None
        )

    @property
    def user_dim(self) -> int:
        """Width of the user input x."""
        return self.user_columns.out_dim + sum(self.modality_dims[m] for m, _ in self.interests)

    @property
    def item_dim(self) -> int:
        """Width of the item's sparse input y."""
        return self.item_columns.out_dim

    def forward(self, batch: Batch) -> "DenseInputs":
        """Look everything up: x [B, user_dim], y [B, item_dim], {modality: ([B, E], [B])}, [B]."""
        embeddings = self.embeddings(batch.sparse)
        user_BD, user_first_order_B = self.user_columns(embeddings)
        item_BD, item_first_order_B = self.item_columns(embeddings)
        items: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if self.modality is not None:
            looked_up = self.modality(batch.sparse)
            items = {name: looked_up[name]["item_id"] for name in self.modality_dims}
            interests = [looked_up[m][feature][0] for m, feature in self.interests]
            user_BD = torch.cat([user_BD, *interests], dim=1)
        return DenseInputs(
            user_BX=user_BD,
            item_BY=item_BD,
            modalities=items,
            first_order_B=user_first_order_B + item_first_order_B,
        )


@dataclass
class DenseInputs:
    """What the dense part of a ranker sees of a batch."""

    user_BX: torch.Tensor
    """User features, context and interest vectors, concatenated."""
    item_BY: torch.Tensor
    """The item's sparse features, concatenated."""
    modalities: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Per modality: the item's vector [B, E] and whether it has one [B]."""
    first_order_B: torch.Tensor
    """Sum of the first-order weights."""


class UmairFps(nn.Module):
    """The dense part of UMAIR-FPS (arXiv 2402.10381).

    u = MLP(x); m_1 = MLP(y); m_k = ReLU(W_k e_k + b_k); c, a = UMCM(u, m);
    z = [c ; u]; logit = w . MLP(cross(z)) + b.
    """

    def __init__(
        self,
        *,
        user_dim: int,
        item_dim: int,
        modality_dims: Mapping[str, int],
        tower_dims: Sequence[int],
        umcm: str,
        cross: str,
        cross_layers: int,
        cross_rank: int,
        cross_experts: int,
        deep_dims: Sequence[int],
        dropout: float,
        batch_norm: bool,
    ):
        """Args: user_dim, item_dim: widths of x and y; item_dim 0 leaves the id modality out.

        Raises:
            ValueError: unknown `umcm` or `cross`.
        """
        super().__init__()
        if umcm not in UMCM_FORMS:
            raise ValueError(f"model.umcm={umcm!r}: expected one of {', '.join(UMCM_FORMS)}")
        dim = tower_dims[-1]
        self.dim = dim
        self.user_tower = Tower(
            in_dim=user_dim,
            hidden_dims=tower_dims,
            dropout=dropout,
            batch_norm=batch_norm,
            activation_on_last=False,
        )
        self.item_tower = (
            Tower(in_dim=item_dim, hidden_dims=tower_dims, dropout=dropout, batch_norm=batch_norm)
            if item_dim
            else None
        )
        self.projections = nn.ModuleDict({
            name: nn.Linear(width, dim) for name, width in modality_dims.items()
        })
        self.dropout = nn.Dropout(dropout)
        self.modality_names = [SPARSE_MODALITY] * bool(item_dim) + list(modality_dims)
        num_modalities = len(self.modality_names)
        self.umcm = UMCM_FORMS[umcm](num_modalities=num_modalities, dim=dim)
        fused_dim = num_modalities * dim if umcm == "concat" else dim
        cross_dim = dim + (fused_dim if num_modalities else 0)
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
        user_BH = self.user_tower(inputs.user_BX)
        vectors, present = [], []
        if self.item_tower is not None:
            vectors.append(self.item_tower(inputs.item_BY))
            present.append(torch.ones_like(inputs.first_order_B))
        for name, projection in self.projections.items():
            vector_BE, present_B = inputs.modalities[name]
            vectors.append(self.dropout(torch.relu(projection(vector_BE))))
            present.append(present_B)
        if vectors:
            fused_BC, weights_BM = self.umcm(
                user_BH, torch.stack(vectors, dim=1), torch.stack(present, dim=1)
            )
            z_BZ = torch.cat([fused_BC, user_BH], dim=1)
        else:
            z_BZ, weights_BM = user_BH, user_BH.new_zeros(user_BH.shape[0], 0)
        logits_B = self.logit(self.deep(self.cross(z_BZ)))[:, 0]
        return logits_B, weights_BM


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
            ValueError: unknown dense_precision.
        """
        super().__init__()
        if dense_precision not in ("fp32", "bf16"):
            raise ValueError(f"model.dense_precision={dense_precision!r}: expected fp32 or bf16")
        self.inputs = inputs
        self.dense = dense
        self.modality_names: list[str] = list(dense.modality_names)  # type: ignore[arg-type]
        self.use_bf16 = dense_precision == "bf16"

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Scores]:
        """Return (loss [], Scores with logits [B] and weights [B, M])."""
        inputs = self.inputs(batch)
        # Asked of a parameter: the pipeline traces this method with a symbolic batch.
        device_type = next(self.dense.parameters()).device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.use_bf16):
            logits_B, weights_BM = self.dense(inputs)
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
        ValueError: the config names a feature that the manifest does not have.
    """
    known = [f.name for f in manifest.features]
    named = list(config.features or []) + list(config.exclude_features)
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ValueError(
            f"model.features / model.exclude_features name {', '.join(unknown)}; the data set "
            f"{manifest.name!r} has {', '.join(known)}"
        )
    wanted = set(known if config.features is None else config.features)
    wanted -= set(config.exclude_features)
    if not wanted:
        raise ValueError("model.features leaves no feature; name at least one")
    return [f for f in manifest.features if f.name in wanted]
