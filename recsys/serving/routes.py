"""Routes: the ways in which items become candidates of a request, and their union.

    model               the direct term of the logit: inner product of a user and an item vector
    semantic, style, text   near the last liked items by one modality
    artists             by the artists of liked items
    fresh               seen for the first time of late, added items first
    popular             liked most often

In: encoded users, their likes and filters. Out: candidate rows, each with the routes that found it.
Called by recommender.py; launch/export.py writes the files (`write_routes`):

    routes/popular.npy, fresh.npy     item rows, best first
    index/<route>.faiss, .json        where a scan is too slow
    routes/anchors.npz                for models without a direct term (anchors.py)

Shapes: U users, N item rows, R retrieval width, C candidates, P items of a pool, T liked items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer, Profile, Users
from recsys.files import read_array, write_array
from recsys.schema import UNKNOWN_ROW
from recsys.serving.anchors import Anchors, write_anchors
from recsys.serving.filters import ItemFilter
from recsys.serving.index import EXPORT_AGAIN, VectorIndex, write_index
from recsys.serving.visitors import Visitor

MODEL, ARTISTS, FRESH, POPULAR = "model", "artists", "fresh", "popular"

_POOL = 1000
"""Popular and fresh items that are compared with a user; the files hold ten times as many."""
_LAST_LIKES = 3
"""Liked items whose neighbours are candidates, by every modality."""
_LAST_ARTISTS = 10
_ITEMS_OF_ARTIST = 200
_LISTED_SHARE = {POPULAR: 0.2, FRESH: 0.1}
"""Of all items, that are called popular and fresh; but at least so many:"""
_SHORTEST = 50
_SHARES = {ARTISTS: 0.05, FRESH: 0.04, POPULAR: 0.03}
_CONTENT_SHARE = 0.2
"""Of the candidates, for the modalities together; what routes leave over goes to the model's."""
_SHARES_OF_STRANGERS = {POPULAR: 0.6, FRESH: 0.4}
"""For an unknown visitor without likes, for whom the model has little to say."""
_TUNING_USERS = 64
_TAKEN = np.uint16(1 << 15)
"""Bit of a row that is no candidate any more."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates of one request, in no order."""

    rows_C: NDArray[np.int64]
    routes_C: NDArray[np.uint16]
    """Bit i: found by `Router.names[i]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How many candidates a visitor gets, and which items are none."""

    visitor: Visitor
    size: int
    excluded: NDArray[np.int64]
    """Item rows that are left out: seen, or excluded by id."""
    allowed: NDArray[np.bool_] | None
    """Rows that meet the filters [N]; None: all."""


