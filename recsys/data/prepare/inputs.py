"""Inputs: the raw files of a recipe, opened, with every column that the recipe names.

In: a recipe. Out: `Inputs`, whose sources later steps read. All missing files and columns are reported
at once.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from recsys.data.prepare.checks import Problems
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.label import RULES, parse_label
from recsys.data.prepare.object_store import source_root
from recsys.data.prepare.pairs import pair_columns
from recsys.data.prepare.pictures import pattern_columns
from recsys.data.prepare.raw_paths import RawPath, register
from recsys.data.prepare.sources import Source
from recsys.data.prepare.timestamps import TimeFormat, format_problems, recognised_format
from recsys.data.prepare.vector_tables import KnownVectors
from recsys.data.prepare.vectors import OwnVectors, vectors_key
from recsys.data.recipe import (
    SPLITS,
    FeatureRecipe,
    InteractionsRecipe,
    ItemsRecipe,
    PairsRecipe,
    Recipe,
    UsersRecipe,
)
from recsys.data.sql import quoted
from recsys.data.text_format import TextFormat
from recsys.errors import UserError
from recsys.job import say

Columns = dict[str, str | None]
"""Column by config key; None where the recipe names none."""


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The users file or the items file: one row an id, with features."""

    side: str
    """`user` or `item`."""
    source: Source
    id_column: str
    features: dict[str, FeatureRecipe]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The raw files of a recipe."""

    logs: tuple[tuple[Source, int], ...]
    """Files of the log in row order, each with its split; -1 where a strategy decides."""
    items: Catalogue | None
    users: Catalogue | None
    pairs: tuple[tuple[PairsRecipe, Source], ...]
    times: TimeFormat | None = None
    """How the log's times are written; None: it has none."""
    vectors: tuple[OwnVectors, ...] = ()
    """Vectors of the items that the recipe brings along."""
    known: dict[str, Table] = field(default_factory=dict)
    """Ids that an append finds numbered (id, row, count), by side; empty: nothing is appended to."""
    known_vectors: dict[str, KnownVectors] = field(default_factory=dict)
    """Own vectors that an append finds, by modality."""

    @property
    def sources(self) -> list[Source]:
        """All files."""
        catalogues = [catalogue.source for catalogue in (self.items, self.users) if catalogue]
        return [*(s for s, _ in self.logs), *catalogues, *(s for _, s in self.pairs)]

    def catalogue(self, side: str) -> Catalogue | None:
        """Return the catalogue of a side, `user` or `item`."""
        return self.users if side == "user" else self.items

    def listed(self, side: str) -> str | None:
        """SQL of (id) of what the catalogue of a side lists, and of all ids numbered earlier.

        None: there is neither. An append does not read earlier files again: their ids are numbered.
        """
        ids = []
        if catalogue := self.catalogue(side):
            ids.append(f"SELECT {quoted(catalogue.id_column)} AS id FROM {catalogue.source.view}")
        if side in self.known:
            ids.append(f"SELECT id FROM {self.known[side]}")
        return " UNION ALL ".join(ids) or None


def open_inputs(
    engine: Engine, recipe: Recipe, only: Mapping[str, tuple[RawPath, ...]] | None = None
) -> Inputs:
    """Open every file of the recipe.

    Args:
        only: files to read, by section; those of other sections are not opened. None: all of them.

    Raises:
        UserError: files or columns are missing, or cannot be read (all listed at once).
    """
    problems = Problems()
    register(engine.connection, source_root(recipe))
    log, items, users = recipe.interactions, recipe.items, recipe.users
    names = (
        [(log.files[name], index) for index, name in enumerate(SPLITS)]
        if recipe.split.strategy == "given" and only is None
        else [(str(log.file), -1)]
    )

    def opened(view: str, name: str, key: str, section: TextFormat) -> Source | None:
        if only is not None and key not in only:
            return None
        try:
            paths = None if only is None else only[key]
            return _open(engine, recipe, view, name, key, section, paths)
        except UserError as error:
            problems.found.append(str(error))
            return None

    logs = [
        (source, given)
        for index, (name, given) in enumerate(names)
        if (source := opened(f"log_{index}", name, "interactions", log))
    ]
    items_source = opened("items", items.file, "items", items) if items else None
    users_source = opened("users", users.file, "users", users) if users else None
    pairs = [
        (section, source)
        for index, section in enumerate(recipe.pairs)
        if (source := opened(f"pairs_{index}", section.file, f"pairs[{index}]", section))
    ]
    inputs = Inputs(
        logs=tuple(logs),
        items=_catalogue("item", items_source, items),
        users=_catalogue("user", users_source, users),
        pairs=tuple(pairs),
        vectors=tuple(_vectors(engine, recipe, items_source, problems, only)),
    )
    _note_columns(engine, recipe, inputs, problems)
    problems.raise_if_any()
    return dataclasses.replace(inputs, times=_time_format(engine, log, inputs))


def _time_format(engine: Engine, log: InteractionsRecipe, inputs: Inputs) -> TimeFormat | None:
    """Return how the log's times are written, and say where that was recognised."""
    if log.timestamp is None:
        return None
    named = TimeFormat(column=log.timestamp, written=log.timestamp_format, zone=log.timestamp_zone)
    times = recognised_format(engine, named, [source for source, _ in inputs.logs])
    if times.is_recognised:
        say(
            f"column {log.timestamp!r}: its numbers are taken for {times.unit} since 1970; "
            f"interactions.timestamp_format says otherwise"
        )
    return times


