"""Pairs of users and items in the splits, by which candidates are chosen, read by all ranks together.

In: a dataset and the ranks. Out: positives of the split that no earlier split has, on the rank of their
user; of a few users everything, on every rank. Each rank reads every W-th row group, one at a time: its
memory is a number for each of its users' positives, and a byte for every user. Called by candidates.py.
Shapes: P pairs of this rank, U users, N rows of a row group, K items of a user.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.dataset import Dataset, read_row_groups
from recsys.runtime.ranks import Ranks
from recsys.schema import is_known

Pairs = NDArray[np.int64]
"""user row * number of item rows + item row, ascending, each once [P]."""


class SplitPairs:
    """Reader of one split and those before it; all ranks call each method."""

    def __init__(self, dataset: Dataset, ranks: Ranks):
        self.dataset = dataset
        self.ranks = ranks
        self.num_items = dataset.manifest.num_item_rows
        names = dataset.manifest.splits_in_time
        self.earlier = names[: names.index(dataset.split)]

    def relevant(self) -> Pairs:
        """Return positives of the split [P] that are no interaction of an earlier one.

        A rank has those of the users whose row it is modulo the number of ranks.
        """
        own = [np.zeros(0, np.int64)]
        for _, rows in self._groups(self.dataset.split, ["label", "user_row", "item_row"]):
            pairs, is_positive = self._pairs(rows), rows.column("label").to_numpy() == 1
            own.append(np.unique(pairs[is_positive & self._are_known(rows)]))
        pairs = np.unique(self._at_owner(np.unique(np.concatenate(own))))
        has_user_U = self._user_mask(pairs)
        is_old = np.zeros(pairs.size, bool)
        for split in self.earlier:
            groups = self._interactions(split)
            while True:
                found = next(groups, None)
                if not self.ranks.any(found is not None):
                    break
                asked = np.zeros(0, np.int64) if found is None else found
                earlier = self._at_owner(asked[has_user_U[asked // self.num_items]])
                at = np.minimum(np.searchsorted(pairs, earlier), max(pairs.size - 1, 0))
                is_old[at[pairs[at] == earlier] if pairs.size else []] = True
        return pairs[~is_old]

    def users_of(self, pairs: Pairs) -> NDArray[np.int64]:
        """Return the users of the pairs of all ranks, ascending [U]."""
        return np.flatnonzero(self._user_mask(pairs))

    def of_users(self, pairs: Pairs, chosen: NDArray[np.int64]) -> Pairs:
        """Return the pairs of a few users, of all ranks."""
        own = pairs[np.isin(pairs // self.num_items, chosen)]
        return np.sort(np.concatenate(self.ranks.gather(own)))

    def seen_by(self, chosen: NDArray[np.int64]) -> Pairs:
        """Return the pairs of a few users' interactions in earlier splits, of all ranks."""
        own = [np.zeros(0, np.int64)]
        for split in self.earlier:
            for pairs in self._interactions(split):
                own.append(pairs[np.isin(pairs // self.num_items, chosen)])
        return np.unique(np.concatenate(self.ranks.gather(np.unique(np.concatenate(own)))))

    def items_by_user(self, pairs: Pairs) -> dict[int, NDArray[np.int64]]:
        """Return the item rows [K] of every user, ascending, by user row."""
        users, items = np.divmod(pairs, self.num_items)
        found, starts = np.unique(users, return_index=True)
        parts = np.split(items, starts[1:]) if found.size else []
        return {int(user): part for user, part in zip(found, parts, strict=True)}

    def first_rows(self, pairs: Pairs, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number in the split of each chosen user's first row of these pairs [U].

        First by time, then by past, then by row id.
        """
        by = ["timestamp"] * (self.dataset.spec.timestamp_min is not None)
        by += ["history_end"] * ("history_end" in self.dataset.columns) + ["row_id"]
        parts = []
        for start, rows in self._groups(self.dataset.split, [*by, "label", "user_row", "item_row"]):
            wanted = np.flatnonzero(
                (rows.column("label").to_numpy() == 1) & np.isin(self._pairs(rows), pairs)
            )
            columns = [rows.column(name).to_numpy()[wanted] for name in ("user_row", *by)]
            parts.append(np.stack([*columns, start + wanted]).astype(np.int64))
        none = np.zeros((len(by) + 2, 0), np.int64)
        table = np.concatenate(self.ranks.gather(np.concatenate([none, *parts], axis=1)), axis=1)
        table = table[:, np.lexsort(table[-2::-1])]
        return table[-1, np.searchsorted(table[0], chosen)]

    def _groups(self, split: str, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
        """Yield this rank's row groups, and the number of the first row of each."""
        return read_row_groups(
            self.dataset.prepared,
            self.dataset.manifest,
            split,
            columns,
            part=self.ranks.rank,
            num_parts=self.ranks.size,
        )

    def _interactions(self, split: str) -> Iterator[Pairs]:
        """Yield the pairs [N] of known users and items in this rank's row groups of a split."""
        for _, rows in self._groups(split, ["row_id", "user_row", "item_row"]):
            # A drawn negative is no interaction: nobody was shown it.
            keep = self.dataset.manifest.is_interaction(rows.column("row_id").to_numpy())
            yield self._pairs(rows)[keep & self._are_known(rows)]

    def _pairs(self, rows: pa.Table) -> NDArray[np.int64]:
        """Return the pair of every row [N]."""
        users, items = (rows.column(name).to_numpy() for name in ("user_row", "item_row"))
        return users.astype(np.int64) * self.num_items + items

    def _are_known(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Return which rows [N] are of a user and an item of the vocabulary."""
        users, items = (rows.column(name).to_numpy() for name in ("user_row", "item_row"))
        return is_known(users) & is_known(items)

    def _user_mask(self, pairs: Pairs) -> NDArray[np.bool_]:
        """Return which users [U] have a pair on any rank."""
        has_U = np.zeros(self.dataset.manifest.num_user_rows, np.uint8)
        has_U[pairs // self.num_items] = 1
        # A user has pairs on one rank.
        return self.ranks.total(has_U) > 0

    def _at_owner(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pairs [P] of the users of this rank, of those that all ranks give [N]."""
        owner = pairs // self.num_items % self.ranks.size
        counts_W = np.bincount(owner, minlength=self.ranks.size)
        columns = {"pair": pairs[np.argsort(owner, kind="stable")]}
        return self.ranks.exchange(columns, counts_W)["pair"]
