"""Prepare: raw files to prepared/, checked, numbered, split, with histories, as Parquet and a manifest.

In: a Recipe. Out: a folder `prepared/` as recsys/schema.py describes it. Called by launch/prepare.py.
All work is SQL in an on-disk DuckDB database with a memory limit, so that a log of any length fits; the
folder is built beside and renamed.
"""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from recsys.config import check
from recsys.data.prepare.catalogue import items_checksum, write_items, write_users
from recsys.data.prepare.checks import naming_damaged_files
from recsys.data.prepare.engine import Engine, Table, opened_engine
from recsys.data.prepare.features import (
    Specs,
    build_log_features,
    write_catalogue_features,
    write_ids,
    write_training_counts,
)
from recsys.data.prepare.growth import rare_ids, write_waiting
from recsys.data.prepare.history import history_spec, items_text
from recsys.data.prepare.ids import id_column
from recsys.data.prepare.inputs import Inputs, open_inputs
from recsys.data.prepare.new_files import raw_columns, read_files
from recsys.data.prepare.numbering import (
    SplitCounts,
    check_splits,
    check_training_classes,
    count_unknown,
    number_ids,
    without_ids,
)
from recsys.data.prepare.object_store import in_place
from recsys.data.prepare.pairs import PairCounts, build_pairs
from recsys.data.prepare.row_checks import check_rows
from recsys.data.prepare.rows import Columns, Rows, WholeLog
from recsys.data.prepare.vector_tables import write_table
from recsys.data.prepare.writing import ROW_GROUP_ROWS, write_parquet
from recsys.data.recipe import Recipe, source_file
from recsys.data.specs import history_features
from recsys.files import new_folder, sha256_of
from recsys.job import say, stage
from recsys.schema import Manifest, SplitSpec, write_manifest

Hold = Callable[[Engine, Recipe, Inputs], AbstractContextManager[Rows]]
"""Holder of the rows of the log, for the duration of a block."""


def whole_log(engine: Engine, recipe: Recipe, inputs: Inputs) -> AbstractContextManager[Rows]:
    """Hold the rows of the log in the engine's own database."""
    return nullcontext(WholeLog(engine, recipe, inputs))


def prepare(
    recipe: Recipe, workspace: Path, *, memory_limit: str, threads: int, hold: Hold = whole_log
) -> Manifest:
    """Build `<workspace>/prepared/` from the recipe's files and return its manifest.

    Args:
        memory_limit: DuckDB's, for example "2GB"; what does not fit spills to the workspace.
        threads: of DuckDB.
        hold: holder of the rows of the log; the result does not depend on it.

    Raises:
        UserError: the recipe contradicts itself, or the input has problems (all listed at once).
            Nothing is left behind, and an earlier `prepared/` stays as it was.
    """
    check(recipe, "data")
    # The tables of own vectors take their places after prepared/: until then they do not fit it.
    with (
        without_leftovers(workspace),
        ExitStack() as tables,
        new_folder(workspace / "prepared") as beside,
    ):
        vector_folders = {
            name: tables.enter_context(new_folder(workspace / "features" / name))
            for name in (recipe.items.vectors if recipe.items else ())
        }
        local = in_place(recipe)
        with opened_engine(beside / "work", memory_limit, threads) as engine:
            with stage("open") as opened:
                inputs = open_inputs(engine, local)
                opened.done(f"{len(inputs.sources)} files")
            with naming_damaged_files(inputs.sources):
                with hold(engine, local, inputs) as rows:
                    manifest = run_steps(engine, local, inputs, rows, beside, vector_folders)
            manifest = dataclasses.replace(
                manifest, files=read_files(local, inputs), raw_columns=raw_columns(inputs)
            )
        shutil.rmtree(beside / "work")
        manifest = dataclasses.replace(
            manifest,
            recipe=dataclasses.asdict(recipe),
            checksums={
                str(path.relative_to(beside)): sha256_of(path)
                for path in sorted(beside.rglob("*"))
                if path.is_file()
            },
            column_checksums=column_checksums(beside, manifest),
        )
        write_manifest(beside, manifest)
    return manifest


