"""Candidates: what users are ranked on, as rows the loader reads like any split.

In: a split of prepared data. Out: pairs of a user and a candidate item, each in the
circumstances (history, context features) of the user's first relevant row of the split; every rank has
the pairs of its own users. Called by recsys/run/scoring.py. Shapes: N pairs or rows, U users of a rank,
I item rows.
"""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from recsys.data.dataset import Dataset
from recsys.evaluation.split_pairs import SplitPairs
from recsys.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """Ranking settings: users, candidates and lengths of lists."""

    num_users: Annotated[int, Field(ge=0)] = 200
    """Users drawn of those with a relevant item in the split; 0: no ranking, no recommendations."""
    ks: list[int] = field(default_factory=lambda: [10, 50])
    """Lengths of the lists."""
    num_negatives: Annotated[int, Field(ge=1)] = 100
    """Drawn items of the sampled candidate sets."""
    max_rows: Annotated[int, Field(ge=1)] = 200_000
    """Pairs scored at most. The full candidate set takes users x items; fewer users are ranked where
    that is more, and none but sampled candidates where not even 20 users fit."""

    def problems(self) -> list[str]:
        """Return a text for lists of no length."""
        fits = bool(self.ks) and min(self.ks) >= 1
        return [] if fits else [f"ks={self.ks}: expected lengths of 1 or more, such as [10]"]


_FEWEST_USERS = 20
_BLOCK_ROWS = 65_536
"""Rows of the split that are read at a time: a row group of prepared data."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Pairs to score, user by user: those of this rank's users, who are on no other rank."""

    user_row_N: NDArray[np.int64]
    item_row_N: NDArray[np.int64]
    relevant_N: NDArray[np.bool_]
    """Whether the user has a positive of the item in the split."""
    template_N: NDArray[np.int64]
    """Row of `templates`, by number, whose circumstances the pair takes."""
    templates: pa.Table
    """Every user's first relevant row of the split, with the columns that the dataset delivers [U]."""
    is_full: bool
    """Whether a user's candidates are all items that the user has not seen before."""

    @property
    def users(self) -> NDArray[np.int64]:
        """Rows of the ranked users [U], ascending; those of the ranks follow each other."""
        return np.unique(self.user_row_N)


