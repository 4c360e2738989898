"""Steps of an append: new files to the rows of a window, and the tables, counts and histories that grow.

In: prepared data and the new files of its recipe. Out: the files that have changed, in the folder of the
grown data, and its manifest. Called by append.py.
"""

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from recsys.data.prepare.catalogue import items_checksum, write_users
from recsys.data.prepare.checks import naming_damaged_files
from recsys.data.prepare.engine import Engine, Table
from recsys.data.prepare.features import Specs, build_log_features, write_ids
from recsys.data.prepare.grown_catalogue import (
    GrownSide,
    grow_counts,
    grow_features,
    grow_items,
)
from recsys.data.prepare.grown_vectors import grow_vectors, open_known_vectors
from recsys.data.prepare.growth import (
    KnownTable,
    grow_vocabulary,
    known_ids,
    known_table,
    write_waiting,
)
from recsys.data.prepare.history import items_text
from recsys.data.prepare.ids import id_column
from recsys.data.prepare.inputs import Inputs, open_inputs
from recsys.data.prepare.log import Log
from recsys.data.prepare.new_files import (
    check_columns,
    find_new_files,
    say_missing_days,
    seconds_of,
)
from recsys.data.prepare.numbering import count_unknown, without_ids
from recsys.data.prepare.pictures import num_missing_of
from recsys.data.prepare.pipeline import image_root, warn_of_lacking_classes
from recsys.data.prepare.row_checks import check_rows
from recsys.data.prepare.rows import Columns
from recsys.data.prepare.window import Earlier, HoldWindow, WindowRows
from recsys.data.recipe import FeatureRecipe, Recipe, source_file
from recsys.data.sql import quoted
from recsys.errors import UserError
from recsys.files import new_folder
from recsys.job import stage
from recsys.schema import Ancestor, DenseSpec, Manifest, SplitSpec

SIDES = ("item", "user")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One append: from where, to where, and of what."""

    engine: Engine
    recipe: Recipe
    earlier: Earlier
    """The prepared data that is appended to."""
    folder: Path
    """Folder of the grown data."""
    hold: HoldWindow
    """Holder of the window's rows; the result does not depend on it."""
    features: Path
    """Folder of the feature tables."""
    tables: ExitStack
    """Takes the tables of own vectors that grow: they take their places when it ends."""

    def new_table(self, modality: str) -> Path:
        """Return an empty folder, which takes the place of a feature table when the append is done."""
        return self.tables.enter_context(new_folder(self.features / modality))

    def num_before(self, side: str) -> int:
        """Return the earlier rows of users or items, unknown row included."""
        manifest = self.earlier.manifest
        return max(manifest.num_user_rows if side == "user" else manifest.num_item_rows, 1)


def run_steps(step: Step, since: str | None) -> Manifest:
    """Take the new rows through every step; return the manifest, without checksums of files.

    Raises:
        UserError: there are no new files, or they cannot be appended.
    """
    with stage("open") as opened:
        new = find_new_files(step.recipe, step.earlier.manifest, since)
        inputs = open_inputs(step.engine, step.recipe, new.paths)
        check_columns(inputs, step.earlier.manifest)
        known = _known_ids(step)
        vectors = open_known_vectors(step.features, step.earlier.manifest, known)
        inputs = dataclasses.replace(inputs, known=known, known_vectors=vectors)
        opened.done(f"{len(new.files):,} new files")
    say_missing_days(step.earlier.manifest, new)
    with (
        naming_damaged_files(inputs.sources),
        step.hold(step.engine, step.recipe, inputs, step.earlier) as rows,
    ):
        return dataclasses.replace(_grow(step, inputs, rows, since), files=new.files)


