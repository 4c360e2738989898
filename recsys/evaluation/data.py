"""Prepared data and item vectors as an evaluation reads them: each array once, when it is needed.

In: the workspace, the evaluated split and the model's feature tables. Called by evaluate.py of this
folder and by the report. Shapes: I item rows, U user rows.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedding.features.store import FeatureTable
from recsys.data.dataset import Dataset, read_row_groups
from recsys.evaluation.candidates import Candidates
from recsys.evaluation.rows import IdsOfRows
from recsys.evaluation.segments import ItemCounts
from recsys.runtime.ranks import ALONE, Ranks
from recsys.schema import Manifest

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
        """Time of every item's first interaction [I]; None where there are no items or no times.

        An item without any has the latest time that there is. All ranks ask for it together.
        """
        manifest = self.manifest
        times = [spec.timestamp_min for spec in manifest.splits.values() if spec.num_rows]
        if not manifest.num_item_rows or None in times:
            return None
        first_I = np.full(manifest.num_item_rows, np.iinfo(np.int64).max)
        for split in manifest.splits:
            columns = ["row_id", "item_row", "timestamp"]
            for _, group in read_row_groups(
                self.prepared,
                manifest,
                split,
                columns,
                part=self.ranks.rank,
                num_parts=self.ranks.size,
            ):
                row_id_N, item_N, time_N = (group.column(name).to_numpy() for name in columns)
                is_own_N = manifest.is_interaction(row_id_N)
                np.minimum.at(first_I, item_N[is_own_N], time_N[is_own_N])
        return self.ranks.lowest(first_I)

    @functools.cached_property
    def has_vector(self) -> dict[str, NDArray[np.bool_]]:
        """Mask of the item rows that have a vector [I], by modality; read by all ranks together."""
        return {name: self._has_vector(table) for name, table in self.tables.items()}

    def _has_vector(self, table: FeatureTable) -> NDArray[np.bool_]:
        """Return the mask of one table's rows [I]; each rank reads a range of them, in pieces."""
        rank, size, num_rows = self.ranks.rank, self.ranks.size, table.num_rows
        found_I = np.zeros(num_rows, np.uint8)
        end = (rank + 1) * num_rows // size
        for start in range(rank * num_rows // size, end, _PIECE_ROWS):
            stop = min(start + _PIECE_ROWS, end)
            found_I[start:stop] = table.has_vector(np.arange(start, stop))
        return self.ranks.total(found_I).view(bool)

    def user_ids(self, rows_U: NDArray[np.int64]) -> list[str]:
        """Return the ids of known users [U], given by row."""
        ids = IdsOfRows.read(self.prepared / "users.parquet", "user_id", rows_U)
        assert ids is not None, "asked for only where there are users"
        return ids.of(rows_U).to_pylist()

    def histories(self, candidates: Candidates) -> dict[int, NDArray[np.int64]]:
        """Return the item rows [T] each ranked user liked before, latest last, by user row.

        Edge cases: empty where the data or the model has no histories.
        """
        rows = candidates.templates
        if self.manifest.history is None or "history_end" not in rows.column_names:
            return {}
        values, offsets = self.dataset.histories()
        found = {}
        for user, end in zip(
            rows.column("user_row").to_pylist(), rows.column("history_end").to_pylist(), strict=True
        ):
            start = int(offsets[user])
            found[user] = np.asarray(values[start : start + end], np.int64)
        return found