def draw_candidates(
    dataset: Dataset, *, config: RankingConfig, seed: int, ranks: Ranks = ALONE
) -> Candidates | None:
    """Return the pairs; None where there are no users or items, or no user has a relevant item.

    Candidates are the items of which the user has no interaction in an earlier split; those of them
    with a positive in this split are relevant. An item that the user knows is neither: it stands in
    the history that the model reads, or was shown, and as a candidate only where it is liked again
    it would give the answer away. Users stand at the moment before their first relevant item, so
    that no relevant item stands in the history either. The unknown item row 0 is no
    candidate.

    Args:
        seed: of the users and of each user's items, whatever the number of ranks.
        ranks: that read the splits together, and each get the candidates of a part of the users.
    """
    manifest = dataset.manifest
    num_items = manifest.num_item_rows - 1
    if not config.num_users or not manifest.num_user_rows or num_items < 1:
        return None
    splits = SplitPairs(dataset, ranks)
    pairs = splits.relevant()
    eligible = splits.users_of(pairs)
    before, num_eligible = ranks.before_and_total(eligible.size)
    if not num_eligible:
        return None
    is_full = config.max_rows // num_items >= min(_FEWEST_USERS, num_eligible)
    per_user = num_items if is_full else config.num_negatives
    num_users = min(config.num_users, num_eligible, max(config.max_rows // per_user, 1))
    places = (
        np.random.default_rng(seed).choice(num_eligible, size=num_users, replace=False) - before
    )
    own = eligible[places[(places >= 0) & (places < eligible.size)]]
    ranked = np.sort(np.concatenate(ranks.gather(own)))
    pairs = splits.of_ranked(pairs, ranked)
    relevant, seen = splits.items_by_user(pairs), splits.items_by_user(splits.seen_by(ranked))
    first_rows = splits.first_rows(pairs, ranked)
    user_parts, item_parts, relevant_parts = [], [], []
    for user in splits.share_of_ranked(ranked).tolist():
        candidates = _candidates_of(
            relevant[user],
            seen.get(user),
            num_items,
            None if is_full else config.num_negatives,
            # Of the user alone, so that no rank has to draw for the users of others.
            np.random.default_rng([seed, user]),
        )
        user_parts.append(np.full(candidates.size, user, dtype=np.int64))
        item_parts.append(candidates)
        relevant_parts.append(np.isin(candidates, relevant[user]))
    user_row_N = np.concatenate([np.zeros(0, np.int64), *user_parts])
    return Candidates(
        user_row_N=user_row_N,
        item_row_N=np.concatenate([np.zeros(0, np.int64), *item_parts]),
        relevant_N=np.concatenate([np.zeros(0, bool), *relevant_parts]),
        template_N=np.unique(user_row_N, return_inverse=True)[1],
        templates=_read_rows(dataset, first_rows),
        is_full=is_full,
    )


def _candidates_of(
    relevant: NDArray[np.int64],
    seen: NDArray[np.int64] | None,
    num_items: int,
    num_negatives: int | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return a user's candidates [C], ascending: all that were not seen, or so many of them drawn."""
    out = relevant if seen is None else np.union1d(relevant, seen)
    if num_negatives is None or num_negatives >= num_items - out.size:
        return np.setdiff1d(np.arange(1, num_items + 1), [] if seen is None else seen)
    drawn = np.zeros(0, dtype=np.int64)
    while drawn.size < num_negatives:
        more = rng.integers(1, num_items + 1, size=2 * num_negatives)
        drawn = np.setdiff1d(np.union1d(drawn, more), out)
    return np.union1d(rng.choice(drawn, size=num_negatives, replace=False), relevant)


def _read_rows(dataset: Dataset, rows_U: NDArray[np.int64]) -> pa.Table:
    """Return some rows [U] of the split in the order asked for; one block is in memory at a time."""
    if not rows_U.size:
        return dataset.read(0, 1).slice(0, 0)
    order = np.argsort(rows_U, kind="stable")
    parts = []
    for block in np.split(order, np.flatnonzero(np.diff(rows_U[order] // _BLOCK_ROWS)) + 1):
        start = int(rows_U[block[0]]) // _BLOCK_ROWS * _BLOCK_ROWS
        rows = dataset.read(start, min(start + _BLOCK_ROWS, dataset.num_rows))
        parts.append(rows.take(pa.array(rows_U[block] - start)))
    back = np.empty(rows_U.size, dtype=np.int64)
    back[order] = np.arange(rows_U.size)
    return pa.concat_tables(parts).take(pa.array(back)).combine_chunks()


class CandidateDataset(Dataset):
    """Candidates in the place of a split: the loader batches them like any rows.

    The row_id of a pair is its number among the candidates.
    """

    def __init__(self, dataset: Dataset, candidates: Candidates):
        """Args: dataset: the split the candidates were drawn from."""
        features = [feature.name for feature in dataset.features]
        features += [feature.name for feature in dataset.dense]
        super().__init__(dataset.prepared, dataset.manifest, split=dataset.split, features=features)
        self._candidates = candidates
        self.num_rows = candidates.user_row_N.size

    def read(self, start: int, stop: int) -> pa.Table:
        """Return pairs [start, stop) with the columns of the split."""
        part = slice(start, stop)
        table = self._candidates.templates.take(pa.array(self._candidates.template_N[part]))
        own = {
            "row_id": np.arange(start, min(stop, self.num_rows)),
            "label": self._candidates.relevant_N[part],
            "item_row": self._candidates.item_row_N[part],
        }
        for name, values in own.items():
            at = table.schema.get_field_index(name)
            typed = pa.array(values.astype(table.schema.field(name).type.to_pandas_dtype()))
            table = table.set_column(at, table.schema.field(name), typed)
        return table