def _grow(step: Step, inputs: Inputs, rows: WindowRows, since: str | None) -> Manifest:
    """Take the rows through every step; return the manifest, without the new files."""
    before = step.earlier.manifest
    with stage("read and check") as read:
        check_rows(step.engine, step.recipe, inputs, rows.scan)
        log, num_rows = _read(step, inputs, rows, since)
        read.done(f"{num_rows:,} interactions")
    with stage("number") as numbered:
        rows.split()
        vocabularies = {side: _number(step, inputs, rows, side) for side in SIDES}
        rows.place(vocabularies["user"], vocabularies["item"])
        rows_drawn, split_counts = rows.draw(vocabularies["item"])
        counts = {side: step.engine.count(v) + 1 for side, v in vocabularies.items()}
        more = [f"{counts[side] - step.num_before(side):,} new {side}s" for side in SIDES]
        numbered.done(", ".join([*more, f"{rows_drawn:,} negatives drawn"]))
    rows_unknown = count_unknown(split_counts, step.recipe.interactions)
    with stage("features") as grown:
        sides = [
            _grow_side(step, inputs, side, vocabularies[side], counts[side])
            for side in SIDES
            if id_column(step.recipe, side)
        ]
        for side in sides:
            grow_counts(step.engine, side, rows.placed, log.next_row_id, rows.count)
        tables, of_log = _grow_log_features(step, rows, log)
        grown.done(", ".join(f"{s.is_changed.sum():,} {s.side}s described anew" for s in sides))
    split, longest = _write_rows(step, rows, counts["user"], tables)
    specs = Specs(of_log.tables + tuple(t for s in sides for t in s.tables.values()))
    longest |= {name: length for side in sides for name, length in side.longest.items()}
    checksum = items_checksum(step.engine, vocabularies["item"])
    return dataclasses.replace(
        _grown_manifest(step, split, specs, longest),
        missing_images=before.missing_images + _missing_pictures(step),
        image_root=image_root(step.recipe),
        items_checksum=checksum,
        vectors=before.vectors
        | grow_vectors(inputs, vocabularies["item"], counts["item"], checksum, step.new_table),
        rows_in=before.rows_in + log.num_rows_in,
        rows_drawn=before.rows_drawn + rows_drawn,
        rows_dropped=_sums(before.rows_dropped, log.num_dropped),
        rows_unknown=_sums(before.rows_unknown, rows_unknown),
    )


def _known_ids(step: Step) -> dict[str, Table]:
    return {
        side: known_ids(step.earlier.folder, f"{side}_id").vocabulary
        for side in SIDES
        if id_column(step.recipe, side)
    }


def _read(step: Step, inputs: Inputs, rows: WindowRows, since: str | None) -> tuple[Log, int]:
    """Read the new log files from `since` on; return their log, and the number of rows that stay.

    Raises:
        UserError: rows are earlier than the prepared data's last one, or there are none.
    """
    if since is not None and inputs.times is None:
        raise UserError(f"since={since}: needs interactions.timestamp; the recipe names none")
    log = rows.read()
    num_early, num_rows = rows.leave_out(None if since is None else seconds_of(since))
    dropped = log.num_dropped | ({"earlier than since": num_early} if num_early else {})
    if not num_rows:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise UserError(
            f"append=true: the new files have no rows to append ({listed or 'no rows'})"
        )
    end = step.earlier.end
    if inputs.times and end is not None:
        _check_clock(step, inputs, rows, num_rows, end)
    return dataclasses.replace(log, num_dropped=dropped), num_rows


def _check_clock(step: Step, inputs: Inputs, rows: WindowRows, num_rows: int, end: int) -> None:
    """Refuse rows that are earlier than the last one of the prepared data.

    Raises:
        UserError: says how many, and shows the first.
    """
    late = rows.late(end)
    if late.row_id is None or late.earliest is None:
        return
    ((source, _),) = inputs.logs
    source_row = late.row_id - step.earlier.first_row_id
    path, row = source.located(source_row)
    column = quoted(str(step.recipe.interactions.timestamp))
    (value,) = step.engine.one(
        f"SELECT {column} FROM {source.view} WHERE source_row = {source_row}"
    )
    raise UserError(
        f"{path}: column {column}: {late.num_rows:,} of {num_rows:,} rows are earlier than the last row "
        f"of the prepared data ({_shown(end)}), down to {_shown(late.earliest)}, first at data row "
        f"{row:,} ({value!r}): windows follow each other in time. Remove these rows, give since= to "
        f"leave out what was read already, or prepare all days anew without append"
    )