class Router:
    """Routes of one bundle, opened."""

    def __init__(self, bundle: Bundle, scorer: BundleScorer, item_filter: ItemFilter):
        """Open indexes and lists.

        Raises:
            DamagedFileError: a file is missing or broken.
        """
        self._bundle, self._scorer, self._filter = bundle, scorer, item_filter
        items = bundle.items
        self.content = {name: open_content(bundle, name) for name in items.modalities}
        self.names = [MODEL, *self.content, ARTISTS, FRESH, POPULAR]
        self._bits = {name: np.uint16(1 << place) for place, name in enumerate(self.names)}
        self._names_by_bits: dict[int, list[str]] = {}
        self._anchors: Anchors | None = None
        if not bundle.spec.widths.retrieval:
            self._anchors = Anchors(bundle, scorer)
        vectors_NR = (
            items.parts["retrieval"].fixed if self._anchors is None else self._anchors.items_NR
        )
        self._direct = VectorIndex.open(
            bundle.folder / "index" / MODEL,
            vectors_NR,
            has_vector_N=_known_rows(vectors_NR.shape[0]),
            is_cosine=False,
        )
        self._popular, self._fresh = (
            _Pool(read_array(bundle.folder / "routes" / f"{name}.npy", EXPORT_AGAIN), vectors_NR)
            for name in (POPULAR, FRESH)
        )
        self._added: list[int] = []
        self._marks = np.zeros(len(items), np.uint16)
        for row in range(items.num_stored, len(items)):
            self.add(row)

    def add(self, row: int) -> None:
        """Take an item into account that was added to the bundle."""
        items, at = self._bundle.items, torch.tensor([row])
        if self._anchors is None:
            vector_R = items.take("retrieval", at)[0]
        else:
            vector_R = self._anchors.vector_of(row)
        self._direct.add(row, vector_R)
        for name, index in self.content.items():
            vector_1E, present_1 = items.modality(name, at)
            if present_1[0]:
                index.add(row, vector_1E[0])
        self._added.insert(0, row)

    def bit(self, name: str) -> np.uint16:
        """Return the bit of a route."""
        return self._bits[name]

    def names_of(self, bits: int) -> list[str]:
        """Return the names of routes by their bits."""
        if bits not in self._names_by_bits:
            names = [name for name, bit in self._bits.items() if bits & int(bit)]
            self._names_by_bits[bits] = names
        return self._names_by_bits[bits]

    def user_vectors(self, users: Users, dials: torch.Tensor | None) -> torch.Tensor:
        """Return the users' retrieval vectors [U, R], of the model or fitted to anchor items."""
        if self._anchors is not None:
            return self._anchors.user_vectors(users, dials)
        vectors_UR = self._scorer.retrieval(users)
        assert vectors_UR is not None, "a bundle with retrieval vectors"
        return vectors_UR

    def direct_scores(self, user_R: torch.Tensor, rows_C: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the inner products [C] of a user's retrieval vector with those of item rows."""
        return self._direct.scores(user_R, rows_C)

    def candidates(self, wanted: Sequence[Wanted], users_UR: torch.Tensor) -> list[Candidates]:
        """Return the candidates of every request.

        Args:
            users_UR: from `user_vectors`, in the order of the requests.
        """
        direct, near_likes = self._search_direct(wanted, users_UR), self._near_likes(wanted)
        num_of_pool = max((2 * asked.size // 10 for asked in wanted), default=0)
        fresh_UP, popular_UP = (
            pool.best(users_UR, num_of_pool) for pool in (self._fresh, self._popular)
        )
        found = []
        for place, asked in enumerate(wanted):
            likes = asked.visitor.likes
            parts: list[tuple[str, NDArray[np.int64]]] = []
            if not asked.visitor.is_stranger:
                parts += near_likes[place].items()
                parts.append((ARTISTS, self._by_artists(likes, users_UR[place])))
                fresh = np.concatenate([self._added[:_POOL], fresh_UP[place]])
                parts.append((FRESH, fresh.astype(np.int64)))
                parts.append((POPULAR, popular_UP[place]))
            else:
                fresh = np.concatenate([self._added[:_POOL], self._fresh.rows])
                parts += [(FRESH, fresh.astype(np.int64)), (POPULAR, self._popular.rows)]
            parts.append((MODEL, direct[place]))
            found.append(self._union(asked, parts))
        return found

    def _search_direct(
        self, wanted: Sequence[Wanted], users_UR: torch.Tensor
    ) -> list[NDArray[np.int64]]:
        """Return the model's candidates of every request, best first, excluded ones among them."""
        found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(wanted)
        for places in _of_equal_filters(wanted):
            k = max(wanted[p].size + len(wanted[p].excluded) for p in places)
            k = min(k, len(self._bundle.items))
            hits = self._direct.search(users_UR[places], k, wanted[places[0]].allowed)
            for place, rows_K in zip(places, hits.rows_QK, strict=True):
                found[place] = rows_K[rows_K >= 0]
        return found

    def _near_likes(self, wanted: Sequence[Wanted]) -> list[dict[str, NDArray[np.int64]]]:
        """Return every request's neighbours [P] of its last likes by modality, nearest first in turn."""
        found: list[dict[str, NDArray[np.int64]]] = [{} for _ in wanted]
        share = _CONTENT_SHARE / max(len(self.content), 1)
        sizes = [int(asked.size * share) + _LAST_LIKES for asked in wanted]
        for places in _of_equal_filters(wanted):
            last = [wanted[p].visitor.likes[-_LAST_LIKES:][::-1] for p in places]
            of_like_T = np.repeat(places, [len(likes) for likes in last])
            rows_T, size = torch.from_numpy(np.concatenate(last)), max(sizes[p] for p in places)
            for name, index in self.content.items():
                vectors_TE, present_T = self._bundle.items.modality(name, rows_T)
                of_query_Q = of_like_T[present_T.numpy() > 0]
                if not len(of_query_Q):
                    continue
                queries_QE = vectors_TE[present_T > 0]
                hits = index.search(queries_QE, size, wanted[places[0]].allowed, rescore=False)
                for place in dict.fromkeys(of_query_Q.tolist()):
                    rows = hits.rows_QK[of_query_Q == place, : sizes[place]].T.flatten()
                    found[place][name] = rows[rows >= 0]
        return found

    def _by_artists(self, likes: NDArray[np.int64], user_R: torch.Tensor) -> NDArray[np.int64]:
        """Return items [P] by the artists of the last likes, those with the best direct term first."""
        if "artist" not in self._bundle.catalogue.columns:
            return np.zeros(0, np.int64)
        artists = self._filter.postings("artist")
        codes = list(dict.fromkeys(c for row in likes[::-1][:50] for c in artists.codes_of(row)))
        rows = [artists.rows_of(c)[-_ITEMS_OF_ARTIST:] for c in codes[:_LAST_ARTISTS]]
        if not rows:
            return np.zeros(0, np.int64)
        rows_P = np.concatenate(rows)
        return rows_P[np.argsort(-self._direct.scores(user_R, rows_P), kind="stable")]

    def _union(self, asked: Wanted, parts: Sequence[tuple[str, NDArray[np.int64]]]) -> Candidates:
        """Return the union [C] of routes, each cut to its share; the model's fill what is left."""
        shares = _SHARES_OF_STRANGERS if asked.visitor.is_stranger else _SHARES
        content = _CONTENT_SHARE / max(len(self.content), 1)
        if len(self._marks) < len(self._bundle.items):
            self._marks = np.zeros(2 * len(self._bundle.items), np.uint16)
        # Bits of the routes by item row, kept between requests: zeroing all rows would cost more.
        marks_N = self._marks
        marks_N[asked.excluded] = _TAKEN
        chosen: list[NDArray[np.int64]] = []
        num_chosen = 0
        touched = [asked.excluded]
        for name, rows in parts:
            room = asked.size - num_chosen
            quota = room if name == MODEL else round(asked.size * shares.get(name, content))
            if asked.allowed is not None:
                rows = rows[asked.allowed[rows]]
            new = _first_ones(rows[marks_N[rows] < _TAKEN])[: min(quota, room)]
            shown = rows[: max(quota, asked.size)]
            marks_N[shown] |= self._bits[name]
            marks_N[new] |= _TAKEN
            touched.append(shown)
            chosen.append(new)
            num_chosen += len(new)
        rows_C = np.concatenate(chosen)
        routes_C = marks_N[rows_C] & ~_TAKEN
        for rows in touched:
            marks_N[rows] = 0
        return Candidates(rows_C, routes_C)


def _of_equal_filters(wanted: Sequence[Wanted]) -> list[list[int]]:
    """Return the places of requests with the same rows allowed, which are searched together."""
    groups: dict[int, list[int]] = {}
    for place, asked in enumerate(wanted):
        groups.setdefault(id(asked.allowed), []).append(place)
    return list(groups.values())


class _Pool:
    """Popular or fresh items; the first of them are compared with each user."""

    def __init__(self, rows: NDArray[np.int64], vectors_NR: torch.Tensor):
        """Args: rows [P], best first."""
        self.rows = rows
        self._vectors_PR = vectors_NR[torch.from_numpy(rows[:_POOL])].float()

    def best(self, users_UR: torch.Tensor, num: int) -> NDArray[np.int64]:
        """Return so many of the first items [U, P] for each user, largest direct term first."""
        scores_UP = users_UR @ self._vectors_PR.T
        places = scores_UP.topk(min(num, scores_UP.shape[1]), dim=1).indices.numpy()
        return self.rows[places]


def _first_ones(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return rows [C] in order, without repetitions."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]


def _known_rows(num_rows: int) -> NDArray[np.bool_]:
    """Return which rows are of items [N]: all but the unknown row."""
    is_known_N = np.ones(num_rows, bool)
    is_known_N[UNKNOWN_ROW] = False
    return is_known_N


def has_vector(bundle: Bundle, modality: str) -> NDArray[np.bool_]:
    """Return which items of the files have a vector [N]."""
    place = bundle.items.modalities.index(modality)
    has_N = bundle.items.has_vector.fixed[:, place].numpy().astype(bool)
    has_N[UNKNOWN_ROW] = False
    return has_N


def open_content(bundle: Bundle, modality: str) -> VectorIndex:
    """Return the index of a modality's vectors, by cosine.

    Raises:
        DamagedFileError: its faiss file is broken, or missing where one is needed.
    """
    return VectorIndex.open(
        bundle.folder / "index" / modality,
        bundle.items.vectors[modality].fixed,
        has_vector_N=has_vector(bundle, modality),
        is_cosine=True,
    )


def write_routes(
    bundle: Bundle, scorer: BundleScorer, progress: Callable[[int], None] = lambda count: None
) -> dict[str, float]:
    """Write the files that routes read, below the bundle's folder, and return recalls of its indexes.

    Called by launch/export.py, before the bundle gets its name.

    Args:
        progress: called with a number of things done: pairs scored, rows indexed.
    """
    folder = bundle.folder / "routes"
    folder.mkdir(exist_ok=True)
    num_items = len(bundle.items) - 1
    for name, rows in ((POPULAR, popular_rows(bundle)), (FRESH, fresh_rows(bundle))):
        longest = max(int(_LISTED_SHARE[name] * num_items), _SHORTEST)
        write_array(folder / f"{name}.npy", rows[: min(longest, 10 * _POOL)])
    users_UR = vectors_NR = None
    if bundle.spec.widths.retrieval:
        vectors_NR = bundle.items.parts["retrieval"].fixed
        users_UR = scorer.retrieval(scorer.encode(_some_profiles(bundle)))
    else:
        write_anchors(bundle, scorer, progress)
        anchors = Anchors(bundle, scorer)
        vectors_NR = anchors.items_NR
        users_UR = anchors.user_vectors(scorer.encode(_some_profiles(bundle)), None)
    known_N = _known_rows(vectors_NR.shape[0])
    recalls = {
        MODEL: write_index(
            bundle.folder / "index" / MODEL,
            vectors_NR,
            has_vector_N=known_N,
            is_cosine=False,
            queries_QR=users_UR,
            progress=progress,
        )
    }
    for name in bundle.items.modalities:
        recalls[name] = write_index(
            bundle.folder / "index" / name,
            bundle.items.vectors[name].fixed,
            has_vector_N=has_vector(bundle, name),
            is_cosine=True,
            progress=progress,
        )
    return {f"index_recall_{n}": recall for n, recall in recalls.items() if recall is not None}


def popular_rows(bundle: Bundle) -> NDArray[np.int64]:
    """Return item rows [P] by training interactions, most first; items without any are left out."""
    count_N = bundle.items.train_count.fixed.numpy()
    order = np.argsort(-count_N, kind="stable")
    return order[(count_N[order] > 0) & (order != UNKNOWN_ROW)]


def fresh_rows(bundle: Bundle) -> NDArray[np.int64]:
    """Return item rows [P] by the time they were first seen, latest first; none where it is not known."""
    if "first_time" not in bundle.catalogue.columns:
        return np.zeros(0, np.int64)
    column = bundle.catalogue.table["first_time"]
    time_N = column.fill_null(np.iinfo(np.int64).min).to_numpy()
    order = np.argsort(-time_N, kind="stable")
    return order[(time_N[order] > np.iinfo(np.int64).min) & (order != UNKNOWN_ROW)]


def _some_profiles(bundle: Bundle) -> list[Profile]:
    """Return profiles of known users, drawn: their vectors are what an index will be asked for."""
    num_users = max(bundle.users.num_rows, 2)
    rows = np.random.default_rng(0).integers(1, num_users, _TUNING_USERS)
    return [Profile(user_row=int(row) if bundle.users.num_rows > 1 else 0) for row in rows]
