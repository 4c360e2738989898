"""Queries of a nearest-neighbour search: rows by id, a spread sample of rows, and exclusions.

Input: the catalogue and feature tables. Output: item rows, for
embedding/features/nearest.py. Called by launch/neighbours.py. Shapes: Q queries, P rows of a piece.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedding.features.catalogue import Catalogue
from embedding.features.nearest import PIECE_ROWS
from embedding.features.opening import open_features
from embedding.features.store import FeatureTable
from recsys.errors import UserError
from recsys.job import say
from recsys.schema import Manifest

POOL_ROWS = 4096
"""Items a sample is chosen from."""


def open_present_features(
    workspace: Path, names: Sequence[str], manifest: Manifest
) -> tuple[dict[str, FeatureTable], list[str]]:
    """Return those of the named feature tables that exist, and sentences on the others.

    Raises:
        UserError: there are none (says to run embed), or one is broken or of other items.
    """
    here = [n for n in names if (workspace / "features" / n / "manifest.json").is_file()]
    if not here:
        raise UserError(
            f"{workspace / 'features'}: no features here; run launch/embed.py with the same data= "
            f"and workspace= first"
        )
    tables = open_features(workspace, here, manifest, say)
    missing: dict[str, list[str]] = {}
    for name in names:
        if name not in here:
            lacking = f"the data set has no {'texts' if name == 'text' else 'pictures'}"
            why = "not embedded yet" if manifest.has_modality(name) else lacking
            missing.setdefault(why, []).append(name)
    return tables, [f"Left out: {' and '.join(left)} ({why})." for why, left in missing.items()]


def rows_of(catalogue: Catalogue, item_ids: list[str]) -> list[int]:
    """Return the rows of items by id, read in pieces.

    Raises:
        UserError: names every id that the catalogue does not have, and shows some that it has.
    """
    found: dict[str, int] = {}
    examples: list[str] = []
    wanted = pa.array(item_ids, pa.string())
    for start in range(0, catalogue.num_rows, PIECE_ROWS):
        stop = min(start + PIECE_ROWS, catalogue.num_rows)
        ids = catalogue.read(start, stop, ["item_id"]).column(0).combine_chunks()
        examples = examples or [i for i in ids[:4].to_pylist() if i is not None]
        places = pc.index_in(ids, value_set=wanted, skip_nulls=True)
        for at in np.flatnonzero(pc.is_valid(places).to_numpy(zero_copy_only=False)):
            found[item_ids[places[int(at)].as_py()]] = start + int(at)
    unknown = [item_id for item_id in item_ids if item_id not in found]
    if unknown:
        raise UserError(
            f"items: {', '.join(map(repr, unknown))}: not in {catalogue.path}; expected ids of the "
            f"items file, such as {', '.join(map(repr, examples))}"
        )
    return [found[item_id] for item_id in item_ids]


def spread_rows(
    catalogue: Catalogue, tables: dict[str, FeatureTable], count: int, seed: int
) -> list[int]:
    """Return a seeded sample of rows that have vectors, spread over artists and contents.

    The items come from a pool of at most POOL_ROWS: those with the most modalities; of them, one
    after the other, the first whose artist and content were taken least often.

    Raises:
        UserError: no item of the pool has a vector.
    """
    rng = np.random.default_rng(seed)
    num_items = catalogue.num_rows - 1
    drawn = rng.choice(num_items, size=min(num_items, POOL_ROWS), replace=False) + 1
    counts = sum(table.has_vector(drawn).astype(int) for table in tables.values())
    num_vectors = dict(zip(drawn.tolist(), np.asarray(counts).tolist(), strict=True))
    most = max(num_vectors.values(), default=0)
    if most == 0:
        raise UserError(
            f"{catalogue.path}: none of {len(drawn):,} items has a vector; run launch/embed.py again"
        )
    pool = [row for row, number in num_vectors.items() if number == most]
    ascending = sorted(pool)
    known = {
        name: dict(zip(ascending, catalogue.column(name, ascending), strict=True))
        for name in ("artist", "content")
    }
    keys = {
        row: [(name, of_row[row]) for name, of_row in known.items() if of_row[row] is not None]
        for row in pool
    }
    chosen: list[int] = []
    taken: Counter[tuple[str, str]] = Counter()
    while pool and len(chosen) < count:
        first = int(np.argmin([sum(taken[key] for key in keys[row]) for row in pool]))
        row = pool.pop(first)
        taken.update(keys[row])
        chosen.append(row)
    return chosen


def same_as(
    catalogue: Catalogue, column: str, rows: list[int]
) -> Callable[[int, int], np.ndarray] | None:
    """Return a function of (start, stop): bool [Q, P], which items share the column with a query.

    If it is unknown, for the item asked about or for the other, nothing is shared.

    Args:
        column: `artist` or `content`; `none` gives None.
    """
    if column == "none":
        return None
    ascending = sorted(set(rows))
    values = dict(zip(ascending, catalogue.column(column, ascending), strict=True))

    def of_piece(start: int, stop: int) -> np.ndarray:
        """Return bool [Q, P]."""
        theirs = catalogue.read(start, stop, [column]).column(0)
        same = np.zeros((len(rows), stop - start), dtype=bool)
        for query, row in enumerate(rows):
            if values[row] is not None:
                equal = pc.fill_null(pc.equal(theirs, values[row]), False)
                same[query] = equal.to_numpy()
        return same

    return of_piece
