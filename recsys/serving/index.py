"""Vector index: the item rows with the largest inner product or cosine, exact or by faiss, with filters.

In: the bundle's vectors by item row, memory-mapped, and a faiss file beside them where a scan of all of
them is too slow. Out: rows and scores. Called by routes.py and recommender.py; launch/export.py writes
the files. faiss is imported where a file of it is written or read, and nowhere else.
Shapes: N item rows, Q queries, R width, K hits, P rows of a piece.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.errors import UserError
from recsys.files import new_file, read_json, reading, write_json

EXACT_NUMBERS = 1 << 24
"""Numbers of an array that a query reads whole: 200,000 vectors of width 80, some 5 ms of a core."""
CACHED_NUMBERS = 1 << 23
"""Numbers kept in memory as fp32 between queries; a larger array is converted piece by piece."""
FEW_NUMBERS = 1 << 21
"""Numbers of allowed rows that are compared one by one, whatever the size of the index."""
PIECE_ROWS = 65_536
EXPORT_AGAIN = "run launch/export.py again"

_COMPONENTS = 96
"""Width of coded vectors; wider ones are projected on so many principal components first."""
_TRAINED_ROWS = 65_536
_LESS = 8
_TUNING_QUERIES = 64
_TUNING_DEPTHS = (50, 200)
"""nprobe is the least that finds 99 % of the exact best 50 among 200 hits."""
_RESCORED = 2000
"""Rows beyond the k wanted whose exact scores are computed, by the order of their codes' scores."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Rows found, best first; row -1 where a query has fewer than K."""

    rows_QK: NDArray[np.int64]
    scores_QK: NDArray[np.float32]
    """Inner products, or cosines; -inf where the row is -1."""


