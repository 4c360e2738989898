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
from recsys.data.prepare.dense import DenseColumn
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
from recsys.data.prepare.ids import id_column
from recsys.data.prepare.inputs import Inputs, open_inputs
from recsys.data.prepare.interactions import write_interactions
from recsys.data.prepare.log import Log, read_log
from recsys.data.prepare.new_files import (
    check_columns,
    find_new_files,
    say_missing_days,
    seconds_of,
)
from recsys.data.prepare.numbering import count_splits, count_unknown, place, without_ids
from recsys.data.prepare.pictures import num_missing_of
from recsys.data.prepare.pipeline import image_root, warn_of_lacking_classes
from recsys.data.prepare.row_checks import check_rows
from recsys.data.prepare.rows import draw
from recsys.data.prepare.vocab import FeatureRows
from recsys.data.prepare.window_history import (
    last_second,
    positives_sql,
    read_last_positives,
    write_window_histories,
)
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
    before: Path
    """Folder of the prepared data that is appended to."""
    folder: Path
    """Folder of the grown data."""
    manifest: Manifest
    """Of the earlier data."""
    window: str
    """Name of the new split."""
    features: Path
    """Folder of the feature tables."""
    tables: ExitStack
    """Takes the tables of own vectors that grow: they take their places when it ends."""

    def new_table(self, modality: str) -> Path:
        """Return an empty folder, which takes the place of a feature table when the append is done."""
        return self.tables.enter_context(new_folder(self.features / modality))

    def num_before(self, side: str) -> int:
        """Return the earlier rows of users or items, unknown row included."""
        manifest = self.manifest
        return max(manifest.num_user_rows if side == "user" else manifest.num_item_rows, 1)


def run_steps(step: Step, since: str | None) -> Manifest:
    """Take the new rows through every step; return the manifest, without checksums of files.

    Raises:
        UserError: there are no new files, or they cannot be appended.
    """
    with stage("open") as opened:
        new = find_new_files(step.recipe, step.manifest, since)
        inputs = open_inputs(step.engine, step.recipe, new.paths)
        check_columns(inputs, step.manifest)
        known = _known_ids(step)
        vectors = open_known_vectors(step.features, step.manifest, known)
        inputs = dataclasses.replace(inputs, known=known, known_vectors=vectors)
        opened.done(f"{len(new.files):,} new files")
    say_missing_days(step.manifest, new)
    with naming_damaged_files(inputs.sources):
        with stage("read and check") as read:
            log = _read(step, inputs, since)
            read.done(f"{step.engine.count(log.rows):,} interactions")
        with stage("number") as numbered:
            vocabularies = {side: _number(step, inputs, log, side) for side in SIDES}
            placed = _place(step, log, vocabularies)
            rows_drawn = _draw(step, placed, vocabularies, log)
            counts = {side: step.engine.count(v) + 1 for side, v in vocabularies.items()}
            more = [f"{counts[side] - step.num_before(side):,} new {side}s" for side in SIDES]
            numbered.done(", ".join([*more, f"{rows_drawn:,} negatives drawn"]))
        rows_unknown = count_unknown(count_splits(step.engine, placed), step.recipe.interactions)
        with stage("features") as grown:
            sides = [
                _grow_side(step, inputs, side, vocabularies[side], counts[side])
                for side in SIDES
                if id_column(step.recipe, side)
            ]
            for side in sides:
                grow_counts(step.engine, side, placed, log.next_row_id)
            tables, of_log = _grow_log_features(step, placed, log)
            grown.done(", ".join(f"{s.is_changed.sum():,} {s.side}s described anew" for s in sides))
        split, longest = _write_rows(step, placed, counts["user"], tables)
        specs = Specs(of_log.tables + tuple(t for s in sides for t in s.tables.values()))
        longest |= {name: length for side in sides for name, length in side.longest.items()}
        manifest = _grown_manifest(step, split, specs, longest)
        checksum = items_checksum(step.engine, vocabularies["item"])
        return dataclasses.replace(
            manifest,
            missing_images=manifest.missing_images + _missing_pictures(step),
            image_root=image_root(step.recipe),
            items_checksum=checksum,
            vectors=step.manifest.vectors
            | grow_vectors(inputs, vocabularies["item"], counts["item"], checksum, step.new_table),
            rows_in=manifest.rows_in + log.num_rows_in,
            rows_drawn=manifest.rows_drawn + rows_drawn,
            rows_dropped=_sums(manifest.rows_dropped, log.num_dropped),
            rows_unknown=_sums(manifest.rows_unknown, rows_unknown),
            files=new.files,
        )


