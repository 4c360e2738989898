"""Recipe: how the columns of a data set's files map to the data contract.

Written in YAML (configs/data/*.yaml), read by launch/prepare.py, stored in the manifest.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from embedding.features.codes import BITS
from recsys.data.feature_recipe import FeatureRecipe
from recsys.data.text_format import TextFormat
from recsys.schema import leaves_folder

SPLITS = ("train", "valid", "test")
PERSPECTIVES = ("multilingual", "relation", "explanation")
RESERVED_NAMES = frozenset(
    "user_id item_id history history_recent history_negative row_id label user_row item_row timestamp "
    "history_end history_negative_end unknown_user ts split given sample_weight".split()
)
"""Features and columns that every data set has: no feature of a recipe is called so."""
OTHER_MODALITIES = ("ids", "semantic", "style", "text")
"""Modalities that own vectors may not be called: of the encoders, and of the item's features."""


@dataclass(frozen=True, kw_only=True)
class NegativesRecipe:
    """Negatives drawn for a log of positives only."""

    strategy: Literal["uniform", "popularity"] = "uniform"
    """`uniform` over items, or `popularity`: in proportion to an item's positives of the split."""
    per_positive: Annotated[int, Field(ge=1)] = 4
    """Negatives drawn for each positive: items that the user has no positive of in its split or an
    earlier one; for a positive that repeats an earlier item, other earlier items of the user."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True, kw_only=True)
class InteractionsRecipe(TextFormat):
    """The log: one row per impression or rating."""

    file: str | None = None
    """CSV, JSON-lines or Parquet file below `source`, a folder of such files, or a pattern (`*`, `?`,
    `[...]`, `**`); rows follow each other in the order of the files' paths. With split.strategy=given
    only append=true reads it: the files of new days."""
    files: dict[str, str] = field(default_factory=dict)
    """With split.strategy=given: one file, folder or pattern each for train, valid and test."""
    user_id: str | None = None
    """Column of the user's id; null: no users."""
    item_id: str | None = None
    """Column of the item's id; null: no items."""
    timestamp: str | None = None
    """Column of the time; null: no time."""
    timestamp_format: str | None = None
    """How times are written: `seconds`, `milliseconds`, `microseconds` or `nanoseconds` since 1970, or a
    pattern such as "%Y%m%d" or "%d.%m.%Y %H:%M"; null: numbers since 1970, whose unit is recognised by
    their size, or dates such as 2024-06-01 12:00:00."""
    timestamp_zone: str | None = None
    """Zone of dates written without one, such as Asia/Tokyo; null: UTC."""
    weight: str | None = None
    """Column of the sample weight, 0 or more: factor of the row's loss in training; null: 1 for all."""
    label: str | None = None
    """A 0/1 column, or a rule: "rating >= 4", "event == purchase", "event in [cart, purchase]"; null:
    every row is a positive."""
    negatives: NegativesRecipe | None = None
    """How negatives are drawn where every row is a positive."""
    unknown_items: Literal["error", "drop", "keep"] = "error"
    """Rows whose item is not in the items file: `error`, `drop`, or `keep` as unknown row 0."""
    user_min_count: Annotated[int, Field(ge=1)] = 1
    """Users with fewer training rows, and not in a users file, share the unknown row 0. Rows of appended
    windows count too: an id gets its row with the window that reaches the number."""
    item_min_count: Annotated[int, Field(ge=1)] = 1
    """Without an items file: items with fewer rows, counted likewise, share the unknown row 0."""
    features: dict[str, FeatureRecipe] = field(default_factory=dict)
    """Features of the row itself (context)."""

    def problems(self) -> list[str]:
        """Return a text for every contradiction between label, negatives and columns."""
        problems = super().problems()
        if self.label is None and self.negatives is None:
            problems.append(
                "label: missing, expected a 0/1 column or a rule such as "
                '"rating >= 4"; for a log of positives only set interactions.negatives'
            )
        if self.negatives is not None and self.label is not None:
            problems.append("negatives: only where interactions.label is null")
        if self.negatives is not None and not (self.user_id and self.item_id):
            problems.append("negatives: needs interactions.user_id and item_id")
        return problems


@dataclass(frozen=True, kw_only=True)
class FileRecipe(TextFormat):
    """A section of one file or of part files."""

    file: str = ""
    """CSV, JSON-lines or Parquet file below `source`, a folder of such files, or a pattern (`*`, `?`,
    `[...]`, `**`); rows follow each other in the order of the files' paths."""

    def problems(self) -> list[str]:
        """Return a text for a file that is missing, or that cannot be read as it says."""
        missing = [] if self.file else ["file: missing, a file below data.source is required"]
        return missing + super().problems()


