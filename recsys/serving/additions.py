"""Items added after training: encoded by the bundle's own encoders, recommended at once.

In: a NewItem. Out: an EncodedItem, which its caller stores durably as bytes and applies to every open
recommender, and again at start. Its id is unknown to the model, as in training; its vectors and features
are not.

Shapes: E modality width, V rows of a feature.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import BundleScorer
from recsys.errors import UserError
from recsys.serving.encoded_item import EncodedItem
from recsys.serving.encoders import Encoders
from recsys.serving.requests import NewItem
from recsys.serving.store import AddedItem, Store
from recsys.serving.visitors import encoded_features


class TakesRows(Protocol):
    """A part of the recommender that keeps something by item row."""

    def add(self, row: int) -> None:
        """Take an item into account that was added to the bundle."""


class Additions:
    """Adds items to one opened bundle."""

    def __init__(
        self,
        bundle: Bundle,
        scorer: BundleScorer,
        encoders: Encoders,
        followers: Sequence[TakesRows],
        store: Store | None,
    ):
        """Apply the items of the store.

        Args:
            followers: told of the row of every added item.
            store: keeps what `add` adds; None: nothing does.
        """
        self._bundle, self._scorer, self._encoders = bundle, scorer, encoders
        self._followers, self._store = followers, store
        for item in store.items_after() if store is not None else ():
            self.apply_stored(item)

    def add(self, item: NewItem) -> None:
        """Encode an item, keep it in the store, and make it one of the bundle's in memory."""
        made = self.encode(item)
        if self._store is not None:
            request, encoded = item.model_dump_json().encode(), made.to_bytes()
            with self._store.writing() as transaction:
                transaction.add_item(
                    id=item.id, version=made.version, request=request, encoded=encoded
                )
        self._apply(made)

    def encode(self, item: NewItem) -> EncodedItem:
        """Return an item as the bundle reads it.

        Raises:
            UserError: the bundle knows the id, lacks the encoder, the feature or the modality, or cannot
                read the picture.
        """
        bundle = self._bundle
        if bundle.item_rows([item.id])[0]:
            raise UserError(f"id: {item.id!r} given; this bundle has an item of this id")
        vectors: dict[str, NDArray[np.float32]] = {}
        if item.picture is not None:
            vectors |= self._encoders.picture(item.picture)
        if item.text:
            vectors["text"] = self._encoders.text(item.text)
        # One of zeros is none, as in the vectors' files.
        own = {name: self._own_vector(name, given) for name, given in item.vectors.items()}
        vectors |= {name: vector_E for name, vector_E in own.items() if vector_E.any()}
        known = list(bundle.items.features)
        for name in item.features:
            if name not in known:
                raise UserError(
                    f"features: {name!r} given; an item of this bundle has the features "
                    f"{', '.join(known) or 'none'}"
                )
        features, weights = encoded_features(bundle, item.features)
        card = {"item_id": item.id, "title": item.title, "artist": item.artist, "text": item.text}
        return EncodedItem(
            version=bundle.version,
            card={**card, "tags": list(item.tags)},
            vectors={name: v for name, v in vectors.items() if name in bundle.items.modalities},
            features=features,
            weights={name: array for name, array in weights.items()},
        )

    def _own_vector(self, name: str, given: list[float]) -> NDArray[np.float32]:
        """Return a vector [E] of a modality without an encoder, scaled as the bundle's are."""
        scales, widths = self._bundle.spec.vector_scales, self._bundle.spec.widths.modalities
        if name not in scales:
            raise UserError(
                f"vectors: {name!r} given; an item of this bundle brings vectors of "
                f"{', '.join(scales) or 'no modality'}"
            )
        if len(given) != widths[name]:
            raise UserError(f"vectors: {name}: {len(given):,} numbers, expected {widths[name]:,}")
        vector_E = np.array(given) * scales[name]
        if not (np.abs(vector_E) <= np.finfo(np.float16).max).all():
            raise UserError(
                f"vectors: {name}: a number as large as {np.abs(given).max():g}; expected numbers in "
                f"the range of the vectors that the items have"
            )
        return vector_E.astype(np.float32)

    def apply_stored(self, item: AddedItem) -> None:
        """Make an item of the store one of the bundle's; one of a known id is left as it is.

        One that an earlier bundle knew, and that is gone since, stays gone unless it was added later.

        Raises:
            UserError: another bundle encoded it, and this one cannot; names the item.
        """
        is_gone = item.time <= self._bundle.gone_items.get(item.id, -math.inf)
        if is_gone or self._bundle.item_rows([item.id])[0]:
            return
        if item.version == self._bundle.version:
            self._apply(EncodedItem.from_bytes(item.encoded))
            return
        try:
            self._apply(self.encode(NewItem.model_validate_json(item.request)))
        except UserError as error:
            raise UserError(f"added item {item.id!r}: {error}") from error

    def _apply(self, item: EncodedItem) -> None:
        made = self._scorer.encode_item(dict(item.vectors), item.features, item.weights)
        row = self._bundle.add_item(item.card["item_id"], made, item.card)
        for follower in self._followers:
            follower.add(row)
