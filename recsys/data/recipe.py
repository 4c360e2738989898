"""The recipe: how the columns of a data set's files map to the data contract. No code per data set.

Written in YAML (configs/data/*.yaml), read by launch/prepare.py, stored in the manifest.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from recsys.errors import UserError
from recsys.schema import leaves_folder

SPLITS = ("train", "valid", "test")
STRATEGIES = ("time", "per_user_time", "random", "given")
PERSPECTIVES = ("multilingual", "relation", "explanation")
FEATURE_KINDS = ("id", "id_list", "numeric")
UNKNOWN_ITEM_RULES = ("error", "drop", "keep")
RESERVED_NAMES = {
    *("user_id", "item_id", "history", "history_recent"),
    *(
        "row_id",
        "label",
        "user_row",
        "item_row",
        "timestamp",
        "history_end",
        "unknown_user",
        "ts",
        "split",
        "given",
    ),
}
"""Features and columns that every data set has: no feature of a recipe is called so."""


@dataclass(frozen=True, kw_only=True)
class FeatureRecipe:
    """One sparse feature made from one column."""

    column: str | None = None
    """Column of the file; null: the feature's own name."""
    kind: str = "id"
    """`id`, `id_list` (several ids in one text), or `numeric` (bucketed)."""
    separator: str = "|"
    """Between the ids of an id_list; a Parquet column of lists needs none."""
    extract: str | None = None
    """Regular expression whose first group is the value; null: the whole text."""
    min_count: int = 1
    """Ids seen less often than this share the unknown row 0."""
    hash_rows: int = 0
    """Rows of a hashed table (row 0 included, no vocabulary); 0: build a vocabulary."""
    quantiles: int = 16
    """Buckets of about equal count for a numeric column without cuts."""
    cuts: list[float] = field(default_factory=list)
    """Upper bounds of numeric buckets, ascending; empty: quantiles."""
    side: str | None = None
    """Tower of an interaction feature: `user`, `item` or `context`; null: context."""


@dataclass(frozen=True, kw_only=True)
class NegativesRecipe:
    """Negatives drawn for a log of positives only."""

    strategy: str = "uniform"
    """`uniform` over items, or `popularity`: in proportion to an item's positives of the split."""
    per_positive: int = 4
    """Negatives drawn for each positive: items that the user has no positive of in its split or an
    earlier one; for a positive that repeats an earlier item, other earlier items of the user."""
    seed: int = 0
    """Of the draw."""


@dataclass(frozen=True, kw_only=True)
class InteractionsRecipe:
    """The log: one row per impression or rating."""

    file: str | None = None
    """CSV or Parquet file below `source`."""
    files: dict[str, str] = field(default_factory=dict)
    """With split.strategy=given: one file each for train, valid and test."""
    header: list[str] = field(default_factory=list)
    """Column names of CSV files without a header line."""
    delimiter: str | None = None
    """Between the fields of CSV files; null: a tab for .tsv, else a comma."""
    quote: str = '"'
    """Around fields of CSV files that hold a delimiter or a line end; empty: no field is quoted."""
    encoding: str = "utf-8"
    """Of CSV files, by Python's names: utf-8, utf-16, latin-1, cp932, gb18030, ..."""
    user_id: str | None = None
    """Column of the user's id; null: no users."""
    item_id: str | None = None
    """Column of the item's id; null: no items."""
    timestamp: str | None = None
    """Column of the time; null: no time."""
    timestamp_format: str | None = None
    """How times are written: `seconds` or `milliseconds` since 1970, or a pattern such as "%Y%m%d" or
    "%d.%m.%Y %H:%M" (UTC without a zone); null: seconds, or dates such as 2024-06-01 12:00:00."""
    label: str | None = None
    """A 0/1 column, or a rule: "rating >= 4", "event == purchase", "event in [cart, purchase]"; null:
    every row is a positive."""
    negatives: NegativesRecipe | None = None
    """How negatives are drawn where every row is a positive."""
    unknown_items: str = "error"
    """Rows whose item is not in the items file: `error`, `drop`, or `keep` as unknown row 0."""
    user_min_count: int = 1
    """Users with fewer training rows, and not in a users file, share the unknown row 0."""
    item_min_count: int = 1
    """Without an items file: items with fewer training rows share the unknown row 0."""
    features: dict[str, FeatureRecipe] = field(default_factory=dict)
    """Sparse features of the row itself (context)."""


@dataclass(frozen=True, kw_only=True)
class ItemsRecipe:
    """The catalogue: one row per item."""

    file: str = ""
    """CSV or Parquet file below `source`."""
    header: list[str] = field(default_factory=list)
    """Column names of a CSV file without a header line."""
    delimiter: str | None = None
    """Between the fields of a CSV file; null: a tab for .tsv, else a comma."""
    quote: str = '"'
    """Around fields of a CSV file that hold a delimiter or a line end; empty: no field is quoted."""
    encoding: str = "utf-8"
    """Of a CSV file, by Python's names: utf-8, utf-16, latin-1, cp932, gb18030, ..."""
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
    """Sparse item features."""


