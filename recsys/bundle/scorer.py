"""BundleScorer: logits and modality weights of users and items of a bundle, in torch on one thread.

A Profile says what is known of a user; `encode` looks it up once, and `score` takes any pairs of encoded
users and item rows, of several requests in one call. The dials of a user multiply the presence of each
modality: 1 changes nothing, 0 removes the modality from weights, match and second-order term.
Shapes: U users, R pairs, M modalities, H hidden, D product, E modality width, V ids, T items of a
history, S width of the histograms, X user features side by side.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from recsys.bundle import similarity
from recsys.bundle.bundle import Bundle
from recsys.bundle.dense import DenseHalf, padded_rows
from recsys.bundle.item_encoder import ItemEncoder
from recsys.bundle.items import ItemRow
from recsys.bundle.lookup import Column, Lookup, column_of
from recsys.bundle.spec import TWO_SIDED
from recsys.data.dense import missing_value
from recsys.schema import UNKNOWN_ROW, DenseSpec, FeatureSpec, history_of


@dataclass(frozen=True, kw_only=True)
class Profile:
    """User of a request: features and history."""

    user_row: int = UNKNOWN_ROW
    """Row of a known user; 0 for a visitor."""
    features: Mapping[str, NDArray] = field(default_factory=dict)
    """Rows of user and context features by name, from Encoder, or numbers [1], from encode_dense. A user
    feature that is not given is the stored user's, a context feature unknown: row 0, an empty list, or a
    missing number."""
    weights: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Weights of the ids of weighted lists in `features`, by name; missing ones are 1."""
    history: NDArray[np.int64] | None = None
    """Item rows the user likes [T], oldest first, those of added items allowed; None: as stored."""
    negatives: NDArray[np.int64] | None = None
    """Item rows of the user's rows of label 0 [T], oldest first; None: as stored."""


@dataclass(frozen=True, kw_only=True)
class Users:
    """Encoded users."""

    num_users: int
    first_order_U: torch.Tensor
    """Sum of the first-order weights of the user side."""
    vectors: tuple[torch.Tensor, ...]
    """Two-sided: u [U, H], q [U, D], retrieval [U, R]; whole: user features [U, X]."""
    interests: tuple[list[torch.Tensor], list[torch.Tensor]]
    """Interest vectors [U, E] and whether the history holds any [U], in the model's order."""
    columns: Mapping[str, Column]
    """Columns of the user side, and context that the item side reads."""


