"""Ids of the log compared with those of the users and items files.

Ids are compared as text. Reported: ids that one file has and the other lacks, ids that differ in their
spelling alone, and files that have no id in common.
"""

from recsys.data.prepare.checks import Problems, is_written_oddly, note_ids_written_two_ways
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.inputs import Catalogue, Inputs
from recsys.data.prepare.sources import Source
from recsys.data.prepare.spelling import Overlap, gather_ids, overlap_of, two_spellings
from recsys.data.recipe import Recipe
from recsys.data.sql import quoted
from recsys.job import say


def id_column(recipe: Recipe, side: str) -> str | None:
    """Return the log's column of a side's ids, None where the log has none."""
    return recipe.interactions.user_id if side == "user" else recipe.interactions.item_id


def listed_ids(engine: Engine, inputs: Inputs, side: str) -> Table | None:
    """Return a table (id) of all listed users or items, for scans that ask for each row's id.

    A file of texts is read once for it, not once for each of their conditions. None: nothing lists them.
    """
    listed = inputs.listed(side)
    if listed is None:
        return None
    return engine.create("listed", f"SELECT DISTINCT id FROM ({listed}) WHERE id IS NOT NULL")


def note_id_variants(
    engine: Engine, recipe: Recipe, inputs: Inputs, side: str, problems: Problems
) -> None:
    """Note users' or items' ids that are written in two ways."""
    column, catalogue = id_column(recipe, side), inputs.catalogue(side)
    places: list[tuple[Source, str]] = []
    if column:
        places = [(source, column) for source, _ in inputs.logs]
        places += [(catalogue.source, catalogue.id_column)] if catalogue else []
    note_ids_written_two_ways(engine, problems, places)


def note_spellings(engine: Engine, column: str, inputs: Inputs, problems: Problems) -> None:
    """Note items' ids that the log and the catalogue spell in two ways, read from the files."""
    if inputs.items is None:  # an append without new items
        return
    source, key = inputs.items.source, inputs.items.id_column
    given = " UNION ALL ".join(
        f"SELECT {quoted(column)} AS id FROM {s.view}" for s, _ in inputs.logs
    )
    ids = gather_ids(engine, given, f"SELECT {quoted(key)} AS id FROM {source.view}")
    if respelled := two_spellings(engine, ids, "item", source.path.name):
        problems.found.append(f"{source.path}: column {key!r}: {respelled}")
    engine.drop(ids)


def compare_ids(
    engine: Engine, recipe: Recipe, inputs: Inputs, log: Table, side: str, problems: Problems
) -> None:
    """Say how many ids the log and the catalogue lack of each other, and which differ in spelling.

    No id in common is a problem, but for a log that is appended: its users and items may all be new.

    Args:
        log: with the column `<side>_id`.
    """
    column, catalogue = id_column(recipe, side), inputs.catalogue(side)
    if column is None:
        return
    file = catalogue.source.path.name if catalogue else None
    if side in inputs.known:
        file = "the prepared data"
    ids = gather_ids(engine, f"SELECT {side}_id AS id FROM {log}", inputs.listed(side))
    # Looked for among the different ids; the files are read again only to say where.
    if engine.count(ids, is_written_oddly("id")):
        note_id_variants(engine, recipe, inputs, side, problems)
    respelled = two_spellings(engine, ids, side, file)
    overlap = overlap_of(engine, ids)
    engine.drop(ids)
    if respelled and not problems.found:
        say(f"warning: {respelled}")
    if side in inputs.known:
        return
    if catalogue and not overlap.num_shared:
        problems.found.append(_nothing_shared(column, catalogue, overlap, respelled))
    elif catalogue:
        _say_overlap(side, catalogue, overlap)


def _nothing_shared(
    column: str, catalogue: Catalogue, overlap: Overlap, respelled: str | None
) -> str:
    """Return a sentence on a log and a catalogue without a common id."""
    side, key, path = catalogue.side, catalogue.id_column, catalogue.source.path
    return (
        f"{path}: column {key!r}: no {side} of the log is there: the log has "
        f"{overlap.num_log:,} ({_examples(overlap.only_log)}), {path.name} has "
        f"{overlap.num_listed:,} ({_examples(overlap.only_listed)}); check "
        f"interactions.{side}_id={column!r} and {side}s.{side}_id={key!r}, and that both "
        f"files write ids the same way" + (f": {respelled}" if respelled else "")
    )


def _say_overlap(side: str, catalogue: Catalogue, overlap: Overlap) -> None:
    """Say how many ids the log and a catalogue lack of each other, if any."""
    file = catalogue.source.path.name
    only_log = overlap.num_log - overlap.num_shared
    only_listed = overlap.num_listed - overlap.num_shared
    if only_log:
        say(
            f"{side}s: {file} lacks {only_log:,} of the log's {overlap.num_log:,} "
            f"({_examples(overlap.only_log)}), the log lacks {only_listed:,} of its "
            f"{overlap.num_listed:,}"
        )
    elif only_listed:
        say(
            f"{side}s: {file} has all of the log's {overlap.num_log:,}, the log lacks "
            f"{only_listed:,} of its {overlap.num_listed:,}"
        )


def _examples(ids: tuple[str, ...]) -> str:
    return ", ".join(repr(i) for i in ids) or "none"