@contextmanager
def without_leftovers(workspace: Path) -> Iterator[None]:
    """Remove the folders of a workspace that an error leaves empty, if they were not there before."""
    folders = (workspace / "features", workspace, *workspace.parents)
    made = [folder for folder in folders if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def run_steps(
    engine: Engine,
    recipe: Recipe,
    inputs: Inputs,
    rows: Rows,
    folder: Path,
    vector_folders: dict[str, Path],
) -> Manifest:
    """Take the data set through every step; return its manifest, without checksums of files.

    Args:
        folder: empty but for the database; the files are written there.
        vector_folders: empty; receive the feature tables of own vectors, by modality.
    """
    with stage("read and check") as read:
        missing_images = check_rows(engine, recipe, inputs, rows.scan)
        log = rows.read()
        missing = f", {missing_images:,} items without a picture" if missing_images else ""
        read.done(f"{log.num_rows_in:,} interactions{missing}")
    with stage("split and number") as numbered:
        vocabularies = _split_and_number(engine, recipe, inputs, rows, folder)
        rows_drawn, counts = rows.draw(vocabularies["item"])
        check_training_classes(counts[0], recipe.interactions, recipe.split, rows_drawn)
        rows_unknown = count_unknown(counts, recipe.interactions)
        num_users, num_items = (engine.count(vocabularies[side]) for side in ("user", "item"))
        numbered.done(f"{num_users:,} users, {num_items:,} items, {rows_drawn:,} negatives drawn")
    with stage("features"):
        sides = Sides(vocabularies, rows, log.next_row_id, counts[0])
        features, specs = _write_features(engine, recipe, inputs, sides, folder)
    with stage("histories") as histories:
        stored: dict[str, int] = {}
        if history := history_spec(recipe):
            stored = rows.write_histories(history, num_users + 1, folder)
            specs += Specs(features=tuple(history_features(history)))
        histories.done(f"{items_text(stored)} stored")
    with stage("write interactions") as written:
        splits, longest = rows.write_interactions(features, folder)
        written.done(", ".join(f"{name} {s.num_rows:,}" for name, s in splits.items()))
    warn_of_lacking_classes(splits)
    checksum = items_checksum(engine, vocabularies["item"])
    vectors = _write_vectors(inputs, vocabularies["item"], num_items + 1, checksum, vector_folders)
    pairs = _write_pairs(engine, recipe, inputs, folder)
    specs = specs.with_max_ids(longest).with_column_types(recipe, inputs)
    return dataclasses.replace(
        _described(recipe, pairs),
        tables=specs.tables,
        features=specs.features,
        dense=specs.dense,
        splits=splits,
        num_user_rows=num_users + 1 if recipe.interactions.user_id else 0,
        num_item_rows=num_items + 1 if recipe.interactions.item_id else 0,
        history=history,
        missing_images=missing_images,
        items_checksum=checksum,
        vectors=vectors,
        rows_in=log.num_rows_in,
        rows_dropped=log.num_dropped,
        rows_drawn=rows_drawn,
        rows_unknown=rows_unknown,
    )


def _split_and_number(
    engine: Engine, recipe: Recipe, inputs: Inputs, rows: Rows, prepared: Path
) -> dict[str, Table]:
    """Return the vocabularies of users and items by side, and place the log by them.

    The ids that are too rare are written for a later append.
    """
    rows.split()
    min_counts = {
        "user": recipe.interactions.user_min_count,
        "item": recipe.interactions.item_min_count,
    }
    vocabularies = {}
    for side, min_count in min_counts.items():
        if id_column(recipe, side) is None:
            vocabularies[side] = without_ids(engine, side)
        else:
            trained = rows.trained(side)
            vocabularies[side] = number_ids(
                engine, trained, side, min_count=min_count, listed=inputs.listed(side)
            )
            if min_count > 1:
                rare = rare_ids(trained, vocabularies[side])
                write_waiting(engine, f"{side}_id", rare, prepared)
    check_splits(rows.place(vocabularies["user"], vocabularies["item"]), recipe)
    return vocabularies


class Sides(NamedTuple):
    """Users and items as the log has them."""

    vocabularies: dict[str, Table]
    """(id, row, count) by side."""
    rows: Rows
    next_row_id: int
    """Row ids from here on are drawn negatives."""
    trained: SplitCounts
    """Counts of the training rows."""

    def num_unknown(self, side: str) -> int:
        """Return the training rows whose user or item has the unknown row 0."""
        trained = self.trained
        return trained.num_unknown_users if side == "user" else trained.num_unknown_items


def _write_features(
    engine: Engine, recipe: Recipe, inputs: Inputs, sides: Sides, prepared: Path
) -> tuple[Columns, Specs]:
    """Write items, users and vocabularies; return the interaction features, and all entries."""
    specs = _write_catalogues(engine, recipe, inputs, sides, prepared)
    columns, of_log = build_log_features(
        engine,
        recipe.interactions.features,
        sides.rows.placed,
        sides.next_row_id,
        prepared,
        count=sides.rows.count,
    )
    return columns, specs + of_log


def _write_catalogues(
    engine: Engine, recipe: Recipe, inputs: Inputs, sides: Sides, prepared: Path
) -> Specs:
    """Write items and users: ids, training counts, features and what is known of each."""
    specs = Specs()
    for side in ("item", "user"):
        column = id_column(recipe, side)
        if column is None:
            continue
        vocabulary, catalogue = sides.vocabularies[side], inputs.catalogue(side)
        specs += write_ids(engine, side, column, vocabulary, prepared)
        folder = prepared / f"{side}s"
        folder.mkdir()
        write_training_counts(
            engine,
            side,
            sides.rows.placed,
            next_row_id=sides.next_row_id,
            num_side_rows=engine.count(vocabulary) + 1,
            folder=folder,
            count=sides.rows.count,
        )
        if catalogue:
            specs += write_catalogue_features(
                engine, catalogue, vocabulary, sides.num_unknown(side), prepared
            )
        if side == "item":
            write_items(engine, vocabulary, recipe.items, catalogue, prepared)
        else:
            write_users(engine, vocabulary, prepared)
    return specs


def warn_of_lacking_classes(splits: dict[str, SplitSpec]) -> None:
    """Say which splits have rows of one class only."""
    for name, split in splits.items():
        if split.lacking_class:
            say(
                f"warning: split {name} has {split.num_rows:,} rows and no {split.lacking_class}: "
                f"AUC has no value there"
            )


def _write_pairs(engine: Engine, recipe: Recipe, inputs: Inputs, folder: Path) -> PairCounts:
    """Write pairs.parquet in the order of the files; return what became of their pairs."""
    if not inputs.pairs:
        return PairCounts()
    pairs, counts = build_pairs(engine, inputs.pairs, recipe.items)
    write_parquet(engine, f"SELECT * FROM {pairs}", folder / "pairs.parquet")
    say(f"text pairs: {counts}")
    return counts


def _write_vectors(
    inputs: Inputs, items: Table, num_item_rows: int, items_checksum: str, folders: dict[str, Path]
) -> dict[str, str]:
    """Write the feature tables of own vectors; return the checksum of each, by modality."""
    return {
        own.name: write_table(
            own.name,
            own.path.name,
            functools.partial(own.by_row, items),
            width=own.width,
            bits=own.bits,
            num_rows=num_item_rows,
            items_checksum=items_checksum,
            folder=folders[own.name],
        )
        for own in inputs.vectors
    }


def _described(recipe: Recipe, pairs: PairCounts) -> Manifest:
    """Return a manifest with the entries that follow from the recipe and the text pairs alone."""
    items = recipe.items
    return Manifest(
        name=recipe.name,
        tables=(),
        features=(),
        splits={},
        num_user_rows=0,
        num_item_rows=0,
        history=None,
        has_images=bool(items and items.image),
        has_texts=bool(items and items.text),
        has_tags=bool(items and items.tags),
        has_artists=bool(items and items.artist),
        has_pairs=pairs.num_kept > 0,
        has_weights=recipe.interactions.weight is not None,
        pairs_in=pairs.num_in,
        pairs_kept=pairs.num_kept,
        pairs_dropped=pairs.dropped,
        pairs_cleaned=pairs.num_cleaned,
        image_root=image_root(recipe),
    )


def image_root(recipe: Recipe) -> str | None:
    """Return the folder that picture paths are relative to; None without pictures."""
    items = recipe.items
    if items is None or items.image is None:
        return None
    return str(source_file(recipe, items.image_root).resolve())


def column_checksums(prepared: Path, manifest: Manifest) -> dict[str, str]:
    """Return sha256 over what vectors are made of: columns of items.parquet in row order."""
    has = {"image": manifest.has_images, "text": manifest.has_texts}
    digests = {name: hashlib.sha256() for name, is_there in has.items() if is_there}
    if digests:
        with pq.ParquetFile(prepared / "items.parquet") as file:
            for batch in file.iter_batches(ROW_GROUP_ROWS, columns=list(digests)):
                for name, digest in digests.items():
                    values = batch.column(name).to_pylist()
                    digest.update("".join(f"{value or ''}\0" for value in values).encode())
    return {name: digest.hexdigest() for name, digest in digests.items()}
