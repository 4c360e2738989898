"""Text pairs: split into training and evaluation, and cut into batches without false negatives.

Input: prepared/pairs.parquet. Called by embedding/text/training_plan.py and fine_tuning.py.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embedding.holdout import held_out
from recsys.errors import UserError
from recsys.files import PREPARE_AGAIN, reading

PERSPECTIVES = ("multilingual", "relation", "explanation")
COLUMNS = ("anchor", "positive", "perspective", "entity", "language")
OTHERS = "others"
"""Name of a perspective's pairs in languages with too few of them for a group of their own."""


@dataclass(frozen=True)
class Pairs:
    """Text pairs as equally long columns; entity and language are "" where unknown."""

    anchor: list[str]
    positive: list[str]
    perspective: list[str]
    entity: list[str]
    language: list[str]

    def __len__(self) -> int:
        return len(self.anchor)

    def take(self, rows: Sequence[int]) -> "Pairs":
        """Return the pairs at `rows`, in that order."""
        return Pairs(*([column[row] for row in rows] for column in vars(self).values()))


def read_pairs(prepared: Path) -> Pairs:
    """Read prepared/pairs.parquet, in the order of the raw files.

    Raises:
        UserError: the file is missing, broken, or lacks a column (says to run prepare).
    """
    file = prepared / "pairs.parquet"
    with reading(file, PREPARE_AGAIN):
        table = pq.read_table(file)
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(
            f"{file}: columns {', '.join(missing)} are missing; the file has "
            f"{', '.join(table.column_names)}; run launch/prepare.py again"
        )
    return Pairs(*(["" if v is None else v for v in table.column(c).to_pylist()] for c in COLUMNS))


@dataclass(frozen=True)
class Split:
    """Pairs for training, pairs of entities that training never sees, and what was left out."""

    train: Pairs
    held_out: Pairs
    num_entities: int
    """Entities held out."""
    num_left_out: int
    """Pairs of other entities that hold a text of a held-out one: neither train nor examine."""
    held_texts: frozenset[str] = frozenset()
    """Texts of the held-out entities."""

    def counts(self) -> dict[str, int]:
        """Return the numbers of pairs and entities by name."""
        return {
            "pairs_train": len(self.train),
            "pairs_held_out": len(self.held_out),
            "pairs_left_out": self.num_left_out,
            "entities_held_out": self.num_entities,
        }


def split_by_entity(pairs: Pairs, tenths: int) -> Split:
    """Hold entities out by name, with every pair in which one of their texts occurs.

    An entity's own texts are both sides of its translations and explanations. In a relation only
    the anchor is its own: the positive is another entity's text.

    Args:
        tenths: of the entities, 0 to 9.
    """
    names = sorted(set(pairs.entity))
    is_held = dict(zip(names, held_out(names, tenths).tolist(), strict=True))
    unseen: set[str] = set()
    for row, entity in enumerate(pairs.entity):
        if is_held[entity]:
            unseen.add(pairs.anchor[row])
            if pairs.perspective[row] != "relation":
                unseen.add(pairs.positive[row])
    train, apart = [], []
    for row, entity in enumerate(pairs.entity):
        if is_held[entity]:
            apart.append(row)
        elif pairs.anchor[row] not in unseen and pairs.positive[row] not in unseen:
            train.append(row)
    return Split(
        train=pairs.take(train),
        held_out=pairs.take(apart),
        num_entities=sum(is_held.values()),
        num_left_out=len(pairs) - len(train) - len(apart),
        held_texts=frozenset(unseen),
    )


def readable(
    item_ids: Sequence[str], texts: Sequence[str | None], split: Split, tenths: int
) -> list[str]:
    """Return the items' texts that training may read, a tokenizer's included.

    Left out are items whose id is held out (entities are often items) and items one of whose columns,
    which items.text joins with ". ", is a text of a held-out entity.
    """
    return [
        text
        for text, is_held in zip(texts, held_out(item_ids, tenths), strict=True)
        if text and not is_held and split.held_texts.isdisjoint([text, *text.split(". ")])
    ]


def groups_of(pairs: Pairs, least: int, own: Collection[str] = ()) -> dict[str, list[int]]:
    """Return rows by "perspective/language", in the order of the perspectives and by size.

    Languages with fewer than `least` pairs of a perspective share "perspective/others"; pairs
    without a language are "perspective".

    Args:
        own: "perspective/language" that are a group however few their pairs are.
    """
    by_language: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(pairs.perspective, pairs.language, strict=True)):
        by_language.setdefault(key, []).append(row)
    groups: dict[str, list[int]] = {}
    for (perspective, language), rows in by_language.items():
        stays = len(rows) >= least or f"{perspective}/{language}" in own
        shown = language if stays else OTHERS
        name = f"{perspective}/{shown}" if language else perspective
        groups[name] = sorted(groups.get(name, []) + rows)

    def place(name: str) -> tuple[int, bool, int, str]:
        perspective = PERSPECTIVES.index(name.split("/")[0])
        return perspective, name.endswith(f"/{OTHERS}"), -len(groups[name]), name

    return {name: groups[name] for name in sorted(groups, key=place)}


def weight_key(group: str, weights: Collection[str]) -> str:
    """Return the key of a group's weight: its own where there is one, else its perspective's."""
    return group if group in weights else group.split("/")[0]