@dataclass(frozen=True, kw_only=True)
class VectorsRecipe:
    """Vectors of the items that somebody else made: a modality without an encoder."""

    file: str = ""
    """.npy file below `source`, a vector for each row of the items file in its order; or Parquet, a list
    of numbers by item id; or a folder or pattern of such files, whose rows follow each other in the order
    of their paths. An item without a vector, or with zeros alone, lacks the modality."""
    column: str | None = None
    """Column of the vectors in a Parquet file; null: the modality's own name."""
    item_id: str | None = None
    """Column of the item's id in a Parquet file; null: as in the items file."""
    bits: int = 16
    """Bits of a stored number: 16 (fp16), or 2 or 4 as codes (as `vector_bits` of embed). An append keeps
    the form that the table has."""

    def problems(self) -> list[str]:
        """Return a text where no file is named, and for bits that no form of stored vectors has."""
        found = [] if self.file else ["file: missing, a file below data.source is required"]
        wrong = self.bits not in BITS
        return [*found, *([f"bits={self.bits}: expected one of 16, 4 and 2"] if wrong else [])]


@dataclass(frozen=True, kw_only=True)
class ItemsRecipe(FileRecipe):
    """The catalogue: one row per item."""

    item_id: str = "item_id"
    """Column of the id, unique."""
    image: str | None = None
    """Picture path: a column, or a pattern such as "{movieId}.jpg"; null: no pictures."""
    image_root: str = "."
    """Folder below `source` that picture paths are relative to and may not leave."""
    title: str | None = None
    """Column of a short name for people."""
    artist: str | None = None
    """Column of whose hand made the picture; null: unknown. Teaches the style head, is no feature."""
    content: str | None = None
    """Column that is equal where pictures show the same thing by other hands; null: unknown."""
    text: list[str] = field(default_factory=list)
    """Columns joined with ". " to the item's text, the elements of a list with ", "; empty: no text."""
    tags: dict[str, FeatureRecipe] = field(default_factory=dict)
    """Columns whose values are the tags of the image pretext."""
    features: dict[str, FeatureRecipe] = field(default_factory=dict)
    """Item features."""
    vectors: dict[str, VectorsRecipe] = field(default_factory=dict)
    """Own vectors by modality, which `model.modalities` names: `vectors: {clip: {file: clip.npy}}`."""


@dataclass(frozen=True, kw_only=True)
class UsersRecipe(FileRecipe):
    """Users file: features of users."""

    user_id: str = "user_id"
    """Column of the id, unique."""
    features: dict[str, FeatureRecipe] = field(default_factory=dict)
    """User features."""


@dataclass(frozen=True, kw_only=True)
class PairsRecipe(FileRecipe):
    """Text pairs for the text encoder, from one file; it may be the items file."""

    anchor: str = "anchor"
    """Column of the first text; in a relation, the text of the entity itself."""
    positive: str = "positive"
    """Column of the text that belongs to it; in a relation, the other entity's."""
    anchor_separator: str | None = None
    """Between the texts of a list, one pair for each; null: one text. A Parquet list needs none."""
    positive_separator: str | None = None
    """The same for `positive`."""
    perspective: str = "perspective"
    """`multilingual`, `relation`, `explanation`, or the column that says which."""
    entity: str | None = None
    """Column that names what the pair speaks of: what is held out together; a blank is never held
    out. null: the item's id where `file` is the items file, else the anchor."""
    language: str | None = None
    """The anchor's language: a code (two or three letters: ja, zh-Hans), or a column; null: unknown."""

    def problems(self) -> list[str]:
        """Return a text for a file that cannot be read as it says, and for empty separators."""
        return super().problems() + [
            f"{key}='': expected text between list elements"
            for key in ("anchor_separator", "positive_separator")
            if getattr(self, key) == ""
        ]


@dataclass(frozen=True, kw_only=True)
class SplitRecipe:
    """Split: the division of rows into train, valid and test."""

    strategy: Literal["time", "per_user_time", "random", "given"] = "time"
    """`time` (one clock for all), `per_user_time`, `random`, or `given` (one file each)."""
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    """Shares of train, valid and test."""
    seed: int = 0
    """Of the random split and of the order of rows in the files."""

    def problems(self) -> list[str]:
        """Return a text for shares that are none."""
        shares = self.fractions
        if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-6:
            return [f"fractions={shares}: expected three shares that sum to 1"]
        return []


@dataclass(frozen=True, kw_only=True)
class HistoryRecipe:
    """A user's earlier positives, and negatives where they are asked for."""

    max_length: Annotated[int, Field(ge=0)] = 50
    """Most recent positives a row may see; 0: no history."""
    recent_length: Annotated[int, Field(ge=0)] = 10
    """Most recent positives of the short-term interest."""
    negative_length: Annotated[int, Field(ge=0)] = 0
    """Most recent items of rows of label 0 that a row may see, feature `history_negative`: what the user
    rated low, or was shown and left; 0: none. Drawn negatives are no such rows."""
    scope: Literal["train", "past"] = "train"
    """`train`: training positives only; `past`: everything strictly earlier, as at serving."""

    def problems(self) -> list[str]:
        """Return a text for a short-term history longer than the whole, and for negatives alone."""
        recent, longest = self.recent_length, self.max_length
        problems = []
        if recent > longest:
            problems.append(f"recent_length={recent}: expected 0 to history.max_length={longest}")
        if self.negative_length and not longest:
            problems.append(
                f"negative_length={self.negative_length}: needs history.max_length of 1 or more"
            )
        return problems


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set."""

    name: str = ""
    """Short name; the default workspace is workspaces/<name>."""
    source: str = ""
    """Folder of the raw files, or URL of one in an object store, such as s3://bucket/folder."""
    interactions: InteractionsRecipe = field(default_factory=InteractionsRecipe)
    """The log."""
    items: ItemsRecipe | None = None
    """The catalogue; null: items are only ids."""
    users: UsersRecipe | None = None
    """User columns; null: users are only ids."""
    pairs: list[PairsRecipe] = field(default_factory=list)
    """Text pairs; empty: none."""
    split: SplitRecipe = field(default_factory=SplitRecipe)
    """Train, valid and test."""
    history: HistoryRecipe = field(default_factory=HistoryRecipe)
    """Sequences of earlier positives."""

    def problems(self) -> list[str]:
        """Return a text for everything in which sections contradict each other."""
        return _split_problems(self) + _path_problems(self) + _name_problems(self)


