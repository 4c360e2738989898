"""Scorer and Ranker: a model's score of every row, and the loss that trains it.

Built by recsys/model/build.py, sharded by recsys/sharding. The sparse half is RankerInputs, the dense
half UMAIR-FPS or a baseline.
Shapes: B rows, M modalities.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import record_function

from recsys.batch import Batch, Features
from recsys.errors import UserError
from recsys.model.inputs import RankerInputs
from recsys.model.loss import bce_loss

DENSE_PRECISIONS = ("fp32", "tf32", "bf16")


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


@dataclass
class Scores:
    """A ranker's scores of a batch; all tensors detached."""

    loss: torch.Tensor
    """This rank's loss, a scalar; the mean over ranks is the mean over the global batch."""
    logits_B: torch.Tensor
    weights_BM: torch.Tensor
    """UMCM weights in the order of `modality_names`; M is 0 for a ranker that measures none."""
    global_rows: int
    """Real rows of the global batch."""


class Scorer(nn.Module):
    """A ranker without its loss: Features in, logits and modality weights out."""

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

    def forward(
        self, features: Features, num_real: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, M]).

        Args:
            num_real: rows before the padding; None: all. Batch norm in training sees these alone; the
                weights of padding are then zero, and its logits mean nothing.
        """
        with record_function("## lookup ##"):
            inputs = self.inputs(features)
        # Padding must not count in the statistics of a batch. Without any, rows do not meet, and are
        # scored as they are: the shapes of all steps stay equal.
        without_padding = self.mixes_rows and self.training and num_real is not None
        seen = inputs.first(num_real) if without_padding else inputs
        # Asked of a parameter: the pipeline traces this method with symbolic features.
        device_type = next(self.dense.parameters()).device.type
        with (
            record_function("## dense ##"),
            torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.use_bf16),
        ):
            logits_B, weights_BM = self.dense(seen)
        if without_padding:
            num_padding = inputs.first_order_B.shape[0] - num_real
            logits_B = F.pad(logits_B, (0, num_padding))
            weights_BM = F.pad(weights_BM, (0, 0, 0, num_padding))
        return logits_B.float() + inputs.first_order_B, weights_BM


class Ranker(nn.Module):
    """A Scorer and the loss of its logits; the module that is sharded and trained."""

    def __init__(self, scorer: Scorer):
        """The loss has no parameter."""
        super().__init__()
        self.scorer = scorer

    @property
    def inputs(self) -> RankerInputs:
        """The scorer's sparse half."""
        return self.scorer.inputs

    @property
    def dense(self) -> nn.Module:
        """The scorer's dense half."""
        return self.scorer.dense

    @property
    def modality_names(self) -> list[str]:
        """Names of the M modality weights; empty for a ranker that measures none."""
        return self.scorer.modality_names

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Scores]:
        """Return (loss [], Scores with logits [B] and weights [B, M])."""
        logits_B, weights_BM = self.scorer(batch.features, batch.num_real)
        loss = bce_loss(logits_B, batch.labels_B, batch.weights_B, batch.mean_rows)
        scores = Scores(
            loss=loss.detach(),
            logits_B=logits_B.detach(),
            weights_BM=weights_BM.detach().float(),
            global_rows=batch.global_rows,
        )
        return loss, scores