@dataclass(frozen=True, kw_only=True)
class UsersRecipe:
    """What is known of users beside their log."""

    file: str = ""
    """CSV or Parquet file below `source`."""
    header: list[str] = field(default_factory=list)
    """Column names of a CSV file without a header line."""
    delimiter: str | None = None
    """Between the fields of a CSV file; null: a tab for .tsv, else a comma."""
    quote: str = '"'
    """Around fields of a CSV file that hold a delimiter or a line end; empty: no field is quoted."""
    encoding: str = "utf-8"
    """Of a CSV file, by Python's names: utf-8, utf-16, latin-1, cp932, gb18030, ..."""
    user_id: str = "user_id"
    """Column of the id, unique."""
    features: dict[str, FeatureRecipe] = field(default_factory=dict)
    """Sparse user features."""


@dataclass(frozen=True, kw_only=True)
class PairsRecipe:
    """Text pairs for the text encoder, from one file; it may be the items file."""

    file: str = ""
    """CSV or Parquet file below `source`."""
    header: list[str] = field(default_factory=list)
    """Column names of a CSV file without a header line."""
    delimiter: str | None = None
    """Between the fields of a CSV file; null: a tab for .tsv, else a comma."""
    quote: str = '"'
    """Around fields of a CSV file that hold a delimiter or a line end; empty: no field is quoted."""
    encoding: str = "utf-8"
    """Of a CSV file, by Python's names: utf-8, utf-16, latin-1, cp932, gb18030, ..."""
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


Section = InteractionsRecipe | ItemsRecipe | UsersRecipe | PairsRecipe
"""A section of a recipe that names raw files."""


@dataclass(frozen=True, kw_only=True)
class SplitRecipe:
    """How rows are divided into train, valid and test."""

    strategy: str = "time"
    """`time` (one clock for all), `per_user_time`, `random`, or `given` (one file each)."""
    fractions: list[float] = field(default_factory=lambda: [0.8, 0.1, 0.1])
    """Shares of train, valid and test."""
    seed: int = 0
    """Of the random split and of the order of rows in the files."""


@dataclass(frozen=True, kw_only=True)
class HistoryRecipe:
    """A user's earlier positives."""

    max_length: int = 50
    """Most recent positives a row may see; 0: no history."""
    recent_length: int = 10
    """Most recent positives of the short-term interest."""
    scope: str = "train"
    """`train`: training positives only; `past`: everything strictly earlier, as at serving."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A data set."""

    name: str = ""
    """Short name; the default workspace is workspaces/<name>."""
    source: str = ""
    """Folder of the raw files."""
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


