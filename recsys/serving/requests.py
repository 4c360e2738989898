"""Requests and answers of serving: the types that the Python API and the HTTP server share.

Requests are pydantic models, checked once where they enter. A server reads them with
`model_validate_json`: a picture is base64 in JSON and plain bytes in Python. Answers are dataclasses,
which cost nothing to make; pydantic's `TypeAdapter(Recommendations).dump_json` writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from recsys.errors import UserError

MAX_LIKES = 200
MAX_ITEMS = 500
MAX_CANDIDATES = 5000
MAX_PICTURES = 10
MAX_PICTURE_BYTES = 20 << 20


class UnknownIdError(UserError):
    """A request names an item that the bundle lacks, where nothing can be said without it (HTTP 404)."""


def _text_of_integer(given: Any) -> Any:
    """Return an integer as its decimal text, since ids are compared as text; anything else unchanged."""
    return str(given) if isinstance(given, int) and not isinstance(given, bool) else given


# Bounds before the validator: behind it, pydantic checks them in Python, at three times the cost.
Id = Annotated[str, Field(min_length=1, max_length=512), BeforeValidator(_text_of_integer)]
"""Id of a user or an item, as the raw files write it; an integer is taken as its decimal text."""
Value = Annotated[str, Field(max_length=512), BeforeValidator(_text_of_integer)]
Picture = Annotated[bytes, Field(min_length=1, max_length=MAX_PICTURE_BYTES)]
Dial = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Vector = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=8192)
]
Raw = str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | None
RawValue = Raw | Annotated[list[Raw], Field(max_length=1000)]
"""Raw value of a column as a log or users file writes it; a list for a column of lists."""


class _Request(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        val_json_bytes="base64",
        ser_json_bytes="base64",
    )


_Given = TypeVar("_Given", bound=_Request)


def checked(kind: type[_Given], given: Mapping[str, Any]) -> _Given:
    """Return a request of a kind from keyword arguments.

    Raises:
        UserError: a sentence for everything that is out of bounds, with the value given.
    """
    try:
        return kind(**given)
    except ValidationError as error:
        problems = []
        for found in error.errors(include_url=False):
            name = ".".join(map(str, found["loc"]))
            value = f"{name}={str(found['input'])[:100]!r}: " if name else ""
            problems.append(f"{value}{found['msg']}")
        raise UserError("; ".join(problems)) from None


class Filters(_Request):
    """Conditions that every answered item meets, by column of the catalogue (`tags`, `artist`, ...)."""

    include: dict[str, Annotated[list[Value], Field(min_length=1, max_length=200)]] = Field(
        default={}, max_length=20
    )
    """Values by column: in each column named, an item has at least one of them."""
    exclude: dict[str, Annotated[list[Value], Field(max_length=200)]] = Field(
        default={}, max_length=20
    )
    """Values by column: an item has none of them."""
    exclude_items: list[Id] = Field(default=[], max_length=5000)
    """Items that are not answered, by id."""


class VisitorRequest(_Request):
    """The part that requests of a visitor share: who asks."""

    user: Id | None = None
    """User whose features and history are read; an unknown id counts as in training (row 0)."""
    likes: list[Id] = Field(default=[], max_length=MAX_LIKES)
    """Liked items, oldest first; they follow the user's own history. Five are enough for a visitor."""
    features: dict[str, RawValue] = Field(default={}, max_length=100)
    """Raw values of user and context features by feature name; they replace the user's stored ones."""
    dials: dict[str, Dial] = Field(default={}, max_length=20)
    """Factor by modality (`ids`, `semantic`, `style`, `text`): 1 changes nothing, 0 leaves it out."""


class Explore(_Request):
    """How a list explores items of which little is known."""

    epsilon: float = Field(default=0, ge=0, le=1, allow_inf_nan=False)
    """Probability that a place of the list gets a candidate drawn evenly from those left."""
    thompson: float = Field(default=0, ge=0, le=10, allow_inf_nan=False)
    """Factor of the standard deviation of the model's uncertain weights, which are drawn for each request
    (Thompson sampling); 0: the model as it is, 1: its posterior."""