def _known_ids(step: Step) -> dict[str, Table]:
    return {
        side: known_ids(step.before, f"{side}_id").vocabulary
        for side in SIDES
        if id_column(step.recipe, side)
    }


def _read(step: Step, inputs: Inputs, since: str | None) -> Log:
    """Return the checked rows of the new log files, from `since` on.

    Raises:
        UserError: rows are unusable, or earlier than the prepared data's last one, or there are none.
    """
    engine, manifest = step.engine, step.manifest
    check_rows(engine, step.recipe, inputs)
    first_row_id = manifest.rows_in + manifest.rows_drawn
    log = read_log(engine, step.recipe, inputs, first_row_id)
    dropped = dict(log.num_dropped)
    if since is not None:
        if inputs.times is None:
            raise UserError(f"since={since}: needs interactions.timestamp; the recipe names none")
        is_earlier = f"ts < {seconds_of(since)}"
        if count := engine.count(log.rows, is_earlier):
            engine.delete(log.rows, is_earlier)
            dropped["earlier than since"] = count
    if not engine.count(log.rows):
        raise UserError(
            f"append=true: the new files have no rows to append ({_listed(dropped) or 'no rows'})"
        )
    end = last_second(manifest)
    if inputs.times and end is not None:
        _check_clock(step, inputs, log, first_row_id, end)
    return dataclasses.replace(log, num_dropped=dropped)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def _check_clock(step: Step, inputs: Inputs, log: Log, first_row_id: int, end: int) -> None:
    """Refuse rows that are earlier than the last one of the prepared data.

    Raises:
        UserError: says how many, and shows the first.
    """
    count, row_id, earliest = step.engine.one(
        f"SELECT count(*), min(row_id), min(ts) FROM {log.rows} WHERE ts < {end}"
    )
    if not count:
        return
    ((source, _),) = inputs.logs
    path, row = source.located(row_id - first_row_id)
    column = quoted(str(step.recipe.interactions.timestamp))
    (value,) = step.engine.one(
        f"SELECT {column} FROM {source.view} WHERE source_row = {row_id - first_row_id}"
    )
    total = step.engine.count(log.rows)
    raise UserError(
        f"{path}: column {column}: {count:,} of {total:,} rows are earlier than the last row of the "
        f"prepared data ({_shown(end)}), down to {_shown(earliest)}, first at data row {row:,} "
        f"({value!r}): windows follow each other in time. Remove these rows, give since= to leave out "
        f"what was read already, or prepare all days anew without append"
    )


def _shown(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _number(step: Step, inputs: Inputs, log: Log, side: str) -> Table:
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
        known_ids(step.before, f"{side}_id"),
        f"SELECT {side}_id AS id FROM {log.rows}",
        min_count=min_count,
        listed=listed,
        only_listed=only_listed,
    )
    write_ids(engine, side, column, vocabulary, step.folder)
    if min_count > 1:
        write_waiting(engine, f"{side}_id", f"SELECT * FROM {waiting}", step.folder)
    return vocabulary


