"""Scorer and Ranker: a model's score of every row, and the loss that trains it.

Built by recsys/model/build.py, sharded by recsys/sharding. The sparse half is RankerInputs, the dense
half UMAIR-FPS or a baseline.
Shapes: B rows, M modalities.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import record_function

from recsys.batch import Batch, Features
from recsys.model.inputs import LookedUp, RankerInputs
from recsys.model.loss import bce_loss


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
        dense_precision: one of recsys.model.config.DENSE_PRECISIONS.
        """
        super().__init__()
        self.inputs = inputs
        self.dense = dense
        self.modality_names: list[str] = list(dense.modality_names)  # type: ignore[arg-type]
        self.use_bf16 = dense_precision == "bf16"
        self.mixes_rows = any(isinstance(module, nn.BatchNorm1d) for module in dense.modules())
        self.compiled: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None
        """`score`, compiled for training (recsys/sharding/compilation.py); None: it is not."""

    def forward(
        self, features: Features, num_real: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [B], weights [B, M]).

        Args:
            num_real: rows before the padding; None: all. Batch norm in training sees these alone; the
                weights of padding are then zero, and its logits mean nothing.
        """
        with record_function("## lookup ##"):
            looked_up = self.inputs.look_up(features)
        # Padding must not count in the statistics of a batch. Without any, rows do not meet, and are
        # scored as they are: the shapes of all steps stay equal.
        num_seen = num_real if self.mixes_rows and self.training else None
        # The pipeline traces this method with symbolic features, for its lookups alone.
        is_symbolic = isinstance(looked_up.sparse, torch.fx.Proxy)
        score = self.compiled if self.training and not is_symbolic else None
        with record_function("## dense ##"):
            return (score or self.score)(looked_up, num_seen)

    def score(self, looked_up: LookedUp, num_seen: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `forward` does, of what the tables hold; num_seen: the first rows alone, or all."""
        inputs = self.inputs.columns(looked_up)
        seen = inputs if num_seen is None else inputs.first(num_seen)
        # Asked of a parameter: features may be symbolic.
        device_type = next(self.dense.parameters()).device.type
        with torch.autocast(device_type, dtype=torch.bfloat16, enabled=self.use_bf16):
            logits_B, weights_BM = self.dense(seen)
        if num_seen is not None:
            num_padding = inputs.first_order_B.shape[0] - num_seen
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
