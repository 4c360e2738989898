"""Checks of the rows of every input file: ids, times, labels, numbers, duplicates, pictures.

In: the opened inputs. Out: the number of missing pictures. Every bad row is reported at once.
"""

from collections.abc import Callable

from recsys.data.prepare.checks import (
    Condition,
    Problems,
    Scan,
    is_null,
    merged_ids,
    naming_damaged_files,
)
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.ids import listed_ids, note_id_variants, note_spellings
from recsys.data.prepare.inputs import Catalogue, Inputs
from recsys.data.prepare.label import parse_label, unusable_label
from recsys.data.prepare.pictures import check_pictures, image_sql, leaves_root, pattern_columns
from recsys.data.prepare.sources import Source
from recsys.data.prepare.timestamps import TimeFormat, note_dates_among_numbers
from recsys.data.prepare.vocab import value_sql
from recsys.data.recipe import (
    PERSPECTIVES,
    FeatureRecipe,
    InteractionsRecipe,
    ItemsRecipe,
    Recipe,
    source_file,
)
from recsys.data.sql import literal, quoted
from recsys.data.weighted import unusable_sql
from recsys.errors import UserError


def check_rows(
    engine: Engine,
    recipe: Recipe,
    inputs: Inputs,
    scan_log: Callable[[Problems], Scan] | None = None,
) -> int:
    """Scan every file once and report everything wrong with it; return the missing pictures.

    Args:
        scan_log: returns the scan of files of the log; None: by the engine, as the other files.

    Raises:
        UserError: rows cannot be used (all reasons listed at once).
    """
    problems = Problems()
    log, items = recipe.interactions, recipe.items
    scan = problems.scan_by(engine)
    log_scan = scan_log(problems) if scan_log else scan
    for source, _ in inputs.logs:
        if inputs.times and (not inputs.times.written or inputs.times.is_recognised):
            note_dates_among_numbers(engine, source, inputs.times.column, problems)
        _check_log(log, source, inputs.times, problems, log_scan)
    if inputs.items and items:
        _check_catalogue(
            engine, inputs.items, _tag_and_picture_conditions(items, inputs.items.source), problems
        )
    for own in inputs.vectors:
        own.check(problems, inputs.listed("item"), inputs.known_vectors.get(own.name))
    if inputs.users:
        _check_catalogue(engine, inputs.users, [], problems)
    for pairs, source in inputs.pairs:
        if pairs.perspective not in PERSPECTIVES:
            known = ", ".join(literal(p) for p in PERSPECTIVES)
            is_bad = f"coalesce({quoted(pairs.perspective)}, '') NOT IN ({known})"
            wrong = f"expected one of {', '.join(PERSPECTIVES)}"
            problems.note(source, [Condition(pairs.perspective, is_bad, wrong)], scan)
    if items and log.item_id and log.unknown_items == "error":
        _check_items_of_log(engine, recipe, inputs, problems, log_scan)
    problems.raise_if_any()
    missing = 0
    if inputs.items and items and items.image:
        root = source_file(recipe, items.image_root)
        missing = check_pictures(engine, items, inputs.items.source, root, problems)
    problems.raise_if_any()
    return missing


def _check_items_of_log(
    engine: Engine, recipe: Recipe, inputs: Inputs, problems: Problems, scan: Scan
) -> None:
    """Note the rows of the log whose item is not listed."""
    log, items = recipe.interactions, recipe.items
    assert items and log.item_id, "asked for only where there are both"
    was_readable = not problems.found
    try:
        with naming_damaged_files(inputs.sources):
            listed = listed_ids(engine, inputs, "item")
    except UserError as error:
        problems.found.append(str(error))
        return
    if listed is None:
        return
    for source, _ in inputs.logs:
        problems.note(source, [_unknown_item(log.item_id, listed, items.file)], scan, listed)
    engine.drop(listed)
    if was_readable and problems.found:
        note_id_variants(engine, recipe, inputs, "item", problems)
        note_spellings(engine, log.item_id, inputs, problems)


def _check_log(
    log: InteractionsRecipe,
    source: Source,
    times: TimeFormat | None,
    problems: Problems,
    scan: Scan,
) -> None:
    """Note the unusable rows of one file of the log."""
    num_rows = problems.note(source, _log_conditions(log, source, times), scan)
    if num_rows == 0 and not problems.found:
        problems.found.append(f"{source.path}: no rows; expected interactions")


