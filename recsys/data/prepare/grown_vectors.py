"""Own vectors of an append: the feature tables before, and those with the new items.

In: prepared data and its feature tables, the opened vectors of new items. Out: the grown tables.
Called by append_steps.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from recsys.data.prepare.engine import Table
from recsys.data.prepare.inputs import Inputs
from recsys.data.prepare.vector_tables import KnownVectors, open_known, write_grown_table
from recsys.schema import Manifest


def open_known_vectors(
    features: Path, manifest: Manifest, known: Mapping[str, Table]
) -> dict[str, KnownVectors]:
    """Return the own vectors of prepared data, by modality.

    Args:
        known: ids of the prepared data, by side.

    Raises:
        UserError: a table is missing, or nothing can be appended to it.
    """
    if "item" not in known:
        return {}
    return {
        name: open_known(features / name, made_of, known["item"], manifest.num_item_rows)
        for name, made_of in manifest.vectors.items()
    }


def grow_vectors(
    inputs: Inputs,
    items: Table,
    num_rows: int,
    items_checksum: str,
    new_table: Callable[[str], Path],
) -> dict[str, str]:
    """Write the tables to which items or vectors are added; return the checksums of their vectors.

    Args:
        items: grown vocabulary (id, row).
        num_rows: of the items now, row 0 included.
        items_checksum: of the grown manifest.
        new_table: returns an empty folder for the table of a modality.
    """
    given = {own.name: own for own in inputs.vectors}
    made_of = {}
    for name, known in inputs.known_vectors.items():
        own = given.get(name)
        if own or num_rows > known.num_rows or known.is_left_behind:
            pieces = own.by_row(items) if own else ()
            made_of[name] = write_grown_table(
                known, pieces, num_rows, items_checksum, new_table(name)
            )
    return made_of