class RecommendRequest(VisitorRequest):
    """Ask for a list of items for a user, for liked items, for pictures, or for nobody in particular."""

    pictures: list[Picture] = Field(default=[], max_length=MAX_PICTURES)
    """Pictures that the visitor likes, as files (PNG, JPEG, WebP, ...): each is a liked item of unknown
    id, the latest of the history, of which the model reads the vectors. Needs the image encoder."""
    k: int = Field(default=20, ge=1, le=MAX_ITEMS)
    """Items answered."""
    candidates: int = Field(default=500, ge=1, le=MAX_CANDIDATES)
    """Items scored by the full model; at least `k`."""
    filters: Filters = Filters()
    """Conditions that every answered item meets."""
    diversity: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    """Weight of variety against score (maximal marginal relevance); null: 0 for people with a history,
    0.3 for others."""
    explain: bool = False
    """Give every item a reason."""
    explore: Explore | None = None
    """Exploration; null: as the server's key `explore` says, and none without a server."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of exploration: by the same seed the same list; null: drawn anew."""
    exclude_seen: bool = True
    """Leave out every item that the user liked in the log or since, and those of `likes`."""


class ScoreRequest(VisitorRequest):
    """Ask for the probability that a user likes each of the given items."""

    items: list[Id] = Field(min_length=1, max_length=MAX_CANDIDATES)
    """Items to score; an unknown one is scored as in training (row 0)."""


class ExplainRequest(VisitorRequest):
    """Ask why an item has its score."""

    item: Id
    """Item of the bundle."""


class SimilarRequest(_Request):
    """Ask for the items nearest to an item."""

    item: Id
    """Item of the bundle."""
    by: str | None = Field(default=None, max_length=64)
    """Compared by: the modality `semantic`, `style` or `text`, or `model`: items are near that the ranker
    offers to the same users. null: the bundle's first."""
    k: int = Field(default=20, ge=1, le=MAX_ITEMS)
    """Items answered."""
    filters: Filters = Filters()
    """Conditions that every answered item meets."""


class SearchRequest(_Request):
    """Search the catalogue by words, or by a picture."""

    words: str | None = Field(default=None, min_length=1, max_length=2000)
    """Words to search by; needs the text encoder."""
    picture: Picture | None = None
    """Picture to search by, as a file; needs the image encoder."""
    by: str | None = Field(default=None, max_length=64)
    """Modality that is compared: `text` for words; `semantic` (null) or `style` for a picture."""
    k: int = Field(default=20, ge=1, le=MAX_ITEMS)
    """Items answered."""
    filters: Filters = Filters()
    """Conditions that every answered item meets."""

    @model_validator(mode="after")
    def _one_question(self) -> "SearchRequest":
        if (self.words is None) == (self.picture is None):
            raise ValueError("expected either words or a picture")
        return self


class NewItem(_Request):
    """An item that the model was not trained with, recommended by its picture, text and features."""

    id: Id
    """Its id; an id of the bundle is refused."""
    picture: Picture | None = None
    """Its picture, as a file."""
    text: str | None = Field(default=None, max_length=20_000)
    """Its text, as the items file would hold it."""
    title: str | None = Field(default=None, max_length=2000)
    """Its title, shown in answers."""
    artist: Value | None = None
    """Its artist, shown in answers and read by filters and by the route of followed artists."""
    tags: list[Value] = Field(default=[], max_length=1000)
    """Its tags, shown in answers and read by filters."""
    features: dict[str, RawValue] = Field(default={}, max_length=100)
    """Raw values of item features by feature name; a feature left out is unknown (row 0)."""
    vectors: dict[str, Vector] = Field(default={}, max_length=16)
    """Its vectors of modalities that have no encoder (items.vectors of the recipe), as the vectors' files
    hold them."""

    @model_validator(mode="after")
    def _has_content(self) -> "NewItem":
        if self.picture is None and not (self.text or self.features or self.vectors):
            raise ValueError("expected a picture, a text, features or vectors to recommend it by")
        return self


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is in a list: the strongest modality, and the liked items nearest to it by that."""

    text: str
    """One sentence, without numbers of the model."""
    by: str
    """Modality or route that the sentence is about."""
    likes: list[str] = field(default_factory=list)
    """Ids of the liked items that the sentence names."""
    similarities: list[float] = field(default_factory=list)
    """Cosine of the item with each of `likes` by the modality, in [-1, 1]."""
    weight: float | None = None
    """Weight of the modality in the user's score, in [0, 1]; null where the model measures none."""


