"""User-aware multi-modal contribution measurement (UMCM): how much each modality counts, per user.

UMAIR-FPS, arXiv 2402.10381. Every form maps a user vector and M modality vectors of the *same row*
to one fused vector and M weights that sum to 1; a masked modality has weight 0. (The authors'
released attention matches a rank-2 query against rank-3 values and so averages over the users of
the batch; ours attends per row.)
Shapes: B rows, M modalities, H width.
"""

import torch
from torch import nn

from recsys.model.dropout import Dropout
from recsys.model.row_products import row_dots, row_sums


def masked_softmax(scores_BM: torch.Tensor, present_BM: torch.Tensor) -> torch.Tensor:
    """Softmax over the modalities that are there: weights [B, M], 0 where `present_BM` is 0.

    A row without any modality gets all zeros.
    """
    scores_BM = scores_BM.masked_fill(present_BM == 0, torch.finfo(scores_BM.dtype).min)
    # The softmax of an all-masked row is uniform; the product makes it zero.
    return torch.softmax(scores_BM, dim=1) * present_BM


class Fusion(nn.Module):
    """A form of the UMCM: user vector and modality vectors in, fused vector and weights out."""

    out_dim: int
    """Width C of the fused vector."""

    def __init__(self, *, num_modalities: int, dim: int, dropout: float = 0.0):
        """Args: dim: width H of user and modality vectors, and of the fused one unless a form says so.
        dropout: share of the weights dropped in training; of the forms with attention.
        """
        super().__init__()
        self.out_dim = dim


class AttentionUMCM(Fusion):
    """a_k = softmax_k(u . m_k), c = sum_k a_k m_k."""

    def __init__(self, *, num_modalities: int, dim: int, dropout: float = 0.0):
        """Attention has no parameter; the sizes are taken to fit the other forms.

        Args: dropout: share of the weights a_k dropped from c in training, the others scaled up.
        """
        super().__init__(num_modalities=num_modalities, dim=dim)
        self.dropout = Dropout(dropout)

    def forward(
        self, user_BH: torch.Tensor, modalities_BMH: torch.Tensor, present_BM: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (fused [B, H], weights [B, M])."""
        scores_BM = row_dots(user_BH, modalities_BMH)
        weights_BM = masked_softmax(scores_BM, present_BM)
        kept_BM = self.dropout(weights_BM)
        return row_sums(kept_BM, modalities_BMH), weights_BM


class SenetUMCM(Fusion):
    """Squeeze and excite, steered by the user.

    s_k = mean_d m_k[d]; h = ReLU(W1 s) * u; a = softmax(W2 h); c = mean_k a_k m_k, the mean taken
    over the modalities that are there.
    """

    def __init__(self, *, num_modalities: int, dim: int, dropout: float = 0.0):
        """W1 maps M squeezed values to the user's width, W2 back to M scores."""
        super().__init__(num_modalities=num_modalities, dim=dim)
        self.squeeze = nn.Linear(num_modalities, dim)
        self.excite = nn.Linear(dim, num_modalities)

    def forward(
        self, user_BH: torch.Tensor, modalities_BMH: torch.Tensor, present_BM: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (fused [B, H], weights [B, M])."""
        squeezed_BM = modalities_BMH.mean(dim=2) * present_BM
        hidden_BH = torch.relu(self.squeeze(squeezed_BM)) * user_BH
        weights_BM = masked_softmax(self.excite(hidden_BH), present_BM)
        count_B1 = present_BM.sum(dim=1, keepdim=True).clamp_min(1.0)
        return row_sums(weights_BM, modalities_BMH) / count_B1, weights_BM


class MixtureUMCM(Fusion):
    """Attention and senet side by side: g = softmax_j(u . c_j), c = sum_j g_j c_j, likewise a."""

    def __init__(self, *, num_modalities: int, dim: int, dropout: float = 0.0):
        """One expert of each form; dropout: of the attention's weights."""
        super().__init__(num_modalities=num_modalities, dim=dim)
        self.experts = nn.ModuleList(
            form(num_modalities=num_modalities, dim=dim, dropout=dropout)
            for form in (AttentionUMCM, SenetUMCM)
        )

    def forward(
        self, user_BH: torch.Tensor, modalities_BMH: torch.Tensor, present_BM: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (fused [B, H], weights [B, M])."""
        outputs = [expert(user_BH, modalities_BMH, present_BM) for expert in self.experts]
        fused_BJH = torch.stack([fused for fused, _ in outputs], dim=1)
        weights_BJM = torch.stack([weights for _, weights in outputs], dim=1)
        gate_BJ = torch.softmax(row_dots(user_BH, fused_BJH), dim=1)
        fused_BH = row_sums(gate_BJ, fused_BJH)
        return fused_BH, row_sums(gate_BJ, weights_BJM)


class GlobalUMCM(Fusion):
    """The same measurement for everybody: a = softmax(s) with learned s, c = sum_k a_k m_k.

    An ablation: the loss against the other forms is the value of user awareness.
    """

    def __init__(self, *, num_modalities: int, dim: int, dropout: float = 0.0):
        """One score a modality."""
        super().__init__(num_modalities=num_modalities, dim=dim)
        self.scores = nn.Parameter(torch.zeros(1, num_modalities))

    def forward(
        self, user_BH: torch.Tensor, modalities_BMH: torch.Tensor, present_BM: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (fused [B, H], weights [B, M])."""
        weights_BM = masked_softmax(self.scores.expand_as(present_BM), present_BM)
        return row_sums(weights_BM, modalities_BMH), weights_BM


class ConcatUMCM(Fusion):
    """No measurement: the modalities side by side, every one that is there with equal weight."""

    def __init__(self, *, num_modalities: int, dim: int, dropout: float = 0.0):
        """Concatenation has no parameter."""
        super().__init__(num_modalities=num_modalities, dim=dim)
        self.out_dim = num_modalities * dim

    def forward(
        self, user_BH: torch.Tensor, modalities_BMH: torch.Tensor, present_BM: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (fused [B, M * H], weights [B, M])."""
        kept_BMH = modalities_BMH * present_BM[:, :, None]
        weights_BM = present_BM / present_BM.sum(dim=1, keepdim=True).clamp_min(1.0)
        return kept_BMH.flatten(start_dim=1), weights_BM


UMCM_FORMS: dict[str, type[Fusion]] = {
    "attention": AttentionUMCM,
    "senet": SenetUMCM,
    "mixture": MixtureUMCM,
    "global": GlobalUMCM,
    "concat": ConcatUMCM,
}
