"""Prepared data and item vectors as an evaluation reads them: each array once, when it is needed.

In: the workspace, the evaluated split and the model's feature tables. Called by evaluate.py of this
folder and by the report. Shapes: I item rows, U user rows, R those of this rank's range.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedding.features.store import FeatureTable
from recsys.data.dataset import Dataset, read_row_groups
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.interactions import Interactions
from recsys.evaluation.rows import IdsOfRows
from recsys.evaluation.segments import ItemCounts
from recsys.runtime.partition import range_of, reduced
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import Manifest, end_column

_PIECE_ROWS = 1 << 20
"""Rows of a feature table whose masks are read at a time."""


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """One split of prepared data, and what is known of its users and items."""

    workspace: Path
    dataset: Dataset
    """The split."""
    tables: Mapping[str, FeatureTable]
    """Item vectors by modality, as the model reads them."""
    ranks: Ranks = ALONE
    """That read the log together."""

    @property
    def manifest(self) -> Manifest:
        """Manifest of the prepared data."""
        return self.dataset.manifest

    @property
    def prepared(self) -> Path:
        """Folder of the prepared data."""
        return self.dataset.prepared

    @property
    def truth(self) -> Path:
        """Folder of the drawn world's truth; there may be none."""
        return self.workspace / "truth"

    @functools.cached_property
    def train_count(self) -> NDArray[np.int64] | None:
        """Interactions before the split by item row [I]; None where there are no items."""
        return self.dataset.train_count("item")

    @functools.cached_property
    def user_train_count(self) -> NDArray[np.int64] | None:
        """Interactions before the split by user row [U]; None where there are no users."""
        return self.dataset.train_count("user")

    @functools.cached_property
    def item_counts(self) -> ItemCounts | None:
        """Training rows of every item, drawn negatives apart; None where there are no items."""
        drawn_count_I = self.dataset.drawn_count()
        if self.train_count is None or drawn_count_I is None:
            return None
        return ItemCounts(train_count_I=self.train_count, drawn_count_I=drawn_count_I)

    @functools.cached_property
    def first_time(self) -> NDArray[np.int64] | None:
        """Time of the first interaction of this rank's range of items [R] (runtime/partition.py).

        None where there are no items or no times; an item without any has the latest time that there is.
        All ranks ask for it together.
        """
        manifest = self.manifest
        times = [spec.timestamp_min for spec in manifest.splits.values() if spec.num_rows]
        if not manifest.num_item_rows or None in times:
            return None
        own = range_of(manifest.num_item_rows, self.ranks)
        return reduced(
            self._item_times(),
            np.minimum.at,
            np.full(own.stop - own.start, np.iinfo(np.int64).max),
            manifest.num_item_rows,
            self.ranks,
        )

    def _item_times(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield item and time of the interactions [N] in this rank's row groups of all splits."""
        columns = ["row_id", "item_row", "timestamp"]
        for split in self.manifest.splits:
            for _, group in read_row_groups(
                self.prepared,
                self.manifest,
                split,
                columns,
                part=self.ranks.rank,
                num_parts=self.ranks.size,
            ):
                row_id_N, item_N, time_N = (group.column(name).to_numpy() for name in columns)
                is_own_N = self.manifest.is_interaction(row_id_N)
                yield item_N[is_own_N].astype(np.int64), time_N[is_own_N].astype(np.int64)

    @functools.cached_property
    def has_vector(self) -> dict[str, NDArray[np.bool_]]:
        """Whether each item of this rank's range [R] has a vector, by modality."""
        return {name: self._has_vector(table) for name, table in self.tables.items()}

    @functools.cached_property
    def vector_counts(self) -> dict[str, int]:
        """Items with a vector, by modality; all ranks ask for them together."""
        return {
            name: self.ranks.total(int(np.count_nonzero(has_R)))
            for name, has_R in self.has_vector.items()
        }

    def _has_vector(self, table: FeatureTable) -> NDArray[np.bool_]:
        """Return the mask of this rank's range of the items [R], which is read in pieces."""
        own = range_of(self.manifest.num_item_rows, self.ranks)
        found = [np.zeros(0, bool)]
        for start in range(own.start, own.stop, _PIECE_ROWS):
            found.append(table.has_vector(np.arange(start, min(start + _PIECE_ROWS, own.stop))))
        return np.concatenate(found)

    @functools.cached_property
    def interactions(self) -> dict[str, Interactions]:
        """How many items and users have how many interactions before the split, by `item` and `user`.

        The unknown row 0 is none of them. All ranks ask for it together: each looks at a range.
        """
        found = {side: self._interactions(side) for side in ("item", "user")}
        return {side: counted for side, counted in found.items() if counted is not None}

    def _interactions(self, side: str) -> Interactions | None:
        """Return those of one side, of which all ranks have a range; None without ids of it."""
        own = range_of(self.dataset.num_side_rows(side), self.ranks)
        counts_R = self.dataset.train_count(side, own)
        if counts_R is None:
            return None
        found: Counter[int] = Counter()
        first = 1 if own.start == 0 else 0
        for start in range(first, len(counts_R), _PIECE_ROWS):
            values, numbers = np.unique(counts_R[start : start + _PIECE_ROWS], return_counts=True)
            found.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        every = sum(self.ranks.gather(found), Counter[int]())
        return Interactions.of(every)

    def user_ids(self, rows_U: NDArray[np.int64]) -> list[str]:
        """Return the ids of known users [U], given by row."""
        ids = IdsOfRows.read(self.prepared / "users.parquet", "user_id", rows_U)
        assert ids is not None, "asked for only where there are users"
        return ids.of(rows_U).to_pylist()

    def histories(
        self, candidates: Candidates, sequence: str = "history"
    ) -> dict[int, NDArray[np.int64]]:
        """Return the item rows [T] each ranked user liked before, latest last, by user row.

        Edge cases: empty where the data or the model has no histories.

        Args:
            sequence: of HISTORIES; `history_negative`: items of the users' rows of label 0.
        """
        rows, column = candidates.templates, end_column(sequence)
        if self.manifest.history is None or column not in rows.column_names:
            return {}
        values, offsets = self.dataset.histories(sequence)
        found = {}
        for user, end in zip(
            rows.column("user_row").to_pylist(), rows.column(column).to_pylist(), strict=True
        ):
            start = int(offsets[user])
            found[user] = np.asarray(values[start : start + end], np.int64)
        return found