class DistinctBatches:
    """One group's pairs, cut into batches in which no text and no entity occurs twice.

    The other pairs of a batch are its negatives: a text that occurs twice would be its own
    negative, and so would two texts of one entity.
    """

    WINDOW = 32
    """Batches whose pairs are sorted by length together: on anime titles 0.90 million tokens an epoch
    with padding, 1.27 million unsorted (LOG.md, 2026-11-25)."""

    def __init__(self, pairs: Pairs, rows: Sequence[int], batch_size: int, multiple: int):
        """Args: rows: of the group; multiple: every batch's size is one of it (the ranks)."""
        self.rows = np.asarray(rows)
        self.batch_size = batch_size
        self.multiple = multiple
        self.keys: list[set[str]] = []
        for row in rows:
            # Marked, as a text may read like an entity.
            keys = {"text:" + pairs.anchor[row], "text:" + pairs.positive[row]}
            if pairs.entity[row]:
                keys.add("entity:" + pairs.entity[row])
            self.keys.append(keys)
        self.lengths = np.array([len(pairs.anchor[r]) + len(pairs.positive[r]) for r in rows])

    def one_pass(self, seed: Sequence[int]) -> list[np.ndarray]:
        """Return the batches of one pass over the pairs, each int [B], in a seeded order, each row once.

        Batches are full; what is left at the end waits for another pass. If there are too few distinct
        pairs for one full batch, all that fit together are the only batch.
        """
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.rows))
        window = self.WINDOW * self.batch_size
        batches: list[list[int]] = []
        waiting: list[int] = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            waiting += part[np.argsort(self.lengths[part], kind="stable")].tolist()
            full, waiting = self._fill(waiting)
            batches += full
        if not batches and waiting:
            most = self._distinct(waiting)
            size = len(most) // self.multiple * self.multiple
            batches += [most[:size]] if size > 1 else []
        return [self.rows[batches[i]] for i in rng.permutation(len(batches))]

    def _fill(self, waiting: list[int]) -> tuple[list[list[int]], list[int]]:
        """Cut full batches off; return them and what is left, in order."""
        batches = []
        while len(waiting) >= self.batch_size:
            batch = self._distinct(waiting)
            if len(batch) < self.batch_size:
                break
            batches.append(batch)
            taken = set(batch)
            waiting = [i for i in waiting if i not in taken]
        return batches, waiting

    def _distinct(self, waiting: list[int]) -> list[int]:
        """Return the first pairs that share nothing with one another, a batch at most."""
        batch: list[int] = []
        seen: set[str] = set()
        for index in waiting:
            if seen.isdisjoint(self.keys[index]):
                batch.append(index)
                seen |= self.keys[index]
                if len(batch) == self.batch_size:
                    break
        return batch


class BatchPlan:
    """Every batch of a training run, in order: the same for any number of ranks that divides it.

    The ranks share a batch in equal slices of two pairs or more; where they do not divide it, it is as
    near below as they do, or two pairs for each.
    """

    def __init__(
        self,
        pairs: Pairs,
        *,
        epochs: int,
        batch_size: int,
        weights: dict[str, float],
        max_pairs: int,
        num_ranks: int,
        seed: int,
    ):
        """Count the batches that each group gets.

        Args:
            batch_size: pairs a step over all ranks, 2 or more, rounded to a multiple of them; a batch
                comes from one group.
            weights: by "perspective", one of PERSPECTIVES, or "perspective/language", how often an
                epoch passes over its pairs, 0 or more; 0 leaves them out.
            max_pairs: most pairs an epoch takes; beyond it all groups shrink by the same factor. 0: all.
        """
        batch_size = max(2, batch_size // num_ranks) * num_ranks
        self.epochs = epochs
        self.batch_size = batch_size
        self.seed = seed
        self.weights = weights
        self.groups: dict[str, DistinctBatches] = {}
        self.num_batches: dict[str, int] = {}
        self.left_out: dict[str, int] = {}
        groups = groups_of(pairs, least=2 * batch_size, own=weights)
        wanted = {
            name: weights.get(weight_key(name, weights), 0.0) * len(rows)
            for name, rows in groups.items()
        }
        shrink = min(1.0, max_pairs / max(1.0, sum(wanted.values()))) if max_pairs else 1.0
        for name, rows in groups.items():
            group = DistinctBatches(pairs, rows, batch_size, num_ranks)
            if wanted[name] and group.one_pass([seed]):
                self.groups[name] = group
                self.num_batches[name] = max(1, round(shrink * wanted[name] / batch_size))
            else:
                self.left_out[name] = len(rows)

    @property
    def batches_per_epoch(self) -> int:
        """Steps of an epoch."""
        return sum(self.num_batches.values())

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch

    def __str__(self) -> str:
        """Batches an epoch by key of the weights, and what gets none."""
        sums: dict[str, int] = {}
        for name, count in self.num_batches.items():
            key = weight_key(name, self.weights)
            sums[key] = sums.get(key, 0) + count
        none: dict[str, int] = {}
        for name, count in self.left_out.items():
            key = weight_key(name, self.weights)
            shown = name if key in sums else key
            none[shown] = none.get(shown, 0) + count
        parts = [f"{name} {count:,}" for name, count in sums.items()]
        parts += [f"none of {name} ({n:,} pairs)" for name, n in none.items()]
        return ", ".join(parts)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield rows of the pairs, int [B], one array a step."""
        for epoch in range(self.epochs):
            order = [i for i, n in enumerate(self.num_batches.values()) for _ in range(n)]
            np.random.default_rng([self.seed, epoch]).shuffle(order)
            sources = [
                self._endless(group, [self.seed, epoch, index])
                for index, group in enumerate(self.groups.values())
            ]
            for index in order:
                yield next(sources[index])

    @staticmethod
    def _endless(group: DistinctBatches, seed: list[int]) -> Iterator[np.ndarray]:
        """Yield batches int [B] of a group, pass after pass."""
        for number in itertools.count():
            yield from group.one_pass([*seed, number])