def _shown(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _number(step: Step, inputs: Inputs, rows: WindowRows, side: str) -> Table:
    """Return the grown vocabulary of users or items, and write it with the ids that wait."""
    engine, recipe = step.engine, step.recipe
    column = id_column(recipe, side)
    if column is None:
        return without_ids(engine, side)
    catalogue = inputs.catalogue(side)
    listed = None
    if catalogue:
        listed = f"SELECT {quoted(catalogue.id_column)} AS id FROM {catalogue.source.view}"
    rules = recipe.interactions
    min_count = rules.user_min_count if side == "user" else rules.item_min_count
    only_listed = side == "item" and recipe.items is not None
    vocabulary, waiting = grow_vocabulary(
        engine,
        known_ids(step.earlier.folder, f"{side}_id"),
        rows.trained(side),
        min_count=min_count,
        key=f"interactions.{side}_min_count",
        listed=listed,
        only_listed=only_listed,
    )
    write_ids(engine, side, column, vocabulary, step.folder)
    if min_count > 1:
        write_waiting(engine, f"{side}_id", f"SELECT * FROM {waiting}", step.folder)
    return vocabulary


def _grow_side(
    step: Step, inputs: Inputs, side: str, vocabulary: Table, num_rows: int
) -> GrownSide:
    """Write the features and texts of users or items."""
    recipe = step.recipe
    section = recipe.items if side == "item" else recipe.users
    grown = GrownSide(
        side=side,
        before=step.earlier.folder,
        folder=step.folder,
        num_before=step.num_before(side),
        num_rows=num_rows,
        scratch=step.engine.scratch,
        vocabulary=vocabulary,
        catalogue=inputs.catalogue(side),
    )
    features = section.features if section else {}
    known, dense = _known_tables(step, features)
    grow_features(step.engine, grown, features, known, dense)
    if side == "item":
        grow_items(step.engine, grown, recipe.items)
    elif grown.has_grown:
        write_users(step.engine, vocabulary, step.folder)
    grown.tables[f"{side}_id"] = dataclasses.replace(
        step.earlier.manifest.table(f"{side}_id"), num_rows=num_rows
    )
    return grown


def _known_tables(
    step: Step, features: dict[str, FeatureRecipe]
) -> tuple[dict[str, KnownTable], dict[str, DenseSpec]]:
    """Return the tables and the dense features of the earlier data, by feature."""
    tables = {
        name: known_table(step.earlier.folder, step.earlier.manifest.table(name))
        for name, feature in features.items()
        if feature.kind != "dense"
    }
    return tables, {
        spec.name: spec for spec in step.earlier.manifest.dense if spec.name in features
    }


def _grow_log_features(step: Step, rows: WindowRows, log: Log) -> tuple[Columns, Specs]:
    """Return the tables of interaction features, grown by the window's rows, and their entries."""
    features = step.recipe.interactions.features
    return build_log_features(
        step.engine,
        features,
        rows.placed,
        log.next_row_id,
        step.folder,
        *_known_tables(step, features),
        count=rows.count,
    )


def _write_rows(
    step: Step, rows: WindowRows, num_user_rows: int, features: Columns
) -> tuple[SplitSpec, dict[str, int]]:
    """Write the histories and rows of the window; return its entry, and the longest lists."""
    history, window = step.earlier.manifest.history, step.earlier.window
    with stage("histories") as histories:
        added: dict[str, int] = {}
        if history:
            added = rows.write_histories(history, num_user_rows, step.folder)
        histories.done(f"{items_text(added)} added")
    with stage("write interactions") as written:
        splits, longest = rows.write_interactions(features, step.folder)
        warn_of_lacking_classes(splits)
        written.done(f"{window} {splits[window].num_rows:,}")
    return splits[window], longest


def _missing_pictures(step: Step) -> int:
    """Return how many new items name no picture file that is there."""
    items, file = step.recipe.items, step.folder / "items.parquet"
    if not (items and items.image and file.is_file()):
        return 0
    root = source_file(step.recipe, items.image_root)
    return num_missing_of(file, step.num_before("item"), root)


def _grown_manifest(
    step: Step, split: SplitSpec, specs: Specs, longest: dict[str, int]
) -> Manifest:
    """Return the earlier manifest with the window, the rows of all tables and the chain."""
    before = step.earlier.manifest
    tables = {table.name: table for table in specs.tables}
    features = []
    for feature in before.features:
        max_ids = feature.max_ids
        if max_ids is not None and feature.source != "history":
            max_ids = max(max_ids, longest.get(feature.name, 0))
        features.append(dataclasses.replace(feature, max_ids=max_ids))
    rows = {table.name: table.num_rows for table in (*before.tables, *specs.tables)}
    ancestor = Ancestor(
        identity=before.identity,
        table_rows={table.name: table.num_rows for table in before.tables},
        splits=tuple(before.splits_in_time),
        files=before.files,
        rows_in=before.rows_in,
        rows_drawn=before.rows_drawn,
    )
    return dataclasses.replace(
        before,
        tables=tuple(tables.get(table.name, table) for table in before.tables),
        features=tuple(features),
        splits={**before.splits, step.earlier.window: split},
        num_user_rows=rows["user_id"] if before.num_user_rows else 0,
        num_item_rows=rows["item_id"] if before.num_item_rows else 0,
        chain=(*before.chain, ancestor),
    )


def _sums(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
