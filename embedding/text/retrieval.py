"""Retrieval: how often a text finds the text that belongs to it among others.

Input: pairs of entities that training never sees, and an encoder. Output: recall@1, recall@10 and MRR per
perspective and language. Called by embedding/text/fine_tuning.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from embedding.features.catalogue import drawn
from embedding.text.pairs import OTHERS, PERSPECTIVES, Pairs

_QUERY_SEED = 0
LEAST_QUERIES = 50
"""Languages with fewer queries than this are examined together, as `others`."""

PROTOCOL = (
    "Entities that training never sees. A query is the first text of an entity in a language; it looks "
    "for the text that belongs to it among those of all queries of its perspective and language. Ties "
    "count with their mean over all orders."
)
"""Protocol of the measurement, as stored in evaluation.json."""


@dataclass(frozen=True)
class RetrievalTask:
    """Queries of one perspective and language, and the texts in which they look."""

    perspective: str
    language: str
    """"" where unknown."""
    queries: list[str]
    candidates: list[str]
    targets: np.ndarray
    """int [Q]: the candidate that belongs to a query."""
    ignored: np.ndarray
    """bool [Q, C]: candidates that belong to the query's entity too: neither right nor wrong."""


@dataclass(frozen=True)
class Retrieval:
    """Metrics of an encoder on one task."""

    perspective: str
    language: str
    num_queries: int
    num_candidates: int
    recall_at_1: float
    recall_at_10: float
    mrr: float


def retrieval_tasks(pairs: Pairs, most_queries: int) -> list[RetrievalTask]:
    """Return the tasks of held-out pairs: one query for an entity and language, its first pair.

    A task takes `most_queries` of them, drawn (a file often begins with what is best known); their
    positives, each once, are its candidates.
    With `most_queries` 0 there is no task.
    """
    if not most_queries:
        return []
    first: dict[tuple[str, str, str], int] = {}
    belonging: dict[tuple[str, str], set[str]] = {}
    for row, key in enumerate(zip(pairs.perspective, pairs.language, pairs.entity, strict=True)):
        first.setdefault(key, row)
        belonging.setdefault((key[0], key[2]), set()).add(pairs.positive[row])
    rows_of: dict[tuple[str, str], list[int]] = {}
    for (perspective, language, _), row in first.items():
        rows_of.setdefault((perspective, language), []).append(row)
    pooled: dict[tuple[str, str], list[int]] = {}
    for (perspective, language), rows in rows_of.items():
        is_shown = len(rows) >= LEAST_QUERIES or not language
        pooled.setdefault((perspective, language if is_shown else OTHERS), []).extend(rows)
    tasks = []
    for (perspective, language), rows in sorted(pooled.items(), key=_place):
        ordered = sorted(rows)
        chosen = [ordered[place] for place in drawn(len(ordered), most_queries, _QUERY_SEED)]
        candidates = list(dict.fromkeys(pairs.positive[row] for row in chosen))
        number = {text: index for index, text in enumerate(candidates)}
        targets = np.array([number[pairs.positive[row]] for row in chosen], dtype=np.int64)
        ignored = np.zeros((len(chosen), len(candidates)), dtype=bool)
        for query, row in enumerate(chosen):
            others = belonging[perspective, pairs.entity[row]]
            ignored[query, [number[text] for text in others if text in number]] = True
        ignored[np.arange(len(chosen)), targets] = False
        tasks.append(
            RetrievalTask(
                perspective=perspective,
                language=language,
                queries=[pairs.anchor[row] for row in chosen],
                candidates=candidates,
                targets=targets,
                ignored=ignored,
            )
        )
    return tasks


def _place(entry: tuple[tuple[str, str], list[int]]) -> tuple[int, bool, int, str]:
    (perspective, language), rows = entry
    return PERSPECTIVES.index(perspective), language == OTHERS, -len(rows), language


def retrieve(
    encode: Callable[[list[str], bool], np.ndarray], tasks: Sequence[RetrievalTask]
) -> list[Retrieval]:
    """Return the metrics of an encoder.

    Args:
        encode: texts, and whether they are queries, to unit vectors [N, E]; called once for either.
    """
    queries = _Encoded(encode, [text for task in tasks for text in task.queries], are_queries=True)
    candidates = _Encoded(
        encode, [text for task in tasks for text in task.candidates], are_queries=False
    )
    results = []
    for task in tasks:
        queries_QE, candidates_CE = (
            queries.vectors(task.queries),
            candidates.vectors(task.candidates),
        )
        better, equal = places(queries_QE @ candidates_CE.T, task.targets, task.ignored)
        results.append(
            Retrieval(
                perspective=task.perspective,
                language=task.language,
                num_queries=len(task.queries),
                num_candidates=len(task.candidates),
                recall_at_1=recall_at(1, better, equal),
                recall_at_10=recall_at(10, better, equal),
                mrr=mean_reciprocal_rank(better, equal),
            )
        )
    return results


class _Encoded:
    """Texts, each encoded once."""

    def __init__(
        self,
        encode: Callable[[list[str], bool], np.ndarray],
        texts: Sequence[str],
        *,
        are_queries: bool,
    ):
        distinct = list(dict.fromkeys(texts))
        self._row_of = {text: row for row, text in enumerate(distinct)}
        self._vectors_NE = encode(distinct, are_queries) if distinct else np.zeros((0, 0))

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors [N, E] of texts."""
        return self._vectors_NE[[self._row_of[text] for text in texts]]


def places(
    scores_QC: np.ndarray, targets: np.ndarray, ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (int [Q], int [Q]): candidates that score above each query's target, and that equal it.

    The target counts as one of the equal. Scores that agree to six decimals are equal: equal texts
    have equal vectors only up to rounding.
    """
    rounded_QC = np.round(scores_QC.astype(np.float64), 6)
    target_Q1 = np.take_along_axis(rounded_QC, targets[:, None], axis=1)
    better = ((rounded_QC > target_Q1) & ~ignored).sum(axis=1)
    equal = ((rounded_QC == target_Q1) & ~ignored).sum(axis=1)
    return better, equal


def recall_at(k: int, better: np.ndarray, equal: np.ndarray) -> float:
    """Return the share of queries with their target among the first k; `better`, `equal`: int [Q].

    Every order of candidates that tie with the target is equally likely: a tie counts with the chance
    that the target is among the first k.
    """
    return float(np.clip((k - better) / equal, 0.0, 1.0).mean())


def mean_reciprocal_rank(better: np.ndarray, equal: np.ndarray) -> float:
    """Return the mean of 1 / rank of the targets; under ties, its mean over all orders; int [Q] each."""
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, (better + equal).max() + 1))])
    return float(((harmonic[better + equal] - harmonic[better]) / equal).mean())