@dataclass(slots=True)  # not frozen: a list of 500 takes 0.2 ms less
class RecommendedItem:
    """One item of a list."""

    rank: int
    """Place in the list, from 1."""
    id: str
    score: float
    """Probability that the user likes it."""
    weights: dict[str, float]
    """Modality weights of UMCM; they sum to 1, or are empty where the model has none."""
    title: str | None
    artist: str | None
    routes: list[str]
    """Routes that found it: `model`, `semantic`, `style`, `text`, `artists`, `fresh`, `popular`."""
    reason: Reason | None = None
    propensity: float | None = None
    """Probability that exploration puts the item at its place, given the places before; null: without
    epsilon, or with Thompson sampling, whose probabilities have no closed form."""


@dataclass(frozen=True, slots=True)
class Recommendations:
    """Answer to a RecommendRequest."""

    version: str
    """Version of the bundle that answered."""
    items: list[RecommendedItem]
    """Best first; fewer than `k` where the filters leave no more."""
    known_user: bool
    """Whether the user is one of the bundle's."""
    history: int
    """Liked items that were read, the request's own included."""
    unknown_likes: list[str]
    """Likes of the request that the bundle lacks; they are left out."""


@dataclass(slots=True)
class ScoredItem:
    """Score of one item that a request named."""

    id: str
    score: float
    """Probability that the user likes it."""
    weights: dict[str, float]
    """Modality weights of UMCM."""
    known: bool
    """Whether the item is one of the bundle's; others are scored as an unknown item."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Answer to a ScoreRequest, items in the order asked."""

    version: str
    items: list[ScoredItem]
    known_user: bool
    unknown_likes: list[str]


@dataclass(frozen=True, slots=True)
class Taste:
    """Scores of all items of the bundle's files for one visitor."""

    by: str
    """`full`: probabilities by the full model; `direct`: its direct term alone, in log-odds."""
    scores_N: NDArray[np.float32]
    """Scores [N - 1], from row 1."""


@dataclass(frozen=True, slots=True)
class SimilarItem:
    """One item near to an item, to words or to a picture."""

    rank: int
    """Place in the list, from 1."""
    id: str
    similarity: float
    """Cosine of the vectors, in [-1, 1]."""
    title: str | None
    artist: str | None


@dataclass(frozen=True, slots=True)
class SimilarItems:
    """Answer to a SimilarRequest or a SearchRequest, nearest first."""

    version: str
    by: str
    items: list[SimilarItem]


@dataclass(frozen=True, slots=True)
class NearLike:
    """A liked item near to an explained one."""

    id: str
    similarity: float
    """Cosine of the vectors, in [-1, 1]."""
    title: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Answer to an ExplainRequest."""

    version: str
    item: str
    score: float
    """Probability that the user likes it."""
    logit: float
    """Log-odds of the score: the sum of `terms`."""
    terms: dict[str, float]
    """Terms of the logit: `first_order`, `match:<modality>`, `second_order`, `deep`."""
    weights: dict[str, float]
    """Modality weights of UMCM."""
    nearest_likes: dict[str, list[NearLike]]
    """The user's liked items nearest to the item, by modality."""
    reason: Reason
    unknown_likes: list[str]


@dataclass(frozen=True, slots=True)
class ItemCard:
    """Catalogue entry of an item."""

    version: str
    id: str
    title: str | None
    artist: str | None
    tags: list[str]
    text: str | None
    interactions: int
    """Interactions of the training split."""
    modalities: list[str]
    """Modalities that it has vectors of."""
    is_new: bool
    """Whether it was added after training."""