def _split_problems(recipe: Recipe) -> list[str]:
    """Return a text for everything that the split needs and the log lacks."""
    log, strategy, problems = recipe.interactions, recipe.split.strategy, []
    if strategy == "given" and sorted(log.files) != sorted(SPLITS):
        problems.append(
            f"interactions.files={sorted(log.files)}: split.strategy=given needs train, valid, test"
        )
    if strategy != "given" and not log.file:
        problems.append("interactions.file: missing, a file below data.source is required")
    if strategy in ("time", "per_user_time") and not log.timestamp:
        problems.append(
            f"interactions.timestamp: missing, split.strategy={strategy} needs a time column "
            f"(or use split.strategy=random)"
        )
    if strategy == "per_user_time" and not log.user_id:
        problems.append("interactions.user_id: missing, split.strategy=per_user_time needs users")
    if recipe.history.scope == "past" and not log.timestamp:
        problems.append("history.scope=past: needs interactions.timestamp")
    if recipe.history.negative_length and log.label is None:
        problems.append(
            f"history.negative_length={recipe.history.negative_length}: needs interactions.label; drawn "
            f"negatives are no rows that a user has seen"
        )
    return problems


def _name_problems(recipe: Recipe) -> list[str]:
    """Return a text for every feature whose name is taken, or is no name."""
    problems = []
    keys = {key: key.rsplit(".", 1)[1] for key, _ in named_features(recipe) if ".tags." not in key}
    # SQL does not tell upper from lower case.
    lower = [name.lower() for name in keys.values()]
    for key, name in sorted(keys.items(), key=lambda item: item[1]):
        if lower.count(name.lower()) > 1 or name.lower() in RESERVED_NAMES:
            problems.append(
                f"{key}: feature {name!r}: the name is taken; give it another and name its column"
            )
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            problems.append(f"{key}: feature {name!r}: expected letters, digits and underscores")
    problems += [
        f"{key}.kind={feature.kind}: expected id or id_list, a tag is no number"
        for key, feature in named_features(recipe)
        if ".tags." in key and feature.kind in ("numeric", "dense")
    ]
    for name in recipe.items.vectors if recipe.items else ():
        if name in OTHER_MODALITIES or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            problems.append(
                f"items.vectors.{name}: expected a name of small letters, digits and underscores, and "
                f"none of {', '.join(OTHER_MODALITIES)}"
            )
    return problems


def _files_by_key(recipe: Recipe) -> dict[str, str]:
    """Return the files below `source` that the recipe names, by config key."""
    log, items, users = recipe.interactions, recipe.items, recipe.users
    named = {"interactions.file": log.file or ""}
    named |= {f"interactions.files.{split}": file for split, file in log.files.items()}
    named |= {"items.file": items.file} if items else {}
    vectors = items.vectors if items else {}
    named |= {f"items.vectors.{name}.file": own.file for name, own in vectors.items()}
    named |= {"users.file": users.file} if users else {}
    named |= {f"pairs[{index}].file": pairs.file for index, pairs in enumerate(recipe.pairs)}
    return {key: name for key, name in named.items() if name}


def _path_problems(recipe: Recipe) -> list[str]:
    """Files and folders that a recipe names lie below `source`: it may come from a stranger."""
    named = _files_by_key(recipe)
    if recipe.items:
        named["items.image_root"] = recipe.items.image_root
    return [
        f"{key}={name!r}: expected a path below data.source, without .. and no absolute one"
        for key, name in named.items()
        if leaves_folder(name) or "://" in name
    ]


def named_features(recipe: Recipe) -> list[tuple[str, FeatureRecipe]]:
    """Return (config key, feature) of every feature and tag column of the recipe."""
    groups = {"interactions.features": recipe.interactions.features}
    if recipe.items:
        groups["items.features"] = recipe.items.features
        groups["items.tags"] = recipe.items.tags
    if recipe.users:
        groups["users.features"] = recipe.users.features
    return [(f"{key}.{name}", f) for key, group in groups.items() for name, f in group.items()]


def source_file(recipe: Recipe, name: str) -> Path:
    """Return the path of a file below the recipe's source folder."""
    return Path(recipe.source) / name
