"""Search for items: near to an item, to words or to a picture, and the card of one.

In: requests. Out: answers. Called by recommender.py.
Shapes: E modality width, R width of retrieval vectors, P items of a piece, K items found.
"""

from collections.abc import Collection, Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.items import Rows
from recsys.bundle.tables import mapped
from recsys.errors import UserError
from recsys.schema import UNKNOWN_ROW
from recsys.serving.encoders import Encoders
from recsys.serving.filters import ItemFilter
from recsys.serving.requests import (
    Filters,
    ItemCard,
    SearchRequest,
    SimilarItem,
    SimilarItems,
    SimilarRequest,
    UnknownIdError,
)
from recsys.serving.routes import MODEL, Router

_PIECE_ROWS = 65_536


class Captions:
    """Id, title and artist of items, as answers show them, read without the rest of the card."""

    def __init__(self, bundle: Bundle):
        """Args: bundle: opened."""
        self._catalogue = bundle.catalogue
        self._columns = [
            self._catalogue.table.column(name) if name in self._catalogue.columns else None
            for name in ("item_id", "title", "artist")
        ]

    def of(self, row: int) -> tuple[str, str | None, str | None]:
        """Return (id, title, artist) of an item's row; None for what it has not."""
        if row >= self._catalogue.table.num_rows:
            card = self._catalogue.card(row)
            return card["item_id"], card.get("title"), card.get("artist")
        item, title, artist = (None if c is None else c[row].as_py() for c in self._columns)
        return str(item), title, artist


class ItemSearch:
    """Searches the items of one bundle by their vectors."""

    def __init__(self, bundle: Bundle, router: Router, item_filter: ItemFilter, encoders: Encoders):
        """Args: router: whose indexes of modalities are searched."""
        self._bundle, self._router = bundle, router
        self._filter, self._encoders = item_filter, encoders
        self.shown = Captions(bundle)

    def row(self, item: str) -> int:
        """Return the row of an item.

        Raises:
            UnknownIdError: the bundle has no such item.
        """
        row = int(self._bundle.item_rows([item])[0])
        if row == UNKNOWN_ROW:
            raise UnknownIdError(f"item: {item!r} given; this bundle has no item of this id")
        return row

    def similar(self, request: SimilarRequest) -> SimilarItems:
        """Return the items nearest to an item by one modality or by the model, without itself."""
        row, by = self.row(request.item), _one_of(request.by, [*self._router.content, MODEL])
        if by == MODEL:
            return self._near_by_model(row, request)
        vector_1E, present_1 = self._bundle.items.modality(by, torch.tensor([row]))
        if not present_1[0]:
            raise UserError(
                f"item: {request.item!r} has no {by} vector to compare; try another by="
            )
        return self._near(vector_1E, by, request.k, request.filters, without=row)

    def search(self, request: SearchRequest) -> SimilarItems:
        """Return the items nearest to words, or to a picture."""
        if request.words is not None:
            vectors = {"text": self._encoders.text(request.words)}
        else:
            assert request.picture is not None, "checked by SearchRequest"
            vectors = self._encoders.picture(request.picture)
        by = request.by or next(iter(vectors))
        if by not in vectors:
            raise UserError(f"by={by!r}: this search compares by {' or '.join(vectors)}")
        vector_E = torch.from_numpy(vectors[_one_of(by, list(self._router.content))])
        return self._near(vector_E[None], by, request.k, request.filters)

    def card(self, item: str) -> ItemCard:
        """Return what the catalogue says of an item."""
        row, items = self.row(item), self._bundle.items
        card, at = self._bundle.catalogue.card(row), torch.tensor([row])
        has_vector = items.has_vector.take(at)[0].tolist()
        return ItemCard(
            version=self._bundle.version,
            id=item,
            title=card.get("title"),
            artist=card.get("artist"),
            tags=list(card.get("tags") or []),
            text=card.get("text"),
            interactions=int(items.train_count.take(at)[0]),
            modalities=[n for n, has in zip(items.modalities, has_vector, strict=True) if has],
            is_new=row >= items.num_stored,
        )

    def _near(
        self, query_1E: torch.Tensor, by: str, k: int, filters: Filters, without: int = UNKNOWN_ROW
    ) -> SimilarItems:
        out = {without, *self._bundle.item_rows(filters.exclude_items).tolist()}
        index, allowed = self._router.content[by], self._filter.allowed(filters)
        hits = index.search(query_1E, k + len(out), allowed)
        found = zip(hits.rows_QK[0].tolist(), hits.scores_QK[0].tolist(), strict=True)
        return self._answer(by, [(r, score) for r, score in found if r >= 0 and r not in out][:k])

    def _near_by_model(self, row: int, request: SimilarRequest) -> SimilarItems:
        if row >= len(self._model_vectors):
            raise UserError(
                f"item: {request.item!r} was added after training, and this model has no vector of it to "
                f"compare; try another by="
            )
        filters = request.filters
        out = {row, UNKNOWN_ROW, *self._bundle.item_rows(filters.exclude_items).tolist()}
        near = self._nearest_by_model(row, request.k, out, self._filter.allowed(filters))
        return self._answer(MODEL, near)

    def _nearest_by_model(
        self, row: int, k: int, out: Collection[int], allowed_N: NDArray[np.bool_] | None
    ) -> list[tuple[int, float]]:
        """Return the K items with the largest cosine of retrieval vectors, and it; an exact scan."""
        query_R = self._tastes(self._model_vectors.take(torch.tensor([row])))[0]
        left_out = torch.tensor(sorted(out))
        best: list[tuple[int, float]] = []
        for start, vectors_PR in self._model_vectors.blocks(_PIECE_ROWS):
            rows_P = torch.arange(start, start + len(vectors_PR))
            cosines_P = self._tastes(vectors_PR) @ query_R
            cosines_P[torch.isin(rows_P, left_out)] = -torch.inf
            if allowed_N is not None:
                cosines_P[~torch.from_numpy(allowed_N[rows_P.numpy()])] = -torch.inf
            found = cosines_P.topk(min(k, len(rows_P)))
            best += zip(rows_P[found.indices].tolist(), found.values.tolist(), strict=True)
            best = sorted(best, key=lambda hit: -hit[1])[:k]
        return [hit for hit in best if hit[1] > -np.inf]

    @cached_property
    def _model_vectors(self) -> Rows:
        """Retrieval vectors by item row [N, R]: of the model itself, or those fitted to its logits."""
        parts = self._bundle.items.parts
        if "retrieval" in parts:
            return parts["retrieval"]
        return Rows(mapped(self._bundle.folder / "routes" / "anchors.items.npy"))

    def _tastes(self, vectors_PR: torch.Tensor) -> torch.Tensor:
        """Return unit vectors [P, R] without the column that counts equally for all users."""
        spec = self._bundle.spec
        has_bias = spec.first_order or not spec.widths.retrieval
        return F.normalize((vectors_PR[:, :-1] if has_bias else vectors_PR).float(), dim=1)

    def _answer(self, by: str, near: list[tuple[int, float]]) -> SimilarItems:
        items = []
        for place, (row, score) in enumerate(near):
            item, title, artist = self.shown.of(row)
            items.append(SimilarItem(place + 1, item, score, title, artist))
        return SimilarItems(version=self._bundle.version, by=by, items=items)


def _one_of(by: str | None, names: Sequence[str]) -> str:
    """Return what is compared by: a name, or the first of them for None."""
    if by is None and names:
        return names[0]
    if by is None or by not in names:
        raise UserError(f"by={by!r}: this bundle compares by {', '.join(names) or 'nothing'}")
    return by