class _Approximate:
    """An inverted-file index of faiss, memory-mapped, and how many of its lists a query reads."""

    def __init__(self, index: Any, num_lists: int, nprobe: int):
        self.index, self.num_lists, self.nprobe = index, num_lists, nprobe
        self._parameters: dict[int, Any] = {}

    def search(
        self,
        queries_QR: torch.Tensor,
        k: int,
        nprobe: int,
        allowed_N: NDArray[np.bool_] | None = None,
        share: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (rows, approximate scores) [Q, K], row -1 where there are fewer.

        More lists are read where few rows are allowed.

        Args:
            nprobe: lists that a query reads where all rows are allowed.
            share: of all rows that are allowed.
        """
        nprobe = min(self.num_lists, max(nprobe, round(nprobe / max(share, 1e-6))))
        if allowed_N is None:
            params = self._of_all_rows(nprobe)
        else:
            faiss = _faiss()
            # The selector keeps a pointer: the bitmap must live as long as the search.
            bitmap = np.packbits(allowed_N, bitorder="little")
            selector = faiss.IDSelectorBitmap(allowed_N.size, faiss.swig_ptr(bitmap))
            params = _parameters(nprobe, sel=selector)
        scores_QK, rows_QK = self.index.search(queries_QR.numpy(), k, params=params)
        scores_QK[rows_QK < 0] = -np.inf
        return torch.from_numpy(rows_QK), torch.from_numpy(scores_QK)

    def _of_all_rows(self, nprobe: int) -> Any:
        """Return the parameters of a search without filters, made once: they cost 0.1 ms."""
        if nprobe not in self._parameters:
            self._parameters[nprobe] = _parameters(nprobe)
        return self._parameters[nprobe]


def _parameters(nprobe: int, **more: Any) -> Any:
    faiss = _faiss()
    inner = faiss.SearchParametersIVF(nprobe=nprobe, **more)
    return faiss.SearchParametersPreTransform(index_params=inner)


class VectorIndex:
    """Vectors of all items, those added at run time included, searched by inner product or cosine."""

    def __init__(
        self,
        vectors_NR: torch.Tensor,
        *,
        has_vector_N: NDArray[np.bool_],
        is_cosine: bool,
        approximate: _Approximate | None = None,
    ):
        """Take the vectors; `open` is the way to have a faiss file beside them read.

        Args:
            has_vector_N: rows that may be found; the unknown row 0 is none of them.
        """
        self.is_cosine = is_cosine
        self.num_rows, self.width = vectors_NR.shape
        self._vectors_NR = vectors_NR
        self._has_vector_N = has_vector_N
        self._num_vectors = int(has_vector_N.sum())
        self._lacking = np.flatnonzero(~has_vector_N)
        self._approximate = approximate
        self._cached_NR: torch.Tensor | None = None
        self._added_rows: dict[int, int] = {}
        self._added_TR = torch.zeros((0, self.width))

    @classmethod
    def open(
        cls,
        path: Path,
        vectors_NR: torch.Tensor,
        *,
        has_vector_N: NDArray[np.bool_],
        is_cosine: bool,
    ) -> "VectorIndex":
        """Return the index of the vectors; `path` without suffix names its faiss file, if there is one.

        Raises:
            DamagedFileError: the faiss file is broken, or missing where the array is too large for scans.
        """
        approximate = None
        if needs_file(vectors_NR):
            approximate = _read_file(path, vectors_NR.shape[0])
        return cls(
            vectors_NR, has_vector_N=has_vector_N, is_cosine=is_cosine, approximate=approximate
        )

    def add(self, row: int, vector_R: torch.Tensor) -> None:
        """Add the vector of an item that was added at run time; it is found from the next search on."""
        vector_1R = self._scaled(vector_R.float()[None])
        self._added_rows[row] = len(self._added_rows)
        self._added_TR = torch.cat([self._added_TR, vector_1R])

    def search(
        self,
        queries_QR: torch.Tensor,
        k: int,
        allowed_N: NDArray[np.bool_] | None = None,
        *,
        rescore: bool = True,
    ) -> Hits:
        """Return the k rows with the largest scores of each query [Q, K].

        Args:
            allowed_N: rows that may be found, added ones behind; None: all.
            rescore: False: hits of a faiss file keep its approximate scores, and fewer of its lists are
                read: a fifth of the time, for candidates that the model scores anyway.
        """
        queries = self._scaled(queries_QR.float())
        may_N = self._has_vector_N
        if allowed_N is not None:
            may_N = may_N & allowed_N[: self.num_rows]
        num_allowed = self._num_vectors if allowed_N is None else int(may_N.sum())
        if self._approximate is None:
            lacking = self._lacking if allowed_N is None else np.flatnonzero(~may_N)
            found = self._scan(queries, k, lacking)
        elif allowed_N is not None and num_allowed * self.width <= FEW_NUMBERS:
            found = self._scan_rows(queries, k, np.flatnonzero(may_N))
        else:
            share = num_allowed / max(self._num_vectors, 1)
            some = None if allowed_N is None else may_N
            fetched, nprobe = k + _RESCORED, self._approximate.nprobe
            if not rescore:
                fetched, nprobe = k, max(nprobe // _LESS, 1)
            found = self._approximate.search(queries, fetched, nprobe, some, share)
            found = self._rescored(queries, k, found[0]) if rescore else found
        if self._added_rows:
            found = _merged(found, self._scan_added(queries, k, allowed_N), k)
        return _padded(found, k)

    def scores(self, query_R: torch.Tensor, rows_C: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the scores of some rows for one query [C]; rows without a vector score -inf."""
        query_1R = self._scaled(query_R.float()[None])
        is_stored_C = rows_C < self.num_rows
        scores_C = np.full(len(rows_C), -np.inf, np.float32)
        stored = self._read(torch.from_numpy(rows_C[is_stored_C])) @ query_1R[0]
        scores_C[is_stored_C] = np.where(
            self._has_vector_N[rows_C[is_stored_C]], stored.numpy(), -np.inf
        )
        for place in np.flatnonzero(~is_stored_C):
            added = self._added_rows.get(int(rows_C[place]))
            if added is not None:
                scores_C[place] = float(self._added_TR[added] @ query_1R[0])
        return scores_C

    def _scaled(self, vectors_PR: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(vectors_PR, dim=1) if self.is_cosine else vectors_PR

    def _read(self, rows_P: torch.Tensor | slice) -> torch.Tensor:
        vectors_NR = self._vectors_NR if self._cached_NR is None else self._cached_NR
        if isinstance(rows_P, slice):
            vectors_PR = vectors_NR[rows_P]
        else:
            vectors_PR = vectors_NR.index_select(0, rows_P)
        return vectors_PR if self._cached_NR is not None else self._scaled(vectors_PR.float())

    def _scan(
        self, queries_QR: torch.Tensor, k: int, lacking: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (rows, scores) [Q, <= K] over all rows but the ascending ones of `lacking`."""
        if self._cached_NR is None and self._vectors_NR.numel() <= CACHED_NUMBERS:
            self._cached_NR = self._scaled(self._vectors_NR.float())
        found: tuple[torch.Tensor, torch.Tensor] | None = None
        for start in range(0, self.num_rows, PIECE_ROWS):
            piece = slice(start, min(start + PIECE_ROWS, self.num_rows))
            scores_QP = queries_QR @ self._read(piece).T
            first, last = np.searchsorted(lacking, (piece.start, piece.stop))
            if last > first:
                out = torch.from_numpy(lacking[first:last] - piece.start)
                scores_QP.index_fill_(1, out, -torch.inf)
            scores_QK, places_QK = scores_QP.topk(min(k, scores_QP.shape[1]), dim=1)
            here = places_QK + start, scores_QK
            found = here if found is None else _merged(found, here, k)
        assert found is not None, "a table has its unknown row"
        return found

    def _scan_rows(
        self, queries_QR: torch.Tensor, k: int, rows_P: NDArray[np.int64]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(rows_P)
        scores_QP = queries_QR @ self._read(rows).T
        scores_QK, places_QK = scores_QP.topk(min(k, len(rows)), dim=1)
        return rows[places_QK], scores_QK

    def _scan_added(
        self, queries_QR: torch.Tensor, k: int, allowed_N: NDArray[np.bool_] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows_T = torch.tensor(list(self._added_rows))
        scores_QT = queries_QR @ self._added_TR.T
        if allowed_N is not None:
            scores_QT[:, torch.from_numpy(~allowed_N[rows_T.numpy()])] = -torch.inf
        scores_QK, places_QK = scores_QT.topk(min(k, len(rows_T)), dim=1)
        return rows_T[places_QK], scores_QK

    def _rescored(
        self, queries_QR: torch.Tensor, k: int, rows_QC: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the k best of the rows found, by exact scores."""
        vectors_PR = self._read(rows_QC.clamp_min(0).flatten())
        vectors_QCR = vectors_PR.unflatten(0, tuple(rows_QC.shape))
        scores_QC = torch.einsum("qr,qcr->qc", queries_QR, vectors_QCR)
        scores_QC = scores_QC.masked_fill(rows_QC < 0, -torch.inf)
        scores_QK, places_QK = scores_QC.topk(min(k, rows_QC.shape[1]), dim=1)
        return rows_QC.gather(1, places_QK), scores_QK


def _faiss() -> Any:
    """Return the module; its type stubs lack most of what is called here."""
    import faiss

    return faiss


def needs_file(vectors_NR: torch.Tensor) -> bool:
    """Return whether an array [N, R] is too large for a scan by every query."""
    return vectors_NR.numel() > EXACT_NUMBERS


def write_index(
    path: Path,
    vectors_NR: torch.Tensor,
    *,
    has_vector_N: NDArray[np.bool_],
    is_cosine: bool,
    queries_QR: torch.Tensor | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> float | None:
    """Write the faiss file of vectors that are too many for a scan, and return its measured recall.

    Nothing is written, and None returned, where a scan is fast enough.

    Args:
        path: without suffix; `.faiss` and `.json` are written.
        queries_QR: vectors such as requests will bring, on which recall is measured; None: items.
        progress: called with the number of rows added.
    """
    if not needs_file(vectors_NR):
        return None
    faiss = _faiss()
    exact = VectorIndex(vectors_NR, has_vector_N=has_vector_N, is_cosine=is_cosine)
    rows_N = np.flatnonzero(has_vector_N)
    rng = np.random.default_rng(0)
    num_lists = 1 << max(round(float(np.log2(len(rows_N) ** 0.5 / 4))), 2)
    sample = np.sort(rng.choice(rows_N, min(len(rows_N), _TRAINED_ROWS), replace=False))
    sample_PR = exact._read(torch.from_numpy(sample))
    width = min(vectors_NR.shape[1] + vectors_NR.shape[1] % 2, _COMPONENTS)
    # Product quantisation to 4 bits per two numbers: a scan of 1 million such codes takes 2 ms.
    inner = faiss.index_factory(
        width, f"IVF{num_lists},PQ{width // 2}x4fs", faiss.METRIC_INNER_PRODUCT
    )
    index = faiss.IndexPreTransform(_projection(sample_PR, width), inner)
    index.train(sample_PR.numpy())
    for start in range(0, len(rows_N), PIECE_ROWS):
        piece = rows_N[start : start + PIECE_ROWS]
        index.add_with_ids(exact._read(torch.from_numpy(piece)).numpy(), piece)
        progress(len(piece))
    if queries_QR is None:
        queries_QR = exact._read(torch.from_numpy(rng.choice(rows_N, _TUNING_QUERIES)))
    nprobe, recall = _tuned(index, num_lists, exact, queries_QR[:_TUNING_QUERIES])
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path.with_suffix(".faiss")) as beside:
        faiss.write_index(index, str(beside))
    content = {"num_rows": vectors_NR.shape[0], "num_lists": num_lists, "nprobe": nprobe}
    write_json(path.with_suffix(".json"), {**content, "recall": recall})
    return recall


def _projection(sample_PR: torch.Tensor, width: int) -> Any:
    """Return faiss's transformation of vectors [P, R] to a width: principal components, rotated.

    Components of the vectors as they are, their mean not taken away: inner products are kept. The
    random rotation gives every pair of numbers an equal part of every component: a code of a pair has 16
    values, too few for a component on which the vectors differ more than on all others. In
    1 million vectors of width 128 whose first component has 90 % of the variance, 98 % of the best 50
    are among the first 1,000 by their codes, and 72 % without the rotation.
    """
    faiss = _faiss()
    _, components_RR = torch.linalg.eigh(sample_PR.T @ sample_PR)
    components_RC = components_RR[:, -width:]
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    rotation_WC = torch.linalg.qr(drawn).Q[:, : components_RC.shape[1]]
    transform = faiss.LinearTransform(sample_PR.shape[1], width, False)
    faiss.copy_array_to_vector((rotation_WC @ components_RC.T).flatten().numpy(), transform.A)
    transform.is_trained = True
    return transform


def _tuned(
    index: Any, num_lists: int, exact: VectorIndex, queries_QR: torch.Tensor
) -> tuple[int, float]:
    """Return the least nprobe whose recall is 0.99, or all lists, and its recall."""
    best, depth = _TUNING_DEPTHS
    queries = exact._scaled(queries_QR.float())
    wanted_QK = exact._scan(queries, best, exact._lacking)[0].numpy()
    nprobe = max(num_lists // 32, 1)
    while True:
        approximate = _Approximate(index, num_lists, nprobe)
        rows_QC = approximate.search(queries, depth + _RESCORED, nprobe)[0]
        found_QK = exact._rescored(queries, depth, rows_QC)[0].numpy()
        pairs = zip(wanted_QK, found_QK, strict=True)
        recall = float(np.mean([np.isin(wanted, found).mean() for wanted, found in pairs]))
        if recall >= 0.99 or nprobe == num_lists:
            return nprobe, recall
        nprobe *= 2


def _read_file(path: Path, num_rows: int) -> _Approximate:
    faiss = _faiss()
    content = read_json(path.with_suffix(".json"), EXPORT_AGAIN)
    file = path.with_suffix(".faiss")
    with reading(file, EXPORT_AGAIN):
        if content["num_rows"] != num_rows:
            raise UserError(f"of {content['num_rows']:,} rows, expected {num_rows:,}")
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        # faiss starts its own threads: as many as torch has, so that they never add up to more.
        faiss.omp_set_num_threads(torch.get_num_threads())
        return _Approximate(index, content["num_lists"], content["nprobe"])


def _merged(
    one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best (rows, scores) [Q, K] of two lists of hits."""
    rows, scores = torch.cat([one[0], other[0]], dim=1), torch.cat([one[1], other[1]], dim=1)
    scores, places = scores.topk(min(k, scores.shape[1]), dim=1)
    return rows.gather(1, places), scores


def _padded(found: tuple[torch.Tensor, torch.Tensor], k: int) -> Hits:
    """Return rows and scores [Q, <= K] as hits [Q, K]."""
    rows, scores = found
    rows = rows.masked_fill(scores == -torch.inf, -1)
    if missing := k - rows.shape[1]:
        rows = torch.nn.functional.pad(rows, (0, missing), value=-1)
        scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)
    return Hits(rows.numpy(), scores.numpy())