def _log_conditions(
    log: InteractionsRecipe, source: Source, times: TimeFormat | None
) -> list[Condition]:
    """Return what makes a row of the log unusable."""
    ids = [column for column in (log.user_id, log.item_id) if column]
    conditions = [Condition(column, is_null(column), "null id") for column in ids]
    conditions += [merged_ids(source, column) for column in ids]
    if times:
        conditions += [Condition(times.column, is_bad, wrong) for is_bad, wrong in times.unusable()]
    if log.weight:
        conditions.append(_unusable_weight(log.weight))
    if log.label:
        rule = parse_label(log.label)
        conditions.append(Condition(rule.column, *unusable_label(rule)))
    conditions += _id_conditions(source, log.features)
    conditions += _weight_conditions(source, log.features)
    return conditions + _number_conditions(log.features)


def _unusable_weight(column: str) -> Condition:
    """Return the condition that a sample weight is no finite number of 0 or more."""
    weight = f"try_cast({quoted(column)} AS FLOAT)"
    return Condition(
        column,
        f"NOT coalesce(isfinite({weight}) AND {weight} >= 0, false)",
        "not a sample weight: expected a number of 0 or more (interactions.weight)",
    )


def _check_catalogue(
    engine: Engine, catalogue: Catalogue, more: list[Condition], problems: Problems
) -> None:
    """Note the unusable rows of a users or items file, and ids in several rows."""
    source, column = catalogue.source, catalogue.id_column
    conditions = [Condition(column, is_null(column), "null id"), merged_ids(source, column)]
    conditions += _id_conditions(source, catalogue.features)
    conditions += _weight_conditions(source, catalogue.features)
    conditions += more
    conditions += _number_conditions(catalogue.features)
    problems.note(source, conditions, problems.scan_by(engine))
    problems.note_duplicates(engine, source, column)


def _unknown_item(column: str, listed: Table, file: str) -> Condition:
    """Return the condition that the catalogue lacks the item of a row of the log.

    Args:
        listed: (id) of the catalogue's items.
    """
    is_bad = f"NOT {is_null(column)} AND {quoted(column)} NOT IN (SELECT id FROM {listed})"
    wrong = (
        f"item is not in {file} (add it there, or set interactions.unknown_items to drop or keep)"
    )
    return Condition(column, is_bad, wrong)


def _tag_and_picture_conditions(items: ItemsRecipe, source: Source) -> list[Condition]:
    """Return what makes a row of the items file unusable beside its ids and numbers."""
    conditions = _id_conditions(source, items.tags)
    if items.image:
        wrong = f"picture path leaves items.image_root={items.image_root!r}"
        column = pattern_columns(items.image)[0]
        conditions.append(Condition(column, leaves_root(image_sql(items.image)), wrong))
    return conditions


def _id_conditions(source: Source, features: dict[str, FeatureRecipe]) -> list[Condition]:
    """Return the conditions that a feature's id is one that its column cannot hold."""
    return [
        merged_ids(source, feature.column or name)
        for name, feature in features.items()
        if feature.kind == "id" and not feature.extract
    ]


def _weight_conditions(source: Source, features: dict[str, FeatureRecipe]) -> list[Condition]:
    """Return the conditions that an id of a weighted list has a weight that is none."""
    conditions = []
    for name, feature in features.items():
        if feature.weight_separator is not None:
            is_bad = unusable_sql(value_sql(feature, name, source.lists), feature.weight_separator)
            wrong = (
                f"a weight that is no number of 0 or more (feature {name}, "
                f"weight_separator={feature.weight_separator!r})"
            )
            conditions.append(Condition(feature.column or name, is_bad, wrong))
    return conditions


def _number_conditions(features: dict[str, FeatureRecipe]) -> list[Condition]:
    """Return the conditions that a number's text is there and is not a number that the feature takes."""
    conditions = []
    for name, feature in features.items():
        text, column = value_sql(feature, name), feature.column or name
        if feature.kind == "numeric":
            is_bad = f"{text} IS NOT NULL AND try_cast({text} AS DOUBLE) IS NULL"
            conditions.append(Condition(column, is_bad, "not a number"))
        if feature.kind == "dense":
            number = f"try_cast({text} AS DOUBLE)"
            is_usable = f"isnan({number}) OR isfinite(try_cast({text} AS FLOAT))"
            is_bad = f"{text} IS NOT NULL AND NOT coalesce({is_usable}, false)"
            wrong = f"not a number that float32 holds (feature {name}, kind: dense)"
            conditions.append(Condition(column, is_bad, wrong))
    return conditions