def check_recipe(recipe: Recipe) -> None:
    """Raise UserError for settings that contradict each other, all at once.

    Raises:
        UserError: lists every offending key with what was expected.
    """
    log, split, problems = recipe.interactions, recipe.split, []
    if split.strategy not in STRATEGIES:
        problems.append(f"split.strategy={split.strategy!r}: expected {', '.join(STRATEGIES)}")
    if split.strategy == "given" and sorted(log.files) != sorted(SPLITS):
        problems.append(
            f"interactions.files={sorted(log.files)}: split.strategy=given needs train, valid, test"
        )
    if split.strategy != "given" and not log.file:
        problems.append("interactions.file: missing, a file below data.source is required")
    if split.strategy in ("time", "per_user_time") and not log.timestamp:
        problems.append(
            f"interactions.timestamp: missing, split.strategy={split.strategy} needs a time column "
            f"(or use split.strategy=random)"
        )
    if split.strategy == "per_user_time" and not log.user_id:
        problems.append("interactions.user_id: missing, split.strategy=per_user_time needs users")
    fractions = split.fractions
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        problems.append(f"split.fractions={split.fractions}: expected three shares that sum to 1")
    if log.label is None and log.negatives is None:
        problems.append(
            "interactions.label: missing, expected a 0/1 column or a rule such as "
            '"rating >= 4"; for a log of positives only set interactions.negatives'
        )
    if log.negatives is not None:
        if log.label is not None:
            problems.append("interactions.negatives: only where interactions.label is null")
        if not (log.user_id and log.item_id):
            problems.append("interactions.negatives: needs interactions.user_id and item_id")
        if log.negatives.strategy not in ("uniform", "popularity"):
            problems.append(
                f"interactions.negatives.strategy={log.negatives.strategy!r}: expected uniform or "
                f"popularity"
            )
        if log.negatives.per_positive < 1:
            problems.append(
                f"interactions.negatives.per_positive={log.negatives.per_positive}: expected 1 or "
                f"more"
            )
    problems += _path_problems(recipe)
    for key, section in _sections_with_files(recipe).items():
        problems += _format_problems(key, section)
    for key in ("user_min_count", "item_min_count"):
        if getattr(log, key) < 1:
            problems.append(f"interactions.{key}={getattr(log, key)}: expected 1 or more")
    if log.unknown_items not in UNKNOWN_ITEM_RULES:
        problems.append(
            f"interactions.unknown_items={log.unknown_items!r}: expected "
            f"{', '.join(UNKNOWN_ITEM_RULES)}"
        )
    if recipe.history.scope not in ("train", "past"):
        problems.append(f"history.scope={recipe.history.scope!r}: expected train or past")
    if recipe.history.scope == "past" and not log.timestamp:
        problems.append("history.scope=past: needs interactions.timestamp")
    if not 0 <= recipe.history.recent_length <= recipe.history.max_length:
        problems.append(
            f"history.recent_length={recipe.history.recent_length}: expected 0 to "
            f"history.max_length={recipe.history.max_length}"
        )
    for key, feature in named_features(recipe):
        if feature.kind not in FEATURE_KINDS:
            problems.append(f"{key}.kind={feature.kind!r}: expected {', '.join(FEATURE_KINDS)}")
        if feature.side not in (None, "user", "item", "context"):
            problems.append(f"{key}.side={feature.side!r}: expected user, item or context")
        if feature.cuts != sorted(feature.cuts):
            problems.append(f"{key}.cuts={feature.cuts}: expected ascending numbers")
        if feature.hash_rows < 0 or feature.hash_rows == 1:
            problems.append(f"{key}.hash_rows={feature.hash_rows}: expected 0, or 2 and more")
        if feature.min_count < 1:
            problems.append(f"{key}.min_count={feature.min_count}: expected 1 or more")
        if feature.quantiles < 2:
            problems.append(f"{key}.quantiles={feature.quantiles}: expected 2 or more")
        if feature.separator == "":
            problems.append(f"{key}.separator='': expected text between list elements")
        if not all(math.isfinite(cut) for cut in feature.cuts):
            problems.append(f"{key}.cuts={feature.cuts}: expected finite numbers")
    for index, pairs in enumerate(recipe.pairs):
        for key in ("anchor_separator", "positive_separator"):
            if getattr(pairs, key) == "":
                problems.append(f"pairs[{index}].{key}='': expected text between list elements")
    names = [key.rsplit(".", 1)[1] for key, _ in named_features(recipe) if ".tags." not in key]
    # SQL does not tell upper from lower case.
    lower = [name.lower() for name in names]
    for name in sorted(set(names)):
        if lower.count(name.lower()) > 1 or name.lower() in RESERVED_NAMES:
            problems.append(
                f"feature {name!r}: the name is taken; give it another and name its column"
            )
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            problems.append(f"feature {name!r}: expected letters, digits and underscores")
    if problems:
        raise UserError(f"recipe {recipe.name!r}: " + "\n  ".join(problems))


def _sections_with_files(recipe: Recipe) -> dict[str, Section]:
    """Sections that name raw files, by config key."""
    named: dict[str, Section] = {"interactions": recipe.interactions}
    named |= {"items": recipe.items} if recipe.items else {}
    named |= {"users": recipe.users} if recipe.users else {}
    return named | {f"pairs[{index}]": pairs for index, pairs in enumerate(recipe.pairs)}


def _format_problems(key: str, section: Section) -> list[str]:
    """What cannot be right of how a section's text files are written."""
    problems = []
    if key != "interactions" and not section.file:
        problems.append(f"{key}.file: missing, a file below data.source is required")
    delimiter, quote = section.delimiter, section.quote
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\0'):
        problems.append(
            f"{key}.delimiter={delimiter!r}: expected one character, no quote or line end"
        )
    if quote and (len(quote) != 1 or quote in "\r\n\0" or quote == (delimiter or ",")):
        problems.append(f"{key}.quote={quote!r}: expected one character, or '' for no quoting")
    try:
        "".encode(section.encoding)
    except (LookupError, ValueError):
        problems.append(
            f"{key}.encoding={section.encoding!r}: expected a text encoding, for example utf-8, "
            f"utf-16, latin-1, cp932"
        )
    lower_header = [name.lower() for name in section.header]
    if len(set(lower_header)) < len(lower_header):
        problems.append(f"{key}.header={section.header}: a name is given twice")
    return problems


def _files_by_key(recipe: Recipe) -> dict[str, str]:
    """Files below `source` that the recipe names, by config key."""
    log = recipe.interactions
    named = {"interactions.file": log.file or ""}
    named |= {f"interactions.files.{split}": file for split, file in log.files.items()}
    named |= {
        f"{key}.file": section.file or ""
        for key, section in _sections_with_files(recipe).items()
        if key != "interactions"
    }
    return {key: name for key, name in named.items() if name}


def named_files(recipe: Recipe) -> list[str]:
    """Return the files below `source` that a recipe names, each once."""
    return list(dict.fromkeys(_files_by_key(recipe).values()))


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
