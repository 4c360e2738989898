"""Binary cross-entropy with one stated normaliser. Shapes: B rows of this rank."""

import torch
import torch.nn.functional as F


def bce_loss(
    logits_B: torch.Tensor, labels_B: torch.Tensor, weights_B: torch.Tensor, mean_rows: float
) -> torch.Tensor:
    """Return sum_i w_i BCE(logit_i, label_i) / mean_rows, a scalar.

    The normaliser counts rows and not their weights: weights of mean 1 keep the scale of the loss.
    `mean_rows` is the number of real rows of the *global* batch divided by the number of ranks.
    DDP averages dense gradients over ranks and TorchRec divides those of sharded tables by the
    number of ranks, so both end up as the gradient of the mean over the global batch, whatever
    share of its real rows this rank holds.
    """
    loss_B = F.binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")
    return (loss_B * weights_B).sum() / mean_rows