def _place(step: Step, log: Log, vocabularies: dict[str, Table]) -> Table:
    """Return the placed rows of the window, all of them of split 0."""
    engine = step.engine
    splits = engine.create("splits", f"SELECT row_id, 0 AS split FROM {log.rows}")
    placed = place(
        engine, step.recipe, log.rows, splits, vocabularies["user"], vocabularies["item"]
    )
    engine.drop(splits, log.rows)
    return placed


def _draw(step: Step, placed: Table, vocabularies: dict[str, Table], log: Log) -> int:
    """Add negatives to the window's positives, where the recipe draws them; return how many."""
    engine = step.engine
    if step.recipe.interactions.negatives is None:
        return 0
    # Their users alone, so that memory follows the window; the scan reads four columns of all rows.
    rows = positives_sql(step.recipe, step.manifest, step.before)
    earlier = engine.create(
        "earlier",
        f"SELECT u.id AS user_id, i.id AS item_id, p.item_row FROM ({rows}) p "
        f"JOIN {vocabularies['user']} u ON u.row = p.user_row "
        f"JOIN {vocabularies['item']} i ON i.row = p.item_row "
        f"WHERE p.user_row IN (SELECT user_row FROM {placed})",
        is_temporary=True,
    )
    num_drawn = draw(engine, step.recipe, placed, vocabularies["item"], log.next_row_id, earlier)
    engine.drop(earlier)
    return num_drawn


def _grow_side(
    step: Step, inputs: Inputs, side: str, vocabulary: Table, num_rows: int
) -> GrownSide:
    """Write the features and texts of users or items."""
    recipe = step.recipe
    section = recipe.items if side == "item" else recipe.users
    grown = GrownSide(
        side=side,
        before=step.before,
        folder=step.folder,
        num_before=step.num_before(side),
        num_rows=num_rows,
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
        step.manifest.table(f"{side}_id"), num_rows=num_rows
    )
    return grown


def _known_tables(
    step: Step, features: dict[str, FeatureRecipe]
) -> tuple[dict[str, KnownTable], dict[str, DenseSpec]]:
    """Return the tables and the dense features of the earlier data, by feature."""
    tables = {
        name: known_table(step.before, step.manifest.table(name))
        for name, feature in features.items()
        if feature.kind != "dense"
    }
    return tables, {spec.name: spec for spec in step.manifest.dense if spec.name in features}


def _grow_log_features(
    step: Step, placed: Table, log: Log
) -> tuple[dict[str, FeatureRows | DenseColumn], Specs]:
    """Return the tables of interaction features, grown by the window's rows, and their entries."""
    features = step.recipe.interactions.features
    return build_log_features(
        step.engine,
        features,
        placed,
        log.next_row_id,
        step.folder,
        *_known_tables(step, features),
    )


def _write_rows(
    step: Step,
    placed: Table,
    num_user_rows: int,
    features: dict[str, FeatureRows | DenseColumn],
) -> tuple[SplitSpec, dict[str, int]]:
    """Write the histories and rows of the window; return its entry, and the longest lists."""
    engine, history = step.engine, step.manifest.history
    with stage("histories") as histories:
        ends, num_positives = None, 0
        if history:
            last = read_last_positives(engine, step.recipe, step.manifest, step.before)
            ends, num_positives = write_window_histories(
                engine, history, step.window, placed, last, num_user_rows, step.folder
            )
        histories.done(f"{num_positives:,} positives added")
    with stage("write interactions") as written:
        splits, longest = write_interactions(
            engine, step.recipe, placed, ends, features, step.folder, (step.window,)
        )
        warn_of_lacking_classes(splits)
        written.done(f"{step.window} {splits[step.window].num_rows:,}")
    return splits[step.window], longest


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
    before = step.manifest
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
        splits={**before.splits, step.window: split},
        num_user_rows=rows["user_id"] if before.num_user_rows else 0,
        num_item_rows=rows["item_id"] if before.num_item_rows else 0,
        chain=(*before.chain, ancestor),
    )


def _sums(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {key: one.get(key, 0) + other.get(key, 0) for key in {**one, **other}}