def _vectors(
    engine: Engine,
    recipe: Recipe,
    source: Source | None,
    problems: Problems,
    only: Mapping[str, tuple[RawPath, ...]] | None,
) -> Iterator[OwnVectors]:
    """Yield the own vectors of the items; note those that cannot be opened."""
    items = recipe.items
    if items is None or (source and items.item_id not in source.columns):
        return
    if source is None and only is None:  # the items file could not be opened
        return
    for name, section in items.vectors.items():
        key = vectors_key(name)
        if only is not None and key not in only:
            continue
        try:
            yield OwnVectors(
                engine,
                name,
                section,
                source_root(recipe),
                items=source,
                id_column=items.item_id,
                only=only[key] if only is not None else None,
            )
        except UserError as error:
            problems.found.append(str(error))


def _open(
    engine: Engine,
    recipe: Recipe,
    view: str,
    name: str,
    key: str,
    written: TextFormat,
    only: tuple[RawPath, ...] | None,
) -> Source:
    """Open the files of a section of the recipe."""
    return Source(
        engine.connection,
        engine.unused(view),
        source_root(recipe),
        name,
        key=key,
        written=written,
        copies=engine.scratch / "copies",
        only=only,
    )


def _catalogue(
    side: str, source: Source | None, section: ItemsRecipe | UsersRecipe | None
) -> Catalogue | None:
    if source is None or section is None:
        return None
    column = section.item_id if isinstance(section, ItemsRecipe) else section.user_id
    return Catalogue(side=side, source=source, id_column=column, features=section.features)


def _note_columns(engine: Engine, recipe: Recipe, inputs: Inputs, problems: Problems) -> None:
    """Note every column the recipe names and a file lacks."""
    for source, _ in inputs.logs:
        single, wanted = _log_columns(recipe.interactions)
        _look_at(engine, problems, source, wanted, single)
    log = recipe.interactions
    problems.found += format_problems(engine, log.timestamp_format, log.timestamp_zone)
    if inputs.items and recipe.items:
        single, wanted = _item_columns(recipe.items)
        _look_at(engine, problems, inputs.items.source, wanted, single)
    if inputs.users and recipe.users:
        plain, lists = _feature_columns("users.features", recipe.users.features)
        single = {"users.user_id": recipe.users.user_id, **plain}
        _look_at(engine, problems, inputs.users.source, single | lists, single)
    for index, (pairs, source) in enumerate(inputs.pairs):
        wanted = pair_columns(pairs, f"pairs[{index}]")
        texts = (f"pairs[{index}].anchor", f"pairs[{index}].positive")
        single = {key: column for key, column in wanted.items() if key not in texts}
        _look_at(engine, problems, source, wanted, single)


def _look_at(
    engine: Engine, problems: Problems, source: Source, wanted: Columns, single: Columns
) -> None:
    """Note columns that a file lacks or that hold what cannot be read as text.

    Args:
        single: those of `wanted` that must hold one value a row; the others may hold lists.
    """
    problems.found += source.missing_columns(wanted)
    problems.found += source.nested_columns(single)
    others = {key: column for key, column in wanted.items() if key not in single}
    problems.found += source.nested_columns(others, may_be_lists=True)
    problems.found += source.undecodable_columns(engine.connection, wanted)


def _log_columns(log: InteractionsRecipe) -> tuple[Columns, Columns]:
    """Return the columns of the log that hold one value a row, and all of them."""
    rule = parse_label(log.label) if log.label else None
    label_key = "interactions.label"
    if rule and rule.operator is None and re.search(r"[^\w.-]", rule.column):
        label_key += f": a 0/1 column, or a rule such as {RULES}"
    plain, lists = _feature_columns("interactions.features", log.features)
    single = {
        "interactions.user_id": log.user_id,
        "interactions.item_id": log.item_id,
        "interactions.timestamp": log.timestamp,
        "interactions.weight": log.weight,
        label_key: rule.column if rule else None,
        **plain,
    }
    return single, single | lists


def _item_columns(items: ItemsRecipe) -> tuple[Columns, Columns]:
    """Return the columns of the items file that hold one value a row, and all of them."""
    single: Columns = {
        "items.item_id": items.item_id,
        "items.title": items.title,
        "items.artist": items.artist,
        "items.content": items.content,
        **{f"items.image {{{c}}}": c for c in pattern_columns(items.image)},
    }
    lists: Columns = {f"items.text[{i}]": column for i, column in enumerate(items.text)}
    for key in ("features", "tags"):
        plain, of_lists = _feature_columns(f"items.{key}", getattr(items, key))
        single |= plain
        lists |= of_lists
    return single, single | lists


def _feature_columns(key: str, features: dict[str, FeatureRecipe]) -> tuple[Columns, Columns]:
    """Return the columns of features of one id a row, and of those of several."""
    plain: Columns = {}
    lists: Columns = {}
    for name, feature in features.items():
        of_kind = lists if feature.kind == "id_list" else plain
        of_kind[f"{key}.{name}"] = feature.column or name
    return plain, lists