class BundleScorer:
    """Scores of a bundle's model."""

    def __init__(self, bundle: Bundle):
        """Load the graphs.

        Raises:
            DamagedFileError: a graph is missing or broken.
        """
        self.bundle = bundle
        self.spec = spec = bundle.spec
        self._is_two_sided = spec.kind == TWO_SIDED
        self._dense = DenseHalf(bundle.folder / "dense")
        self._dense.load(("user", "score") if self._is_two_sided else ("whole",))
        self._user_lookup = Lookup(spec, spec.user_features, spec.user_dense, bundle.tables)
        self._item_encoder = ItemEncoder(spec, bundle.tables, self._dense)
        self._profile_features = [spec.feature(name) for name in self._profile_names()]
        self._profile_dense = self._dense_of_profile()
        self._longest = {
            f.name: f.max_ids or self._longest_of(f.name)
            for f in self._profile_features
            if f.source == "history"
        }

    @property
    def dial_names(self) -> tuple[str, ...]:
        """Modalities that have a dial, in the order of a user's dials [M]."""
        return self.spec.dial_names

    # Users

    @torch.inference_mode()
    def encode(self, profiles: Sequence[Profile]) -> Users:
        """Look users up and run the user's half of the model."""
        store = self.bundle.users
        columns = {}
        for feature in self._profile_features:
            name = feature.name
            if feature.source == "history":
                rows = self._histories(profiles, feature)
            elif name == "user_id":
                rows = [np.array([p.user_row]) for p in profiles]
            else:
                stored = store.features.get(name)
                nothing = np.zeros(0 if feature.is_list else 1, np.int64)
                rows = [
                    p.features[name]
                    if name in p.features
                    else nothing
                    if stored is None
                    else stored.of(p.user_row)
                    for p in profiles
                ]
            weights = self._weights(profiles, name, rows) if feature.is_weighted else None
            columns[name] = column_of(rows, feature.is_list, weights)
        for dense in self._profile_dense:
            missing = np.array([missing_value(dense)], np.float32)
            stored = store.features.get(dense.name)
            numbers = [
                p.features.get(dense.name, missing if stored is None else stored.of(p.user_row))
                for p in profiles
            ]
            columns[dense.name] = column_of(numbers, is_list=False)
        return self.encode_columns(columns, len(profiles))

    @torch.inference_mode()
    def encode_columns(self, columns: Mapping[str, Column], num_users: int) -> Users:
        """Run the user's half of the model on columns of every feature of `Profile` and history [U]."""
        user_UX, first_order_U = self._user_lookup(columns, num_users)
        interests = self._interests(columns, num_users)
        vectors: tuple[torch.Tensor, ...] = (user_UX,)
        if self._is_two_sided and num_users:
            vectors = self._dense.user(user_UX, *interests)
        return Users(
            num_users=num_users,
            first_order_U=first_order_U,
            vectors=vectors,
            interests=interests,
            columns=columns,
        )

    def _histories(
        self, profiles: Sequence[Profile], feature: FeatureSpec
    ) -> list[NDArray[np.int64]]:
        """Return the last item rows of each user's history, as many as the feature has."""
        store, sequence = self.bundle.users, history_of(feature.name)
        longest = self._longest[feature.name]
        given = [p.history if sequence == "history" else p.negatives for p in profiles]
        return [
            (store.history(p.user_row, sequence) if rows is None else rows)[-longest:]
            for p, rows in zip(profiles, given, strict=True)
        ]

    def _profile_names(self) -> list[str]:
        """Names of every feature that a profile gives: of the user side, histories, context of items."""
        spec = self.spec
        names = [*spec.user_features, *(feature for _, feature in spec.interests)]
        names += spec.compared
        names += [name for name in spec.item_features if spec.feature(name).source != "item"]
        return list(dict.fromkeys(names))

    def _dense_of_profile(self) -> list[DenseSpec]:
        """Dense features that a profile gives: of the user side, and context of items."""
        names = dict.fromkeys((*self.spec.user_dense, *self.spec.item_dense))
        return [f for f in map(self.spec.dense, names) if f.source != "item"]

    def _weights(
        self, profiles: Sequence[Profile], name: str, rows: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        """Return the weights of each user's ids of a weighted list, one array a user."""
        stored = self.bundle.users.features.get(name)
        return [
            p.weights.get(name, np.ones(len(ids), np.float32))
            if name in p.features or stored is None
            else stored.weights_of(p.user_row)
            for p, ids in zip(profiles, rows, strict=True)
        ]

    def _longest_of(self, name: str) -> int:
        history = self.spec.manifest.history
        assert history is not None, "a history feature comes with a history"
        return history.lengths[name]

    def _interests(
        self, columns: Mapping[str, Column], num_users: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        items, vectors, presents = self.bundle.items, [], []
        # Of each history: user of every id [V]; by modality of the bundle, divisor and presence [U, K].
        histories: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        for modality, feature in self.spec.interests:
            values_V, lengths_U, _ = columns[feature]
            assert lengths_U is not None, "a history is a list"
            if feature not in histories:
                user_V = torch.repeat_interleave(lengths_U)
                has_VK = items.has_vector.take(values_V).float()
                zeros_UK = has_VK.new_zeros(num_users, has_VK.shape[1])
                count_UK = zeros_UK.index_add_(0, user_V, has_VK)
                divisor_UK = count_UK.clamp_min(1.0) + self.spec.interest_shrinkage
                histories[feature] = (user_V, divisor_UK, (count_UK > 0).float())
            user_V, divisor_UK, present_UK = histories[feature]
            place = items.modalities.index(modality)
            vector_VE = items.vectors[modality].take(values_V).float()
            sum_UE = vector_VE.new_zeros(num_users, vector_VE.shape[1])
            sum_UE.index_add_(0, user_V, vector_VE)
            vectors.append(sum_UE / divisor_UK[:, place, None])
            presents.append(present_UK[:, place])
        return vectors, presents

    # Pairs

    @torch.inference_mode()
    def score(
        self,
        users: Users,
        user_of_row_R: torch.Tensor,
        item_row_R: torch.Tensor,
        dials_UM: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits [R], modality weights [R, M]) of pairs; M is 0 for a model that measures none.

        Args:
            user_of_row_R: int64, place of each pair's user among `users`.
            item_row_R: int64, item rows, those of added items allowed.
            dials_UM: of each user, in the order of `dial_names`; None: 1.
        """
        num_rows = item_row_R.shape[0]
        if not num_rows:
            return torch.zeros(0), torch.zeros(0, len(self.spec.modality_names))
        padding = (0, padded_rows(num_rows) - num_rows)  # with pairs of the first user and row 0
        user_of_row_R, item_row_R = (F.pad(rows, padding) for rows in (user_of_row_R, item_row_R))
        dials_RM = None if dials_UM is None else dials_UM[user_of_row_R]
        side = self._item_side(users, user_of_row_R, item_row_R)
        similarity_RS = self._similarity(users, user_of_row_R, item_row_R, dials_UM)
        if self._is_two_sided:
            present_RM = side["present"] if dials_RM is None else side["present"] * dials_RM
            user_RH, query_RD = (
                vector.index_select(0, user_of_row_R) for vector in users.vectors[:2]
            )
            logits_R, weights_RM = self._dense.score(
                user_RH, query_RD, side["vectors"], present_RM, side["products"], similarity_RS
            )
        else:
            vectors, presents = self._modalities(item_row_R, dials_RM)
            interests = [[x[user_of_row_R] for x in part] for part in users.interests]
            user_RX = users.vectors[0][user_of_row_R]
            logits_R, weights_RM = self._dense.whole(
                user_RX, side["columns"], vectors, presents, *interests, similarity_RS
            )
        first_order_R = users.first_order_U.index_select(0, user_of_row_R) + side["first_order"]
        logits_R = logits_R + first_order_R
        return logits_R[:num_rows], weights_RM[:num_rows]

    def _item_side(
        self, users: Users, user_of_row_R: torch.Tensor, item_row_R: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        items = self.bundle.items
        if not self.spec.items_at_request:
            return {
                part: items.take(part, item_row_R) for part in items.parts if part != "retrieval"
            }
        columns: dict[str, Column] = {"item_id": Column(item_row_R)}
        columns |= {name: feature.take(item_row_R) for name, feature in items.features.items()}
        for name in (*self.spec.item_features, *self.spec.item_dense):
            if name not in columns:
                columns[name] = _taken(users.columns[name], user_of_row_R)
        vectors, presents = self._modalities(item_row_R, None)
        return self._item_encoder(columns, vectors, presents, item_row_R.shape[0])

    def _modalities(
        self, item_row_R: torch.Tensor, dials_RM: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        vectors, presents = [], []
        for name in self.spec.vector_names:
            vector_RE, present_R = self.bundle.items.modality(name, item_row_R)
            if dials_RM is not None:
                present_R = present_R * dials_RM[:, self.dial_names.index(name)]
            vectors.append(vector_RE)
            presents.append(present_R)
        return vectors, presents

    def _similarity(
        self,
        users: Users,
        user_of_row_R: torch.Tensor,
        item_row_R: torch.Tensor,
        dials_UM: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the histograms of similarities with the user's histories [R, S]."""
        spec, num_tiers = self.spec, self.spec.similarity_tiers
        num_rows = item_row_R.shape[0]
        pairs = list(itertools.product(spec.compared if num_tiers else (), spec.vector_names))
        found_RS = torch.zeros(num_rows, num_tiers * len(pairs))
        for place, (history, name) in enumerate(pairs):
            columns = slice(place * num_tiers, (place + 1) * num_tiers)
            past, lengths_U, _ = users.columns[history]
            assert lengths_U is not None, "a history is a list"
            for user, past_T in enumerate(past.split(lengths_U.tolist())):
                rows = (user_of_row_R == user).nonzero()[:, 0]
                if not len(rows) or not len(past_T):
                    continue
                item_RE, item_present_R = self.bundle.items.modality(name, item_row_R[rows])
                if dials_UM is not None:
                    item_present_R = item_present_R * dials_UM[user, self.dial_names.index(name)]
                past_TE, past_present_T = self.bundle.items.modality(name, past_T)
                found_RS[rows, columns] = similarity.histogram(
                    item_RE, item_present_R, past_TE, past_present_T, num_tiers
                )
        return found_RS

    # Retrieval

    @torch.inference_mode()
    def retrieval(self, users: Users) -> torch.Tensor | None:
        """Return the users' retrieval vectors [U, R].

        The inner product with an item's (`bundle.items.parts["retrieval"]`) is the direct term
        v . (u . m) + q . p and the item's first-order weight. None where the model has no such term.
        It knows no dials: `direct` does.
        """
        if not self.spec.widths.retrieval:
            return None
        own_UR = users.vectors[2]
        if not self.spec.first_order:
            return own_UR
        return torch.cat([own_UR, own_UR.new_ones(users.num_users, 1)], dim=1)

    # New items

    @torch.inference_mode()
    def encode_item(
        self,
        vectors: Mapping[str, NDArray | None],
        features: Mapping[str, NDArray] | None = None,
        weights: Mapping[str, NDArray] | None = None,
    ) -> ItemRow:
        """Return everything that `Bundle.add_item` needs of an item whose id is unknown.

        Args:
            vectors: its vector [E] by modality; missing or None: it has none.
            features, weights: of its features by name, as in Profile; missing ones are unknown.
        """
        given, weighed = dict(features or {}), dict(weights or {})
        return self._item_encoder.row_of(self.bundle.items, vectors, given, weighed)


def _taken(column: Column, rows_B: torch.Tensor) -> Column:
    """Return the entries of a column at some rows [B]."""
    values_V, lengths_U, weights_V = column
    if lengths_U is None:
        return Column(values_V[rows_B])

    def taken(elements_V: torch.Tensor) -> torch.Tensor:
        lists = elements_V.split(lengths_U.tolist())
        chosen = [lists[row] for row in rows_B.tolist()]
        return torch.cat(chosen) if chosen else elements_V[:0]

    taken_weights_V = None if weights_V is None else taken(weights_V)
    return Column(taken(values_V), lengths_U[rows_B], taken_weights_V)
