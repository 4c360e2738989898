"""Candidates: what users are ranked on, as rows the loader reads like any split.

What enters: a split of prepared data. What leaves: pairs of a user and a candidate item, each in the
circumstances (history, context features) of the user's last row of the split. Called by
launch/evaluate.py. Shapes: N pairs, U users, I item rows.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recsys.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """Who is ranked what, and how far down a list is read."""

    num_users: int = 200
    """Users drawn of those with a positive in the split; 0: no ranking, no recommendations."""
    ks: list[int] = field(default_factory=lambda: [10, 50])
    """Lengths of the lists."""
    num_negatives: int = 100
    """Drawn items of the sampled candidate sets."""
    max_rows: int = 200_000
    """Pairs scored at most. The full candidate set takes users x items; fewer users are ranked where
    that is more, and none but sampled candidates where not even 20 users fit."""


_FEWEST_USERS = 20
EARLIER = {"train": (), "valid": ("train",), "test": ("train", "valid")}
"""Splits whose items a user has seen already: they are no candidates."""


def check_ranking(config: RankingConfig) -> None:
    """Raise ValueError for settings nobody can be ranked by, all at once."""
    problems = []
    if config.num_users < 0:
        problems.append(f"ranking.num_users={config.num_users}: expected 0 or more")
    if not config.ks or min(config.ks) < 1:
        problems.append(f"ranking.ks={config.ks}: expected lengths of 1 or more, such as [10]")
    for name in ("num_negatives", "max_rows"):
        if getattr(config, name) < 1:
            problems.append(f"ranking.{name}={getattr(config, name)}: expected 1 or more")
    if problems:
        raise ValueError("configuration: " + "\n  ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Pairs to score, user by user."""

    user_row_N: NDArray[np.int64]
    item_row_N: NDArray[np.int64]
    relevant_N: NDArray[np.bool_]
    """The user's positives of the split."""
    template_N: NDArray[np.int64]
    """Row of the split, by number, whose circumstances the pair takes."""
    is_full: bool
    """Whether a user's candidates are all items that the user has not seen before."""


def draw_candidates(
    dataset: Dataset, *, config: RankingConfig, rng: np.random.Generator
) -> Candidates | None:
    """Return the pairs; None where there are no users or items, or no user has a positive.

    Candidates are the items that the user has no row of in an earlier split, and the user's positives
    of this one; of the unknown item row 0 nothing is known, it is none.
    """
    manifest = dataset.manifest
    num_items = manifest.num_item_rows - 1
    if not config.num_users or not manifest.num_user_rows or num_items < 1:
        return None
    rows = dataset.read(0, dataset.num_rows)
    users, items = (rows.column(c).to_numpy() for c in ("user_row", "item_row"))
    positive = (rows.column("label").to_numpy() == 1) & (users > 0) & (items > 0)
    eligible = np.unique(users[positive])
    if not eligible.size:
        return None
    is_full = config.max_rows // num_items >= min(_FEWEST_USERS, eligible.size)
    per_user = num_items if is_full else config.num_negatives
    num_users = min(config.num_users, eligible.size, max(config.max_rows // per_user, 1))
    chosen = np.sort(rng.choice(eligible, size=num_users, replace=False))
    relevant = _items_by_user(users[positive], items[positive], chosen)
    seen = _seen_before(dataset, chosen)
    user_parts, item_parts, relevant_parts = [], [], []
    for user in chosen.tolist():
        candidates = _candidates_of(
            relevant[user],
            seen.get(user),
            num_items,
            None if is_full else config.num_negatives,
            rng,
        )
        user_parts.append(np.full(candidates.size, user, dtype=np.int64))
        item_parts.append(candidates)
        relevant_parts.append(np.isin(candidates, relevant[user]))
    user_row_N = np.concatenate(user_parts)
    return Candidates(
        user_row_N=user_row_N,
        item_row_N=np.concatenate(item_parts),
        relevant_N=np.concatenate(relevant_parts),
        template_N=_last_rows(rows, chosen)[np.searchsorted(chosen, user_row_N)],
        is_full=is_full,
    )


def _candidates_of(
    relevant: NDArray[np.int64],
    seen: NDArray[np.int64] | None,
    num_items: int,
    num_negatives: int | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return a user's candidates, ascending: all that were not seen, or so many of them drawn."""
    out = relevant if seen is None else np.union1d(relevant, seen)
    if num_negatives is None or num_negatives >= num_items - out.size:
        allowed = np.ones(num_items + 1, dtype=bool)
        allowed[0] = False
        allowed[out] = False
        allowed[relevant] = True
        return np.flatnonzero(allowed)
    drawn = np.zeros(0, dtype=np.int64)
    while drawn.size < num_negatives:
        more = rng.integers(1, num_items + 1, size=2 * num_negatives)
        drawn = np.setdiff1d(np.union1d(drawn, more), out)
    return np.union1d(rng.choice(drawn, size=num_negatives, replace=False), relevant)


def _items_by_user(users: NDArray, items: NDArray, chosen: NDArray) -> dict[int, NDArray[np.int64]]:
    keep = np.isin(users, chosen)
    users, items = users[keep], items[keep].astype(np.int64)
    order = np.argsort(users, kind="stable")
    users, items = users[order], items[order]
    found, starts = np.unique(users, return_index=True)
    parts = np.split(items, starts[1:])
    return {int(user): np.unique(part) for user, part in zip(found, parts, strict=True)}


def _seen_before(dataset: Dataset, chosen: NDArray) -> dict[int, NDArray[np.int64]]:
    """Return the items of the users' rows in earlier splits, read one row group at a time."""
    users, items = [], []
    for name in EARLIER[dataset.split]:
        for file in dataset.manifest.splits[name].files:
            part = pq.ParquetFile(dataset.prepared / file, memory_map=True)
            for group in range(part.num_row_groups):
                table = part.read_row_group(group, columns=["user_row", "item_row"])
                of_group = table.column("user_row").to_numpy()
                keep = np.isin(of_group, chosen)
                users.append(of_group[keep])
                items.append(table.column("item_row").to_numpy()[keep])
    if not users:
        return {}
    known = np.concatenate(items) > 0
    return _items_by_user(np.concatenate(users)[known], np.concatenate(items)[known], chosen)


def _last_rows(rows: pa.Table, chosen: NDArray) -> NDArray[np.int64]:
    """Return the number of each user's last row: the longest past, then the largest row id."""
    users, row_ids = rows.column("user_row").to_numpy(), rows.column("row_id").to_numpy()
    has_history = "history_end" in rows.column_names
    past = rows.column("history_end").to_numpy() if has_history else np.zeros_like(row_ids)
    order = np.lexsort((row_ids, past, users))
    return order[np.searchsorted(users[order], chosen, side="right") - 1]


class CandidateDataset(Dataset):
    """Candidates in the place of a split: the loader batches them like any rows.

    The row_id of a pair is its number among the candidates.
    """

    def __init__(self, dataset: Dataset, candidates: Candidates):
        """Args: dataset: the split the candidates were drawn from."""
        features = [feature.name for feature in dataset.features]
        super().__init__(dataset.prepared, dataset.manifest, split=dataset.split, features=features)
        self._rows = super().read(0, dataset.num_rows)
        self._candidates = candidates
        self.num_rows = candidates.user_row_N.size

    def read(self, start: int, stop: int) -> pa.Table:
        """Return pairs [start, stop) with the columns of the split."""
        part = slice(start, stop)
        table = self._rows.take(pa.array(self._candidates.template_N[part]))
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
