"""Pictures that visitors upload, as liked items of their histories.

In: requests with pictures. Out: item rows for the time in which they are answered. A picture is an item
of an unknown id, of which there are vectors alone: they enter the history as an added item's do. A model
that reads no vectors of a history is given the items nearest to the picture instead. Called by
recommender.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch

from recsys.bundle.bundle import Bundle
from recsys.schema import UNKNOWN_ROW
from recsys.serving.encoders import Encoders
from recsys.serving.requests import RecommendRequest
from recsys.serving.routes import Router


class UploadedPictures:
    """Item rows of uploaded pictures, of one bundle."""

    def __init__(self, bundle: Bundle, encoders: Encoders, router: Router):
        """Args: router: whose indexes find the items nearest to a picture."""
        self._items, self._encoders, self._router = bundle.items, encoders, router
        spec = bundle.spec
        self._read = {modality for modality, _ in spec.interests}
        if spec.compared:
            self._read |= set(spec.vector_names)

    @contextmanager
    def rows_of(self, requests: Sequence[RecommendRequest]) -> Iterator[list[list[int]]]:
        """Yield the item rows that the pictures of each request are in its history, within a block.

        Raises:
            UserError: the bundle has no image encoder, or a file is no usable picture.
        """
        encoded = [list(map(self._encoders.picture, request.pictures)) for request in requests]
        vectors = [by_modality for pictures in encoded for by_modality in pictures]
        if not any(self._read & by_modality.keys() for by_modality in vectors):
            yield [self._nearest(pictures) for pictures in encoded]
            return
        with self._items.temporary(vectors) as rows:
            following = iter(rows)
            yield [list(islice(following, len(pictures))) for pictures in encoded]

    def _nearest(self, pictures: Sequence[dict]) -> list[int]:
        """Return the row of the item nearest to each picture by each of its modalities."""
        rows = []
        for vectors in pictures:
            for name, vector_E in vectors.items():
                if name in self._router.content:
                    hits = self._router.content[name].search(torch.from_numpy(vector_E)[None], 1)
                    rows.append(int(hits.rows_QK[0, 0]))
        return [row for row in dict.fromkeys(rows) if row > UNKNOWN_ROW]
