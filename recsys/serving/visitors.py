"""Visitors: who asks, as the model reads them; a known user, liked items, raw features, or nobody.

In: requests. Out: profiles for BundleScorer, liked item rows, and what the bundle did not know. Called by
recommender.py.
Shapes: T liked items, M modalities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.bundle.bundle import Bundle
from recsys.bundle.scorer import Profile
from recsys.data.dense import encode_dense
from recsys.data.raw_text import json_array
from recsys.errors import UserError
from recsys.schema import UNKNOWN_ROW

LaterLikes = Callable[[str], Sequence[tuple[str, float]]]
"""Given a user: liked items and their times (seconds since 1970), oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """One visitor."""

    profile: Profile
    likes: NDArray[np.int64]
    """Item rows liked [T], oldest first, each once: the history that the model reads."""
    seen: NDArray[np.int64]
    """Item rows that lists leave out: `likes`, and what the user liked elsewhere in the log."""
    unknown_likes: list[str]
    """Liked ids that the bundle lacks."""
    known_user: bool
    dials: NDArray[np.float32] | None
    """Factor by modality [M]; None: all are 1."""

    @property
    def is_stranger(self) -> bool:
        """Whether neither a known user nor a liked item says what the visitor likes."""
        return not self.known_user and not len(self.likes)


class Visitors:
    """Resolves requests against one bundle."""

    def __init__(self, bundle: Bundle):
        """Args: bundle: opened."""
        self._bundle = bundle
        self.later_likes: LaterLikes = lambda user: ()
        """Likes that came after the bundle was made; a server or notebook puts its own in place."""
        self._features = [
            feature.name
            for feature in bundle.spec.manifest.all_features
            if feature.side in ("user", "context")
            and feature.source != "history"
            and feature.name != "user_id"
        ]

    def of(
        self,
        *,
        user: str | None,
        likes: Sequence[str],
        features: Mapping[str, Any],
        dials: Mapping[str, float],
        pictured: Sequence[int] = (),
    ) -> Visitor:
        """Return the visitor of a request.

        Args:
            pictured: item rows of uploaded pictures in the history; they are not seen.

        Raises:
            UserError: a feature or a dial that the bundle lacks, or a value of the wrong type.
        """
        bundle = self._bundle
        user_row = bundle.user_row(user)
        stored = bundle.users.history(user_row)
        later = [item for item, _ in self.later_likes(user)] if user is not None else []
        asked = bundle.item_rows([*later, *likes])
        unknown = [
            item for item, row in zip(likes, asked[len(later) :], strict=True) if row == UNKNOWN_ROW
        ]
        more = np.concatenate([asked[asked != UNKNOWN_ROW], np.array(pictured, np.int64)])
        history = _each_once(np.concatenate([stored, more])) if len(more) else stored
        encoded, weights = self._encoded(features)
        return Visitor(
            profile=Profile(
                user_row=user_row,
                features=encoded,
                weights=weights,
                history=history if len(more) else None,
            ),
            likes=history[history != UNKNOWN_ROW],
            seen=np.concatenate([stored, asked, bundle.users.seen(user_row)]),
            unknown_likes=unknown,
            known_user=user_row != UNKNOWN_ROW,
            dials=self._dials(dials),
        )

    def _encoded(
        self, features: Mapping[str, Any]
    ) -> tuple[dict[str, NDArray], dict[str, NDArray[np.float32]]]:
        """Return the rows [V], or the number [1], of every feature given, and weights of ids [V]."""
        for name in features:
            if name not in self._features:
                known = ", ".join(self._features) or "none"
                raise UserError(
                    f"features: {name!r} given; a visitor of this bundle has the features {known}"
                )
        return encoded_features(self._bundle, features)

    def _dials(self, dials: Mapping[str, float]) -> NDArray[np.float32] | None:
        """Return the factor of every modality [M]; None where all are 1."""
        names = self._bundle.spec.dial_names
        for name in dials:
            if name not in names:
                known = ", ".join(names) or "none"
                raise UserError(f"dials: {name!r} given; this bundle has dials for {known}")
        if all(value == 1 for value in dials.values()):
            return None
        return np.array([dials.get(name, 1.0) for name in names], np.float32)


def encoded_features(
    bundle: Bundle, features: Mapping[str, Any]
) -> tuple[dict[str, NDArray], dict[str, NDArray[np.float32]]]:
    """Return raw values as prepare would write them, by feature.

    The first are rows [V], or a number [1], the second the weights [V] of the rows of weighted lists.

    Raises:
        UserError: a value is of a type that cannot be read, or a list where one value belongs, or an id's
            weight is below 0 or none.
    """
    if not features:
        return {}, {}
    dense = {feature.name: feature for feature in bundle.spec.manifest.dense}
    weighted = {feature.name for feature in bundle.spec.manifest.features if feature.is_weighted}
    rows: dict[str, NDArray] = {}
    weights: dict[str, NDArray[np.float32]] = {}
    for name, value in features.items():
        try:
            raw = json_array([value])
        except UserError as error:
            raise UserError(f"features.{name}: {error}") from error
        if name in dense:
            rows[name] = encode_dense(dense[name], raw)
        elif name in weighted:
            rows[name], _, weights[name] = bundle.encoder.encode_weighted(name, raw)
        else:
            rows[name] = bundle.encoder.encode(name, raw)[0]
    return rows, weights


def _each_once(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows [T] in order; of a repeated one the last stays."""
    _, last = np.unique(rows[::-1], return_index=True)
    return rows[np.sort(len(rows) - 1 - last)]
