"""Show what lies near what: an item's nearest by semantics, by style and by text, side by side.

In: W/prepared/, W/features/, the pictures. Out: W/neighbours/ with neighbours.html, neighbours.json
and, where there are pictures, sheet.png. One process; any number of items, since the vectors are
read in pieces.

    python launch/neighbours.py data=demo workspace=W
    python launch/neighbours.py data=demo workspace=W 'items=[i00007,i00012]' k=8 exclude_same=content
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig

from embedding.features.catalogue import Catalogue
from embedding.features.nearest import PIECE_ROWS, Nearest, nearest
from embedding.features.store import FeatureTable, open_features
from recsys.config import read_job
from recsys.data.workspace import WorkspaceConfig
from recsys.errors import UserError
from recsys.files import new_folder
from recsys.job import hydra_job, open_command, run_job, say, stage
from recsys.report.items import read_items
from recsys.report.neighbours import (
    EXCLUDE_SAME,
    MODALITIES,
    Answer,
    NeighboursConfig,
    has_pictures,
    known_marks,
    neighbour,
    summarise,
    write_neighbours,
)
from recsys.report.sheet import draw_sheet, tile_pixels
from recsys.runtime.env import rank_from_environment
from recsys.runtime.threads import threads_of_process, use_threads
from recsys.schema import Manifest, read_manifest

KEYS = (WorkspaceConfig, NeighboursConfig)
POOL_ROWS = 4096
"""Items a sample is chosen from."""


def job(cfg: DictConfig) -> None:
    """Read down once: this is how a page comes about."""
    # 1. Settings, catalogue and vectors.
    place, config = read_job(cfg, KEYS)
    use_threads(threads_of_process(config.run.threads).count)
    workspace = place.folder
    manifest = read_manifest(workspace)
    check_config(config, manifest)
    catalogue = Catalogue(workspace / "prepared")
    with stage("vectors") as opening:
        tables, notes = open_tables(workspace, manifest)
        opening.done(", ".join(f"{n} {t.num_rows:,} x {t.dim}" for n, t in tables.items()))
    for note in notes:
        say(note)
    if manifest.has_images:
        # A sheet that is too narrow is refused before the search.
        tile_pixels(config.sheet_width, len(tables), config.k)

    # 2. The items asked about.
    if config.items:
        rows = rows_of(catalogue, list(dict.fromkeys(config.items)))
    else:
        rows = spread_rows(catalogue, tables, config.num_queries, config.seed)

    # 3. What is nearest to them.
    excluded = None
    if config.exclude_same != "none":
        excluded = same_as(catalogue, config.exclude_same, rows)
        notes.insert(0, f"Items of the same {config.exclude_same} are left out.")
    with stage("search") as searching:
        found = {
            name: nearest(table, rows, k=config.k, excluded=excluded)
            for name, table in tables.items()
        }
        searching.done(f"{len(rows):,} x {catalogue.num_rows - 1:,} items, exact")

    # 4. Page, sheet and their content, written aside and renamed.
    answers = read_answers(catalogue, manifest, tables, rows, found)
    marks = known_marks(answers, config.exclude_same)
    title = f"{manifest.name}: nearest neighbours"
    notes.insert(0, "Most alike by cosine similarity of the stored vectors, best first.")
    target = workspace / "neighbours"
    with new_folder(target) as beside:
        write_neighbours(
            beside,
            title=title,
            notes=notes,
            answers=answers,
            marks=marks,
            settings={"data": manifest.name, "k": config.k, "exclude_same": config.exclude_same},
        )
        if has_pictures(answers):
            draw_sheet(
                title=title, notes=notes, answers=answers, marks=marks, width=config.sheet_width
            ).save(beside / "sheet.png", optimize=True)
    for name, shares in summarise(answers).items():
        shown = ", ".join(
            f"same {mark} {shares[mark]:.0%}"
            for mark in ("artist", "content")
            if shares[mark] is not None
        )
        say(f"nearest by {name}: {shares['neighbours']:,} shown{', ' if shown else ''}{shown}")
    say(f"results: {target}")
    say(f"next: {open_command(target / 'neighbours.html')}")


def check_config(config: NeighboursConfig, manifest: Manifest) -> None:
    """Raise UserError for settings that cannot be answered, all at once."""
    problems = []
    num_others = manifest.num_item_rows - 2  # without the unknown row and the item itself
    if not 1 <= config.k <= num_others:
        problems.append(
            f"k={config.k}: expected 1 to {max(num_others, 0):,}; the catalogue of "
            f"{manifest.name!r} has {max(manifest.num_item_rows - 1, 0):,} items"
        )
    if config.num_queries < 1:
        problems.append(f"num_queries={config.num_queries}: expected 1 or more")
    if config.exclude_same not in EXCLUDE_SAME:
        problems.append(f"exclude_same={config.exclude_same}: expected {', '.join(EXCLUDE_SAME)}")
    elif config.exclude_same != "none":
        column = (manifest.recipe.get("items") or {}).get(config.exclude_same)
        if column is None:
            problems.append(
                f"exclude_same={config.exclude_same}: the recipe does not map "
                f"items.{config.exclude_same}; map it to a column and run launch/prepare.py again, "
                f"or use exclude_same=none"
            )
    if problems:
        raise UserError("\n  ".join(problems))


def open_tables(workspace: Path, manifest: Manifest) -> tuple[dict[str, FeatureTable], list[str]]:
    """Return the feature tables there are, and sentences for those that are not.

    Raises:
        UserError: there are none (says to run embed), or one is broken or of other items.
    """
    here = [n for n in MODALITIES if (workspace / "features" / n / "manifest.json").is_file()]
    if not here:
        raise UserError(
            f"{workspace / 'features'}: no features here; run launch/embed.py with the same data= "
            f"and workspace= first"
        )
    tables = open_features(workspace, here, manifest, say)
    missing: dict[str, list[str]] = {}
    for name in MODALITIES:
        if name not in here:
            lacking = f"the data set has no {'texts' if name == 'text' else 'pictures'}"
            why = "not embedded yet" if manifest.has_modality(name) else lacking
            missing.setdefault(why, []).append(name)
    return tables, [f"Left out: {' and '.join(names)} ({why})." for why, names in missing.items()]


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
    chosen: list[int] = []
    taken: Counter[tuple[str, str]] = Counter()
    while pool and len(chosen) < count:
        keys = [[(n, v[row]) for n, v in known.items() if v[row] is not None] for row in pool]
        first = int(np.argmin([sum(taken[key] for key in of_row) for of_row in keys]))
        taken.update(keys[first])
        chosen.append(pool.pop(first))
    return chosen


def same_as(catalogue: Catalogue, column: str, rows: list[int]) -> Callable[[int, int], np.ndarray]:
    """Return a function of (start, stop): bool [Q, stop - start], whose items share the column.

    Where it is unknown, for the item asked about or for the other, nothing is shared.
    """
    ascending = sorted(set(rows))
    values = dict(zip(ascending, catalogue.column(column, ascending), strict=True))

    def of_piece(start: int, stop: int) -> np.ndarray:
        theirs = catalogue.read(start, stop, [column]).column(0)
        same = np.zeros((len(rows), stop - start), dtype=bool)
        for query, row in enumerate(rows):
            if values[row] is not None:
                equal = pc.fill_null(pc.equal(theirs, values[row]), False)
                same[query] = equal.to_numpy()
        return same

    return of_piece


def read_answers(
    catalogue: Catalogue,
    manifest: Manifest,
    tables: dict[str, FeatureTable],
    rows: list[int],
    found: dict[str, Nearest],
) -> list[Answer]:
    """Return the items asked about and their neighbours with all that a page shows of them."""
    shown = {row for n in found.values() for row in n.rows_QK.ravel().tolist() if row >= 0}
    items = read_items(catalogue, manifest, sorted(shown | set(rows)))
    has_vector = {name: table.has_vector(np.array(rows)) for name, table in tables.items()}
    answers = []
    for query, row in enumerate(rows):
        groups = {}
        for name, near in found.items():
            pairs = zip(near.rows_QK[query], near.similarities_QK[query], strict=True)
            groups[name] = (
                [neighbour(items[row], items[int(r)], float(s)) for r, s in pairs if r >= 0]
                if has_vector[name][query]
                else None
            )
        answers.append(Answer(item=items[row], groups=groups))
    return answers


@hydra_job("neighbours", KEYS)
def main(cfg: DictConfig) -> None:
    """Entry point; under torchrun one process does it."""
    if rank_from_environment() == 0:
        run_job(lambda: job(cfg))


if __name__ == "__main__":
    main()
