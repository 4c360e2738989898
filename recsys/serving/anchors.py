"""Anchor items: retrieval vectors for models whose logit has no inner product of user and item.

ANNCUR (Yadav et al., EMNLP 2022, arXiv 2210.12579): the logits of sampled users and all items are
factorised once, L = c_q + b_i + w_q . v_i; a request's w is the least-squares fit to the exact logits of
a few anchor items. Written at export, read by routes.py:

    routes/anchors.items.npy     float16 [N, R]: (v_i, b_i) of every item
    routes/anchors.rows.npy      int64 [A]: anchor items
    routes/anchors.fit.npy       float32 [A, R - 1]: anchor logits less b to w
    routes/anchors.users.npy     int64 [Q]: sampled users
    routes/anchors.fold.npy      float32 [Q, R]: left factors and c, for the vectors of added items

Shapes: Q sampled users, N item rows, K factors, R = K + 1, A anchors, U users.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer, Profile, Users
from recsys.bundle.spec import EXPORT_AGAIN
from recsys.bundle.tables import mapped
from recsys.files import read_array, write_array
from recsys.schema import UNKNOWN_ROW

NUM_FACTORS = 32
NUM_ANCHORS = 96
_MAX_USERS = 256
_MIN_USERS = 64
_MAX_PAIRS = 20_000_000
"""Logits computed at export: minutes of a core."""
_BLOCK_PAIRS = 16_384
_RIDGE = 1e-3


class Anchors:
    """Fitted anchors of one bundle."""

    def __init__(self, bundle: Bundle, scorer: BundleScorer):
        """Map the files.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        folder = bundle.folder / "routes"
        self._scorer = scorer
        self.items_NR = mapped(folder / "anchors.items.npy")
        self._rows_A, self._fit_AK, self._users_Q, self._fold_QR = (
            torch.from_numpy(read_array(folder / f"anchors.{part}.npy", EXPORT_AGAIN))
            for part in ("rows", "fit", "users", "fold")
        )
        self._bias_A = self.items_NR[self._rows_A][:, -1].float()

    def user_vectors(self, users: Users, dials: torch.Tensor | None) -> torch.Tensor:
        """Return the users' retrieval vectors [U, R], fitted to their logits of the anchor items."""
        num_users, num_anchors = users.num_users, len(self._rows_A)
        logits_P, _ = self._scorer.score(
            users,
            torch.arange(num_users).repeat_interleave(num_anchors),
            self._rows_A.repeat(num_users),
            dials,
        )
        rest_UA = logits_P.view(num_users, num_anchors) - self._bias_A
        return torch.cat([rest_UA @ self._fit_AK, torch.ones(num_users, 1)], dim=1)

    def vector_of(self, row: int) -> torch.Tensor:
        """Return the retrieval vector [R] of an item that was added at run time."""
        num_users = len(self._users_Q)
        logits_Q, _ = self._scorer.score(
            self._users, torch.arange(num_users), torch.full((num_users,), row), None
        )
        rest_Q = logits_Q - self._fold_QR[:, -1]
        bias = rest_Q.mean()
        return torch.cat([(rest_Q - bias) @ self._fold_QR[:, :-1], bias[None]])

    @cached_property
    def _users(self) -> Users:
        return self._scorer.encode([Profile(user_row=row) for row in self._users_Q.tolist()])


def write_anchors(
    bundle: Bundle, scorer: BundleScorer, progress: Callable[[int], None] = lambda pairs: None
) -> None:
    """Factorise the logits of sampled users and all items, and write the files.

    Args:
        progress: called with the number of pairs scored.
    """
    num_items, rng = len(bundle.items), np.random.default_rng(0)
    users_Q = _sampled_users(bundle, num_items, rng)
    users = scorer.encode([Profile(user_row=row) for row in users_Q.tolist()])
    logits_QN = _all_logits(scorer, users, num_items, progress)
    offset_Q = logits_QN.mean(dim=1)
    bias_N = (logits_QN - offset_Q[:, None]).mean(dim=0)
    rest_QN = logits_QN - offset_Q[:, None] - bias_N
    num_factors = min(NUM_FACTORS, len(users_Q) - 1)
    _, left_QQ = torch.linalg.eigh(rest_QN @ rest_QN.T)
    left_QK = left_QQ[:, -num_factors:]
    items_NR = torch.cat([rest_QN.T @ left_QK, bias_N[:, None]], dim=1)
    rows_A = _spread_rows(items_NR[:, :-1], NUM_ANCHORS)
    anchors_AK = items_NR[rows_A, :-1]
    # An intercept takes the user's own offset, which no order depends on.
    design_AR = torch.cat([anchors_AK, torch.ones(len(rows_A), 1)], dim=1)
    gram_RR = design_AR.T @ design_AR
    gram_RR += _RIDGE * gram_RR.diagonal().mean() * torch.eye(len(gram_RR))
    fit_AK = torch.linalg.solve(gram_RR, design_AR.T)[:-1].T
    parts = {
        "items": items_NR.numpy().astype(np.float16),
        "rows": rows_A.numpy(),
        "fit": fit_AK.contiguous().numpy(),
        "users": users_Q,
        "fold": torch.cat([left_QK, offset_Q[:, None]], dim=1).numpy(),
    }
    folder = bundle.folder / "routes"
    for name, array in parts.items():
        write_array(folder / f"anchors.{name}.npy", array)


def _sampled_users(bundle: Bundle, num_items: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return rows of known users [Q], drawn; the unknown user alone where there are none."""
    num_users = bundle.users.num_rows
    wanted = int(np.clip(_MAX_PAIRS // num_items, _MIN_USERS, _MAX_USERS))
    if num_users <= 2:
        return np.full(2, UNKNOWN_ROW)
    return np.sort(rng.choice(np.arange(1, num_users), min(wanted, num_users - 1), replace=False))


def _all_logits(
    scorer: BundleScorer, users: Users, num_items: int, progress: Callable[[int], None]
) -> torch.Tensor:
    """Return the logits [Q, N] of every user and item."""
    logits_QN = torch.empty(users.num_users, num_items)
    block = max(_BLOCK_PAIRS // users.num_users, 1)
    for start in range(0, num_items, block):
        rows = torch.arange(start, min(start + block, num_items))
        of_row = torch.arange(users.num_users).repeat_interleave(len(rows))
        logits, _ = scorer.score(users, of_row, rows.repeat(users.num_users), None)
        logits_QN[:, rows] = logits.view(users.num_users, len(rows))
        progress(len(logits))
    return logits_QN


def _spread_rows(vectors_NK: torch.Tensor, count: int) -> torch.Tensor:
    """Return rows [A] whose vectors span the space: pivoted Gram-Schmidt, repeated until there are A."""
    chosen: list[int] = []
    is_free_N = torch.ones(len(vectors_NK), dtype=torch.bool)
    is_free_N[UNKNOWN_ROW] = False
    count = min(count, int(is_free_N.sum()))
    while len(chosen) < count:
        rest_NK = vectors_NK.clone()
        for _ in range(min(vectors_NK.shape[1], count - len(chosen))):
            norm_N = (rest_NK * rest_NK).sum(dim=1).masked_fill(~is_free_N, -1.0)
            row = int(norm_N.argmax())
            chosen.append(row)
            is_free_N[row] = False
            direction_K = torch.nn.functional.normalize(rest_NK[row], dim=0)
            rest_NK -= (rest_NK @ direction_K)[:, None] * direction_K
    return torch.tensor(chosen)
