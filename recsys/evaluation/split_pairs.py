"""Pairs of users and items in the splits, by which candidates are chosen, read by all ranks together.

In: a dataset and the ranks. Out: positives of the split that no earlier split has, and of the users that
are ranked everything, each on one rank. Each rank reads every W-th row group, one at a time: its memory
is a number for each of its users' positives, a bit for every user, and a number for every ranked user.
Called by candidates.py.
Shapes: P pairs of this rank, U ranked users of all ranks, O those of this rank, N rows of a row group,
K items of a user.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recsys.data.dataset import Dataset, read_row_groups
from recsys.runtime.distributed_sort import sorted_rows
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
        user_bits = self._user_bits(pairs)
        is_old = np.zeros(pairs.size, bool)
        for split in self.earlier:
            groups = self._interactions(split)
            while True:
                found = next(groups, None)
                if not self.ranks.any(found is not None):
                    break
                asked = np.zeros(0, np.int64) if found is None else found
                users = asked // self.num_items
                earlier = self._at_owner(asked[(user_bits[users >> 3] >> (users & 7) & 1) > 0])
                at = np.minimum(np.searchsorted(pairs, earlier), max(pairs.size - 1, 0))
                is_old[at[pairs[at] == earlier] if pairs.size else []] = True
        return pairs[~is_old]

    def users_of(self, pairs: Pairs) -> NDArray[np.int64]:
        """Return a range of the users of all ranks' pairs, ascending; the ranges follow each other."""
        own = np.unique(pairs // self.num_items)
        return sorted_rows({"user": own}, "user", self.ranks)["user"]

    def of_ranked(self, pairs: Pairs, ranked: NDArray[np.int64]) -> Pairs:
        """Return the pairs of the ranked users of this rank (`share_of_ranked`), of those of all ranks.

        Args:
            ranked: users [U], ascending, the same on every rank.
        """
        own = pairs[np.isin(pairs // self.num_items, ranked)]
        return np.unique(self._at_ranked({"pair": own}, ranked)["pair"])

    def seen_by(self, ranked: NDArray[np.int64]) -> Pairs:
        """Return the pairs of interactions in earlier splits, of the ranked users of this rank."""
        own = [np.zeros(0, np.int64)]
        for split in self.earlier:
            for pairs in self._interactions(split):
                own.append(pairs[np.isin(pairs // self.num_items, ranked)])
        return self.of_ranked(np.unique(np.concatenate(own)), ranked)

    def share_of_ranked(self, ranked: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ranked users of this rank [O]: the ranks' ranges follow each other."""
        first, end = (
            np.arange(self.ranks.rank, self.ranks.rank + 2) * len(ranked)
        ) // self.ranks.size
        return ranked[first:end]

    def items_by_user(self, pairs: Pairs) -> dict[int, NDArray[np.int64]]:
        """Return the item rows [K] of every user, ascending, by user row."""
        users, items = np.divmod(pairs, self.num_items)
        found, starts = np.unique(users, return_index=True)
        parts = np.split(items, starts[1:]) if found.size else []
        return {int(user): part for user, part in zip(found, parts, strict=True)}

    def first_rows(self, pairs: Pairs, ranked: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number in the split of the first row of these pairs of each user of this rank [O].

        First by time, then by past, then by row id.

        Args:
            pairs: of the ranked users of this rank; each has one.
        """
        by = ["timestamp"] * (self.dataset.spec.timestamp_min is not None)
        by += ["history_end"] * ("history_end" in self.dataset.columns) + ["row_id"]
        parts = []
        for start, rows in self._groups(self.dataset.split, [*by, "label", "user_row", "item_row"]):
            users_N = rows.column("user_row").to_numpy()
            wanted = np.flatnonzero(
                (rows.column("label").to_numpy() == 1) & np.isin(users_N, ranked)
            )
            columns = [rows.column(name).to_numpy()[wanted] for name in by]
            parts.append(np.stack([self._pairs(rows)[wanted], *columns, start + wanted]))
        names = ["pair", *by, "number"]
        none = np.zeros((len(names), 0), np.int64)
        table = np.concatenate([none, *parts], axis=1, dtype=np.int64)
        own = self._at_ranked(dict(zip(names, table, strict=True)), ranked)
        keep = np.isin(own["pair"], pairs)
        users, *keys, numbers = (values[keep] for values in own.values())
        users //= self.num_items
        order = np.lexsort([*keys[::-1], users])
        return numbers[order][np.unique(users[order], return_index=True)[1]]

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

    def _user_bits(self, pairs: Pairs) -> NDArray[np.uint8]:
        """Return a bit for every user [users / 8], 1 where any rank has a pair of the user."""
        users = np.unique(pairs // self.num_items)
        bits = np.zeros(self.dataset.manifest.num_user_rows // 8 + 1, np.uint8)
        np.bitwise_or.at(bits, users >> 3, (1 << (users & 7)).astype(np.uint8))
        # A user has pairs on one rank, so a sum sets every bit once.
        return self.ranks.total(bits)

    def _at_owner(self, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the pairs [P] of the users of this rank, of those that all ranks give [N]."""
        owner_N = pairs // self.num_items % self.ranks.size
        return self.ranks.send({"pair": pairs}, owner_N)["pair"]

    def _at_ranked(
        self, columns: dict[str, NDArray[np.int64]], ranked: NDArray[np.int64]
    ) -> dict[str, NDArray[np.int64]]:
        """Return the rows of the ranked users of this rank, of those that all ranks give [N, ...].

        Args:
            columns: all of ranked users; `pair` among them.
        """
        place_N = np.searchsorted(ranked, columns["pair"] // self.num_items)
        # The rank whose range of places, as share_of_ranked cuts them, holds each.
        starts_W = np.arange(self.ranks.size + 1) * len(ranked) // self.ranks.size
        return self.ranks.send(columns, np.searchsorted(starts_W, place_N, side="right") - 1)
