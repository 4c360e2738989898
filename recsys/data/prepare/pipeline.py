"""Raw files to prepared/: checked, numbered, split, with histories, as parquet and a manifest.

What enters: a Recipe. What leaves: a folder `prepared/` as recsys/schema.py describes it. Called by
launch/prepare.py. All work is SQL in an on-disk DuckDB database with a memory limit, so that a log of
any length fits; the folder is built beside and renamed.
"""

import dataclasses
import hashlib
import itertools
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.prepare.checks import (
    Problems,
    is_null,
    is_written_oddly,
    leaves_root,
    look_for_pictures,
    merged_ids,
    note_ids_written_two_ways,
)
from recsys.data.prepare.history import (
    STORED,
    are_stored_by_split,
    build_sequence,
    stand_in_time_sql,
)
from recsys.data.prepare.label import RULES, label_sql, parse_label, unusable_label
from recsys.data.prepare.negatives import draw_negatives
from recsys.data.prepare.object_store import fetched
from recsys.data.prepare.pairs import PairCounts, build_pairs, pair_columns
from recsys.data.prepare.sources import Source, TextFormat
from recsys.data.prepare.spelling import gather_ids, overlap_of, two_spellings
from recsys.data.prepare.split import order_hash, split_sql
from recsys.data.prepare.timestamps import (
    LAST_ODD_SECOND,
    dates_among_numbers,
    format_problem,
    seconds_sql,
    unusable_times,
)
from recsys.data.recipe import (
    PERSPECTIVES,
    SPLITS,
    FeatureRecipe,
    Recipe,
    Section,
    check_recipe,
    source_file,
)
from recsys.data.sql import literal, quoted, short
from recsys.data.vocab import FeatureTable, build_vocabulary, value_sql
from recsys.errors import UserError
from recsys.files import new_array, new_folder, sha256_of
from recsys.job import say, stage
from recsys.schema import (
    FeatureSpec,
    HistorySpec,
    Manifest,
    SplitSpec,
    TableSpec,
    write_manifest,
)

ROW_GROUP_ROWS = 65_536
PART_ROWS = 64 * ROW_GROUP_ROWS
UNKNOWN_USER_SQL = (
    "CASE WHEN p.user_row = 0 THEN md5_number_lower(p.user_id) ELSE 0::UBIGINT END AS unknown_user"
)
"""Tells the users of the unknown row apart, for evaluation: a hash of the id, 0 for known users."""


def prepare(recipe: Recipe, workspace: Path, *, memory_limit: str, threads: int) -> Manifest:
    """Build `<workspace>/prepared/` from the recipe's files and return its manifest.

    Args:
        memory_limit: DuckDB's, for example "2GB"; what does not fit spills to the workspace.
        threads: of DuckDB.

    Raises:
        UserError: the recipe contradicts itself, or the input has problems (all listed at once).
            Nothing is left behind, and an earlier `prepared/` stays as it was.
    """
    check_recipe(recipe)
    try:
        with new_folder(workspace / "prepared") as beside:
            with (
                fetched(recipe, beside / "source") as local,
                _database(beside / "work", memory_limit, threads) as connection,
            ):
                manifest = Preparation(connection, local, beside).run()
            manifest = dataclasses.replace(manifest, recipe=dataclasses.asdict(recipe))
            shutil.rmtree(beside / "work")
            checksums = {
                str(path.relative_to(beside)): sha256_of(path)
                for path in sorted(beside.rglob("*"))
                if path.is_file()
            }
            manifest = dataclasses.replace(
                manifest, checksums=checksums, column_checksums=column_checksums(beside, manifest)
            )
            write_manifest(beside, manifest)
    except duckdb.OutOfMemoryException as error:
        raise UserError(
            f"memory_limit={memory_limit} with run.threads={threads}: not enough for this data "
            f"({short(error)}); raise memory_limit or lower run.threads"
        ) from error
    except duckdb.Error as error:
        raise UserError(f"data.source={recipe.source}: {short(error)}") from error
    return manifest


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


@contextmanager
def _database(folder: Path, memory_limit: str, threads: int) -> Iterator[duckdb.DuckDBPyConnection]:
    if "?" in str(folder):  # it takes what follows for parameters of a URL
        raise UserError(
            f"workspace={folder.parent.parent}: a question mark in a workspace's path, which the "
            f"database cannot open; rename the folder"
        )
    folder.mkdir()
    connection = duckdb.connect(str(folder / "work.duckdb"))
    try:
        try:
            connection.execute(f"SET memory_limit = {literal(memory_limit)}")
            connection.execute(f"SET threads = {threads}")
        except duckdb.Error as error:
            raise UserError(
                f"memory_limit={memory_limit!r}, run.threads={threads!r}: {short(error)}"
            ) from error
        # Times without a zone mean UTC, on every machine.
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET temp_directory = {literal(str(folder / 'spill'))}")
        connection.execute("SET preserve_insertion_order = true")
        connection.execute("SET enable_progress_bar = false")
        yield connection
    finally:
        connection.close()


class Preparation:
    """One run of prepare: the steps in order, and what they hand on."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, recipe: Recipe, folder: Path):
        """Args: folder: where the files are written."""
        self.connection = connection
        self.recipe = recipe
        self.folder = folder
        self.problems = Problems()
        self.dropped: dict[str, int] = {}
        self.tables: list[TableSpec] = []
        self.features: list[FeatureSpec] = []
        self.log_features: dict[str, FeatureTable] = {}
        self.rows_in = 0
        self.missing_images = 0

    def run(self) -> Manifest:
        """Read down once: this is what happens to a data set."""
        with stage("read and check") as read:
            logs = self.open_sources()
            self.check()
            rows_in = self.rows_in = self.load_log(logs)
            if log_times := self.recipe.interactions.timestamp:
                now = int(time.time())
                (latest,) = self.one("SELECT max(ts) FROM log")
                if latest <= LAST_ODD_SECOND and not self.recipe.interactions.timestamp_format:
                    say(
                        f"column {log_times!r}: no row is later than 1979 when its numbers are taken "
                        f"for seconds since 1970; interactions.timestamp_format says otherwise"
                    )
                if in_future := self.count(f"log WHERE ts > {now}"):
                    say(
                        f"column {log_times!r}: {in_future:,} rows lie in the future; they are kept"
                    )
            missing = f", {self.missing_images:,} items without a picture"
            read.done(f"{rows_in:,} interactions{missing if self.missing_images else ''}")
        with stage("split and number") as numbered:
            self.place()
            rows_drawn = self.draw()
            self.check_training_classes(rows_drawn)
            num_users, num_items = self.count("user_vocab"), self.count("item_vocab")
            numbered.done(
                f"{num_users:,} users, {num_items:,} items, {rows_drawn:,} negatives drawn"
            )
        with stage("features"):
            self.write_side("item", num_items)
            self.write_side("user", num_users)
            self.build_log_features()
        with stage("histories") as histories:
            stored = self.write_history(num_users)
            histories.done(f"{stored:,} positives stored")
        with stage("write interactions") as written:
            splits = self.write_interactions()
            written.done(", ".join(f"{name} {s.num_rows:,}" for name, s in splits.items()))
        for name, split in splits.items():
            if split.lacking_class:
                say(
                    f"warning: split {name} has {split.num_rows:,} rows and no {split.lacking_class}: "
                    f"AUC has no value there"
                )
        pairs = self.write_pairs()
        if self.pairs:
            say(f"text pairs: {pairs}")
        items = self.recipe.items
        return Manifest(
            name=self.recipe.name,
            tables=tuple(self.tables),
            features=tuple(self.features),
            splits=splits,
            num_user_rows=num_users + 1 if self.recipe.interactions.user_id else 0,
            num_item_rows=num_items + 1 if self.recipe.interactions.item_id else 0,
            history=self.history_spec(),
            has_images=bool(items and items.image),
            has_texts=bool(items and items.text),
            has_tags=bool(items and items.tags),
            has_artists=bool(items and items.artist),
            has_pairs=pairs.num_kept > 0,
            pairs_in=pairs.num_in,
            pairs_kept=pairs.num_kept,
            pairs_dropped=pairs.dropped,
            pairs_cleaned=pairs.num_cleaned,
            image_root=(
                str(source_file(self.recipe, items.image_root).resolve())
                if items and items.image
                else None
            ),
            missing_images=self.missing_images,
            items_checksum=self.items_checksum(),
            rows_in=rows_in,
            rows_dropped=self.dropped,
            rows_drawn=rows_drawn,
            rows_unknown=self.count_unknown(),
        )

    # Sources and checks

    def open_sources(self) -> list[tuple[Source, int]]:
        """Open every file and note what is missing; return (log file, given split) in row order."""
        log = self.recipe.interactions
        names = (
            [(log.files[name], index) for index, name in enumerate(SPLITS)]
            if self.recipe.split.strategy == "given"
            else [(str(log.file), -1)]
        )
        self.logs: list[tuple[Source, int]] = []
        for index, (name, given) in enumerate(names):
            source = self.open(f"log_{index}", name, "interactions", log)
            if source:
                self.logs.append((source, given))
        items, users = self.recipe.items, self.recipe.users
        self.items = self.open("items_source", items.file, "items", items) if items else None
        self.users = self.open("users_source", users.file, "users", users) if users else None
        self.pairs = [
            (pairs, source)
            for index, pairs in enumerate(self.recipe.pairs)
            if (source := self.open(f"pairs_{index}", pairs.file, f"pairs[{index}]", pairs))
        ]
        self.check_columns()
        self.problems.raise_if_any()
        return self.logs

    def open(self, view: str, name: str, key: str, section: Section) -> Source | None:
        """Open one file of a section of the recipe, or note why it cannot be."""
        try:
            return Source(
                self.connection,
                view,
                source_file(self.recipe, name),
                key=key,
                written=TextFormat(
                    header=section.header,
                    delimiter=section.delimiter,
                    quote=section.quote,
                    encoding=section.encoding,
                ),
                copies=self.folder / "work" / "copies",
            )
        except UserError as error:
            self.problems.found.append(str(error))
            return None

    def look_at(
        self, source: Source, wanted: dict[str, str | None], single: dict[str, str | None]
    ) -> None:
        """Note columns that a file lacks or that hold what cannot be read as text.

        Args:
            wanted: config key -> column.
            single: those of them that must hold one value a row; the others may hold lists.
        """
        self.problems.found += source.missing_columns(wanted)
        self.problems.found += source.nested_columns(single)
        others = {key: column for key, column in wanted.items() if key not in single}
        self.problems.found += source.nested_columns(others, may_be_lists=True)
        self.problems.found += source.undecodable_columns(self.connection, wanted)

    def check_columns(self) -> None:
        """Note every column the recipe names and a file lacks."""
        log, items, users = self.recipe.interactions, self.recipe.items, self.recipe.users
        rule = parse_label(log.label) if log.label else None
        label_key = "interactions.label"
        if rule and rule.operator is None and re.search(r"[^\w.-]", rule.column):
            label_key += f": a 0/1 column, or a rule such as {RULES}"
        for source, _ in self.logs:
            wanted = {
                "interactions.user_id": log.user_id,
                "interactions.item_id": log.item_id,
                "interactions.timestamp": log.timestamp,
                label_key: rule.column if rule else None,
            }
            plain, lists = _feature_columns("interactions.features", log.features)
            single = wanted | plain
            self.look_at(source, single | lists, single=single)
        if problem := format_problem(self.connection, log.timestamp_format):
            self.problems.found.append(problem)
        if self.items and items:
            single = {
                "items.item_id": items.item_id,
                "items.title": items.title,
                "items.artist": items.artist,
                "items.content": items.content,
                **{f"items.image {{{c}}}": c for c in _pattern_columns(items.image)},
            }
            wanted = {f"items.text[{i}]": column for i, column in enumerate(items.text)}
            for key in ("features", "tags"):
                plain, lists = _feature_columns(f"items.{key}", getattr(items, key))
                single |= plain
                wanted |= lists
            self.look_at(self.items, single | wanted, single=single)
        if self.users and users:
            plain, lists = _feature_columns("users.features", users.features)
            single = {"users.user_id": users.user_id, **plain}
            self.look_at(self.users, single | lists, single=single)
        for index, (pairs, source) in enumerate(self.pairs):
            wanted = pair_columns(pairs, f"pairs[{index}]")
            texts = (f"pairs[{index}].anchor", f"pairs[{index}].positive")
            single = {key: column for key, column in wanted.items() if key not in texts}
            self.look_at(source, wanted, single=single)

    def check(self) -> None:
        """Scan every file once and report everything wrong with it."""
        log, items, users = self.recipe.interactions, self.recipe.items, self.recipe.users
        for source, _ in self.logs:
            if log.timestamp and not log.timestamp_format:
                dates = dates_among_numbers(self.connection, source, log.timestamp)
                self.problems.found += [dates] if dates else []
            num_rows = self.problems.note(self.connection, source, self.log_conditions(source))
            if num_rows == 0 and not self.problems.found:
                self.problems.found.append(f"{source.path}: no rows; expected interactions")
        if self.items and items:
            conditions = [(items.item_id, is_null(items.item_id), "null id")]
            conditions.append(merged_ids(self.items, items.item_id))
            conditions += _id_conditions(self.items, items.features | items.tags)
            if items.image:
                conditions.append((
                    _pattern_columns(items.image)[0],
                    leaves_root(_image_sql(items.image)),
                    f"picture path leaves items.image_root={items.image_root!r}",
                ))
            conditions += _number_conditions(items.features)
            self.problems.note(self.connection, self.items, conditions)
            self.problems.note_duplicates(self.connection, self.items, items.item_id)
        if self.users and users:
            conditions = [(users.user_id, is_null(users.user_id), "null id")]
            conditions.append(merged_ids(self.users, users.user_id))
            conditions += _id_conditions(self.users, users.features)
            conditions += _number_conditions(users.features)
            self.problems.note(self.connection, self.users, conditions)
            self.problems.note_duplicates(self.connection, self.users, users.user_id)
        for pairs, source in self.pairs:
            if pairs.perspective not in PERSPECTIVES:
                known = ", ".join(literal(p) for p in PERSPECTIVES)
                condition = f"coalesce({quoted(pairs.perspective)}, '') NOT IN ({known})"
                wrong = f"expected one of {', '.join(PERSPECTIVES)}"
                self.problems.note(self.connection, source, [(pairs.perspective, condition, wrong)])
        if self.items and items and log.item_id and log.unknown_items == "error":
            was_readable = not self.problems.found
            for source, _ in self.logs:
                self.check_unknown_items(source)
            if was_readable and self.problems.found:
                self.check_ids("item")
                self.note_spellings()
        self.problems.raise_if_any()
        self.check_pictures()
        self.problems.raise_if_any()

    def check_pictures(self) -> None:
        """Count missing pictures and note those that links lead out of the image root."""
        items = self.recipe.items
        if self.items is None or items is None or items.image is None:
            return
        root = source_file(self.recipe, items.image_root)
        if not root.is_dir():
            self.problems.found.append(f"{root}: no such folder; check items.image_root")
            return
        query = f"SELECT source_row, {_image_sql(items.image)} FROM items_source"
        cursor = self.connection.execute(query)
        rows = itertools.chain.from_iterable(iter(lambda: cursor.fetchmany(10_000), []))
        pictures = look_for_pictures(rows, root)
        self.missing_images = pictures.num_missing
        if pictures.first_outside:
            row, image = pictures.first_outside
            count = pictures.num_outside
            self.problems.found.append(
                f"{self.items.path}: column {_pattern_columns(items.image)[0]!r}: picture path "
                f"leaves items.image_root={items.image_root!r} through a symbolic link: {count:,} "
                f"row{'s' if count > 1 else ''}, first at data row {row:,} ({image!r})"
            )

    def log_conditions(self, source: Source) -> list[tuple[str, str, str]]:
        """What makes a row of the log unusable."""
        log = self.recipe.interactions
        ids = [column for column in (log.user_id, log.item_id) if column]
        conditions = [(column, is_null(column), "null id") for column in ids]
        conditions += [merged_ids(source, column) for column in ids]
        if log.timestamp:
            conditions += [
                (log.timestamp, condition, wrong)
                for condition, wrong in unusable_times(log.timestamp, log.timestamp_format)
            ]
        if log.label:
            rule = parse_label(log.label)
            conditions.append((rule.column, *unusable_label(rule)))
        conditions += _id_conditions(source, log.features)
        return conditions + _number_conditions(log.features)

    def check_unknown_items(self, source: Source) -> None:
        """Note interactions with items the catalogue does not have."""
        log, items = self.recipe.interactions, self.recipe.items
        assert items is not None and log.item_id is not None, "asked for only where both exist"
        condition = (
            f"NOT {is_null(log.item_id)} AND {quoted(log.item_id)} NOT IN "
            f"(SELECT {quoted(items.item_id)} FROM items_source WHERE {quoted(items.item_id)} "
            f"IS NOT NULL)"
        )
        wrong = (
            f"item is not in {items.file} (add it there, or set interactions.unknown_items to drop "
            f"or keep)"
        )
        self.problems.note(self.connection, source, [(log.item_id, condition, wrong)])

    def check_ids(self, side: str) -> None:
        """Note users' or items' ids that are written in two ways."""
        column, catalogue = self.id_columns(side)
        ids = [(source, column) for source, _ in self.logs] if column else []
        if column and catalogue:
            ids.append(catalogue)
        note_ids_written_two_ways(self.connection, self.problems, ids)

    def id_columns(self, side: str) -> tuple[str | None, tuple[Source, str] | None]:
        """Return the column of an id in the log; and the catalogue with its column, if there is one."""
        log, items, users = self.recipe.interactions, self.recipe.items, self.recipe.users
        if side == "user":
            return log.user_id, (self.users, users.user_id) if self.users and users else None
        return log.item_id, (self.items, items.item_id) if self.items and items else None

    # The log

    def load_log(self, logs: list[tuple[Source, int]]) -> int:
        """Create the table `log` of typed rows; return the input rows."""
        log = self.recipe.interactions
        seconds = "CAST(0 AS BIGINT)"
        if log.timestamp:
            seconds = seconds_sql(log.timestamp, log.timestamp_format)
        parts = []
        start = 0
        for source, given in logs:
            features = "".join(
                f", {value_sql(feature, name, source.lists)} AS {quoted(name)}"
                for name, feature in log.features.items()
            )
            label = label_sql(parse_label(log.label)) if log.label else "1"
            parts.append(
                f"SELECT source_row + {start} AS row_id, {_text(log.user_id)} AS user_id, "
                f"{_text(log.item_id)} AS item_id, "
                f"{seconds} AS ts, "
                f"CAST({label} AS UTINYINT) AS label, {given} AS given{features} FROM {source.view}"
            )
            (count,) = self.one(f"SELECT count(*) FROM {source.view}")
            start += count
        self.connection.execute("CREATE TABLE log AS " + " UNION ALL ".join(parts))
        for side in ("user", "item"):
            self.compare_ids(side)
        self.problems.raise_if_any()
        if self.items and self.recipe.items and log.unknown_items == "drop":
            known = f"SELECT {quoted(self.recipe.items.item_id)} FROM items_source"
            (count,) = self.one(f"SELECT count(*) FROM log WHERE item_id NOT IN ({known})")
            self.connection.execute(f"DELETE FROM log WHERE item_id NOT IN ({known})")
            if count:
                self.dropped["unknown item"] = count
        return start

    def compare_ids(self, side: str) -> None:
        """Say how many ids the log and the catalogue lack of each other, and which differ in spelling.

        Where they have no id in common, that is a problem.
        """
        column, catalogue = self.id_columns(side)
        if column is None:
            return
        ids, listed, file = f"{side}_ids", None, None
        if catalogue:
            source, key = catalogue
            listed, file = f"SELECT {quoted(key)} AS id FROM {source.view}", source.path.name
        gather_ids(self.connection, ids, f"SELECT {side}_id AS id FROM log", listed)
        # Looked for among the different ids; the files are read again only to say where.
        if self.count(f"{ids} WHERE {is_written_oddly('id')}"):
            self.check_ids(side)
        respelled = two_spellings(self.connection, ids, side, file)
        overlap = overlap_of(self.connection, ids)
        self.connection.execute(f"DROP TABLE {ids}")
        if respelled and not self.problems.found:
            say(f"warning: {respelled}")
        if not catalogue:
            return
        only_log = overlap.num_log - overlap.num_shared
        only_listed = overlap.num_listed - overlap.num_shared
        if not overlap.num_shared:
            self.problems.found.append(
                f"{source.path}: column {key!r}: no {side} of the log is there: the log has "
                f"{overlap.num_log:,} ({_examples(overlap.only_log)}), {file} has "
                f"{overlap.num_listed:,} ({_examples(overlap.only_listed)}); check "
                f"interactions.{side}_id={column!r} and {side}s.{side}_id={key!r}, and that both "
                f"files write ids the same way" + (f": {respelled}" if respelled else "")
            )
        elif only_log:
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

    def note_spellings(self) -> None:
        """Note items' ids that the log and the catalogue write in two ways, read from the files."""
        column, catalogue = self.id_columns("item")
        assert column and catalogue, "asked for only where both exist"
        source, key = catalogue
        given = " UNION ALL ".join(
            f"SELECT {quoted(column)} AS id FROM {s.view}" for s, _ in self.logs
        )
        listed = f"SELECT {quoted(key)} AS id FROM {source.view}"
        gather_ids(self.connection, "item_ids", given, listed)
        if respelled := two_spellings(self.connection, "item_ids", "item", source.path.name):
            self.problems.found.append(f"{source.path}: column {key!r}: {respelled}")
        self.connection.execute("DROP TABLE item_ids")

    def place(self) -> None:
        """Split the log, number users and items, and create the table `placed`."""
        log, items, users = self.recipe.interactions, self.recipe.items, self.recipe.users
        split = split_sql(self.connection, self.recipe.split)
        self.connection.execute(f"CREATE TABLE splits AS {split}")
        train = "FROM log JOIN splits USING (row_id) WHERE split = 0"
        # Vocabularies see training rows and the catalogues, never an id known from valid or test
        # alone: such an id is unknown at serving too.
        for side, column, catalogue, minimum in (
            ("user", log.user_id, users and users.user_id, log.user_min_count),
            ("item", log.item_id, items and items.item_id, log.item_min_count),
        ):
            if column is None:
                self.connection.execute(
                    f"CREATE TABLE {side}_vocab (id VARCHAR, row INTEGER, count BIGINT)"
                )
                continue
            trained = f"SELECT {side}_id AS id, count(*) AS n {train} GROUP BY id"
            if catalogue:
                # A user whom the users file lacks is still known by training rows; an item's
                # absence has its own rule (unknown_items).
                join = "FULL JOIN" if side == "user" else "LEFT JOIN"
                self.connection.execute(
                    f"CREATE TABLE {side}_vocab AS SELECT id, CAST(row_number() OVER "
                    f"(ORDER BY n DESC, id) AS INTEGER) AS row, n AS count FROM "
                    f"(SELECT id, coalesce(n, 0) AS n FROM (SELECT {quoted(catalogue)} AS id, true "
                    f"AS listed FROM {side}s_source) {join} ({trained}) USING (id) "
                    f"WHERE listed OR n >= {minimum})"
                )
            else:
                ids = f"SELECT {side}_id AS id {train}"
                build_vocabulary(self.connection, f"{side}_vocab", ids, minimum)
        features = "".join(f", log.{quoted(name)}" for name in log.features)
        ids = "log.user_id, log.item_id" if log.negatives else "log.user_id"
        ts = "ts" if log.timestamp else stand_in_time_sql(self.recipe.split.seed)
        self.connection.execute(
            f"CREATE TABLE placed AS SELECT log.row_id, label, {ids}, coalesce(u.row, 0) AS "
            f"user_row, coalesce(i.row, 0) AS item_row, {ts} AS ts, split{features} "
            f"FROM log JOIN splits USING (row_id) "
            f"LEFT JOIN user_vocab u ON log.user_id = u.id "
            f"LEFT JOIN item_vocab i ON log.item_id = i.id"
        )
        self.connection.execute("DROP TABLE splits")
        self.connection.execute("DROP TABLE log")
        for index, name in enumerate(SPLITS):
            (count,) = self.one(f"SELECT count(*) FROM placed WHERE split = {index}")
            if not count:
                self.problems.found.append(
                    f"split {name!r} is empty with split.strategy={self.recipe.split.strategy}, "
                    f"fractions {self.recipe.split.fractions}; change split, or give more rows"
                )
        self.problems.raise_if_any()

    def draw(self) -> int:
        """Draw negatives where the log holds positives only."""
        recipe = self.recipe.interactions.negatives
        if recipe is None:
            return 0
        wanted = recipe.per_positive * self.count("placed")
        drawn = draw_negatives(self.connection, recipe, self.rows_in)
        if drawn < wanted:
            say(
                f"warning: {wanted - drawn:,} of {wanted:,} negatives could not be drawn: their users "
                f"know nearly every item (interactions.negatives.per_positive={recipe.per_positive})"
            )
        return drawn

    def check_training_classes(self, rows_drawn: int) -> None:
        """Refuse a training split of one class, of which nothing can be learned.

        Raises:
            UserError: it has no positives or no negatives; says which rule of the recipe to change.
        """
        log, split = self.recipe.interactions, self.recipe.split
        num_rows, num_positives = self.one(
            "SELECT count(*), count(*) FILTER (WHERE label = 1) FROM placed WHERE split = 0"
        )
        if 0 < num_positives < num_rows:
            return
        if log.negatives:
            rule = (
                f"of interactions.negatives {rows_drawn:,} could be drawn, none of them for train: its "
                f"users know every item; list more items in items.file, or leave users out of the log"
            )
        else:
            lacking = "change" if num_positives == 0 else "set interactions.negatives, or change"
            rule = f"{lacking} interactions.label={log.label!r} or split.strategy={split.strategy}"
        raise UserError(
            f"split train has {num_rows:,} rows and no "
            f"{'negatives' if num_positives else 'positives'}, so nothing can be learned: {rule}"
        )

    def count_unknown(self) -> dict[str, int]:
        """Return the rows whose user or item has the unknown row 0, where there are any."""
        log = self.recipe.interactions
        counts = {}
        for side, column in (("user", log.user_id), ("item", log.item_id)):
            if column and (count := self.count(f"placed WHERE {side}_row = 0")):
                counts[f"{side}_id"] = count
        return counts

    # Users and items

    def write_side(self, side: str, count: int) -> None:
        """Write users or items: table, features and training counts, unknown row 0 first."""
        log = self.recipe.interactions
        if (log.user_id if side == "user" else log.item_id) is None:
            return
        self.tables.append(TableSpec(name=f"{side}_id", num_rows=count + 1, kind="vocab"))
        self.features.append(
            FeatureSpec(
                name=f"{side}_id", table=f"{side}_id", source=side, side=side, is_list=False
            )
        )
        self.write_vocabulary(f"{side}_vocab", f"{side}_id")
        arrays = self.folder / f"{side}s"
        arrays.mkdir()
        counted = {"train_count": "<"} | ({"drawn_count": ">="} if side == "item" else {})
        for name, which in counted.items():
            query = (
                f"SELECT {side}_row AS key, count(*) AS value FROM placed WHERE split = 0 "
                f"AND row_id {which} {self.rows_in} GROUP BY key ORDER BY key"
            )
            self.write_array(query, arrays / f"{name}.npy", count + 1, np.int64)
        catalogue = self.recipe.users if side == "user" else self.recipe.items
        key = f"{side}_id" if catalogue is None else getattr(catalogue, f"{side}_id")
        if catalogue is not None:
            for name, feature in catalogue.features.items():
                self.write_side_feature(side, key, name, feature, count)
        if side == "item":
            self.write_items(count)
        else:
            self.write_parquet(
                "SELECT 0 AS user_row, NULL AS user_id UNION ALL "
                "(SELECT row, id FROM user_vocab ORDER BY row)",
                self.folder / "users.parquet",
            )

    def write_side_feature(
        self, side: str, key: str, name: str, feature: FeatureRecipe, count: int
    ) -> None:
        """Write a user or item feature as arrays by row."""
        source = self.users if side == "user" else self.items
        assert source is not None, "a feature is read from a file"
        relation = _values_sql(side, key, value_sql(feature, name, source.lists))
        table = FeatureTable(self.connection, name, feature, relation, relation)
        self.add_feature(table, source=side, side=side)
        path = self.folder / f"{side}s"
        values = path / f"{name}.values.npy"
        if table.is_list:
            self.write_lists(table.rows_sql(), values, path / f"{name}.offsets.npy", count + 1)
        else:
            self.write_array(table.rows_sql(), values, count + 1, np.int32)

    def write_items(self, count: int) -> None:
        """Write items.parquet: what embed and reports need to know of an item."""
        items = self.recipe.items
        columns = {name: "NULL" for name in ("image", "text", "title", "artist", "content")}
        join, tags = "", ""
        if items is not None:
            if items.image:
                columns["image"] = _image_sql(items.image)
            if items.text:
                parts = ", ".join(self.text_sql(column) for column in items.text)
                columns["text"] = f"nullif(concat_ws('. ', {parts}), '')"
            for name in ("title", "artist", "content"):
                if column := getattr(items, name):
                    columns[name] = f"nullif(trim({quoted(column)}), '')"
            # A query of its own for the file's columns: they may be called like ours.
            named = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
            join = f"LEFT JOIN (SELECT {quoted(items.item_id)} AS id, {named} FROM items_source) s "
            join += "ON s.id = v.id"
            columns = {name: f"s.{name}" for name in columns}
            if items.tags:
                tags = self.grouped(self.tags_sql(), "tags")
        join += f" LEFT JOIN {tags} t ON t.key = v.row" if tags else ""
        shown_tags = "t.value" if tags else "CAST(NULL AS VARCHAR[])"
        texts = ", ".join(f"CAST({sql} AS VARCHAR) AS {name}" for name, sql in columns.items())
        nothing = ", ".join("NULL" for _ in range(len(columns) + 2))
        self.write_parquet(
            f"SELECT 0 AS item_row, {nothing} UNION ALL (SELECT v.row AS item_row, "
            f"v.id AS item_id, {texts}, {shown_tags} AS tags FROM item_vocab v {join} ORDER BY v.row)",
            self.folder / "items.parquet",
            names=["item_row", "item_id", *columns, "tags"],
            count=count + 1,
        )

    def text_sql(self, column: str) -> str:
        """SQL of one column of items.text: the elements of a list joined by ", ", blank as NULL."""
        assert self.items is not None, "asked for only where there is an items file"
        text = f"trim({quoted(column)})"
        if column in self.items.lists:
            elements = f"list_transform({quoted(column)}, lambda x: nullif(trim(x), ''))"
            text = f"array_to_string({elements}, ', ')"
        return f"nullif({text}, '')"

    def tags_sql(self) -> str:
        """SQL of (key, value) by key: the distinct tags of every item, over all tag columns."""
        items = self.recipe.items
        assert items is not None and self.items is not None, "asked for only where there are tags"
        parts = []
        for name, feature in items.tags.items():
            values = value_sql(feature, name, self.items.lists)
            relation = _values_sql("item", items.item_id, values)
            table = FeatureTable(self.connection, f"tags_{name}", feature, relation, relation)
            listed = (
                table.exploded() if table.is_list else f"SELECT key, value AS id FROM ({relation})"
            )
            parts.append(
                f"SELECT e.key, e.id FROM ({listed}) e JOIN {table.vocabulary} v ON e.id = v.id"
            )
        return f"SELECT DISTINCT key, id AS value FROM ({' UNION ALL '.join(parts)}) ORDER BY key, value"

    def items_checksum(self) -> str:
        """Return sha256 over the item ids in row order."""
        digest = hashlib.sha256()
        for batch in arrow_batches(self.connection, "SELECT id FROM item_vocab ORDER BY row"):
            for item_id in batch.column("id").to_pylist():
                digest.update(item_id.encode() + b"\0")
        return digest.hexdigest()

    # Features of the log, histories, rows

    def build_log_features(self) -> None:
        """Build the tables of interaction features from the training rows."""
        for name, feature in self.recipe.interactions.features.items():
            rows = f"SELECT row_id AS key, {quoted(name)} AS value FROM placed"
            train = f"{rows} WHERE split = 0 AND row_id < {self.rows_in}"  # no drawn negatives
            table = FeatureTable(self.connection, name, feature, rows, train)
            self.log_features[name] = table
            self.add_feature(table, source="interaction", side=feature.side or "context")

    def add_feature(self, table: FeatureTable, *, source: str, side: str) -> None:
        """Enter a feature and its table in the manifest."""
        spec = table.spec()
        self.tables.append(spec)
        self.features.append(
            FeatureSpec(
                name=table.name, table=table.name, source=source, side=side, is_list=table.is_list
            )
        )
        if spec.kind == "vocab":
            self.write_vocabulary(table.vocabulary, table.name)

    def history_spec(self) -> HistorySpec | None:
        """Return the manifest's history entry, None without users, items or length."""
        log, history = self.recipe.interactions, self.recipe.history
        if not (log.user_id and log.item_id and history.max_length):
            return None
        return HistorySpec(
            max_length=history.max_length,
            recent_length=history.recent_length,
            scope=history.scope,
            is_by_split=are_stored_by_split(history.scope, self.recipe.split.strategy),
        )

    def write_history(self, num_users: int) -> int:
        """Write the stored sequences and create the table `ends`; return the stored positives."""
        history = self.history_spec()
        if history is None:
            return 0
        names = ["history"] + ["history_recent"] * bool(history.recent_length)
        self.features += [
            FeatureSpec(name=name, table="item_id", source="history", side="user", is_list=True)
            for name in names
        ]
        self.connection.execute("CREATE TABLE ends (row_id BIGINT, history_end INTEGER)")
        num_stored = 0
        for split in SPLITS if history.is_by_split else SPLITS[-1:]:
            build_sequence(self.connection, history.scope, self.recipe.split.strategy, split)
            folder = self.folder / history.folder(split)
            folder.mkdir(parents=True)
            values, offsets = folder / "values.npy", folder / "offsets.npy"
            num_stored = max(num_stored, self.write_lists(STORED, values, offsets, num_users + 1))
        self.connection.execute("DROP TABLE sequence")
        return num_stored

    def write_interactions(self) -> dict[str, SplitSpec]:
        """Write the splits as parquet parts in seeded random order."""
        log = self.recipe.interactions
        columns = ["p.row_id", "p.label"]
        columns += ["p.user_row"] * bool(log.user_id) + ["p.item_row"] * bool(log.item_id)
        columns += [UNKNOWN_USER_SQL] * bool(log.user_id)
        columns += ["p.ts AS timestamp"] * bool(log.timestamp)
        joins = ""
        if self.history_spec():
            self.extend_placed("p.*, coalesce(j.history_end, 0) AS history_end", "ends", "row_id")
            columns.append("p.history_end")
        for index, (name, table) in enumerate(self.log_features.items()):
            if table.is_list:
                join, row = "", f"p.{quoted(name)}"
                lists = self.grouped(table.rows_sql(), name)
                replaced = f"p.* REPLACE (coalesce(j.value, []::INTEGER[]) AS {quoted(name)})"
                self.extend_placed(replaced, lists, "key")
            else:
                # Joins the vocabulary, never the log with itself: memory would follow its length.
                join, row = table.single(f"p.{quoted(name)}", f"f{index}")
            columns.append(f"{row} AS {quoted(name)}")
            joins += f" {join}"
        order = order_hash(self.recipe.split.seed, "p.row_id")
        splits = {}
        for index, name in enumerate(SPLITS):
            query = (
                f"SELECT {', '.join(columns)} FROM placed p{joins} WHERE p.split = {index} "
                f"ORDER BY {order}, p.row_id"
            )
            files, file_rows = self.write_parts(query, f"interactions/{name}")
            num_positives, low, high = self.one(
                f"SELECT count(*) FILTER (WHERE label = 1), min(ts), max(ts) FROM placed "
                f"WHERE split = {index}"
            )
            splits[name] = SplitSpec(
                num_rows=sum(file_rows),
                num_positives=num_positives,
                files=tuple(files),
                file_rows=tuple(file_rows),
                timestamp_min=low if log.timestamp else None,
                timestamp_max=high if log.timestamp else None,
            )
        return splits

    def extend_placed(self, columns: str, table: str, key: str) -> None:
        """Join a table as long as the log to `placed`, by row id.

        One such join at a time: several side by side would need memory for each at once.
        """
        self.connection.execute(
            f"CREATE TABLE extended AS SELECT {columns} FROM placed p LEFT JOIN {table} j "
            f"ON j.{key} = p.row_id"
        )
        self.connection.execute("DROP TABLE placed")
        self.connection.execute("ALTER TABLE extended RENAME TO placed")

    def write_parts(self, query: str, folder: str) -> tuple[list[str], list[int]]:
        """Stream a query into parquet parts of whole row groups; return names and rows."""
        (self.folder / folder).mkdir(parents=True)
        files: list[str] = []
        file_rows: list[int] = []
        writer: pq.ParquetWriter | None = None
        for group in row_groups(arrow_batches(self.connection, query)):
            if writer is None or file_rows[-1] >= PART_ROWS:
                if writer:
                    writer.close()
                files.append(f"{folder}/part-{len(files):05d}.parquet")
                file_rows.append(0)
                writer = pq.ParquetWriter(self.folder / files[-1], group.schema, compression="zstd")
            writer.write_table(group, row_group_size=ROW_GROUP_ROWS)
            file_rows[-1] += group.num_rows
        if writer:
            writer.close()
        return files, file_rows

    def write_pairs(self) -> PairCounts:
        """Write pairs.parquet in the order of the files; return what became of their pairs."""
        if not self.pairs:
            return PairCounts()
        items = self.recipe.items
        counts = build_pairs(
            self.connection,
            self.pairs,
            item_id=items.item_id if items else None,
            items_file=items.file if items else None,
        )
        self.write_parquet("SELECT * FROM pairs", self.folder / "pairs.parquet")
        return counts

    # Writing

    def write_array(self, query: str, path: Path, num_rows: int, dtype: type[np.generic]) -> None:
        """Write SQL of (key, value) as an array by key; 0 where a key is missing."""
        values = new_array(path, dtype, (num_rows,))
        for batch in arrow_batches(self.connection, query):
            values[batch.column("key").to_numpy()] = batch.column("value").to_numpy()

    def write_lists(self, query: str, values_file: Path, offsets_file: Path, num_rows: int) -> int:
        """Write SQL of (key, value) by key as values and as offsets [num_rows + 1]; return the values.

        A key's values are values[offsets[key] : offsets[key + 1]].
        """
        (total,) = self.one(f"SELECT count(*) FROM ({query})")
        values = new_array(values_file, np.int32, (total,))
        offsets = new_array(offsets_file, np.int64, (num_rows + 1,))
        start = 0
        for batch in arrow_batches(self.connection, query):
            values[start : start + batch.num_rows] = batch.column("value").to_numpy()
            start += batch.num_rows
            keys, counts = np.unique(batch.column("key").to_numpy(), return_counts=True)
            offsets[keys + 1] += counts
        np.cumsum(offsets, out=offsets)
        return total

    def grouped(self, query: str, name: str) -> str:
        """Return SQL of a table (key, value list) made of SQL of (key, value) by key.

        In a file: the database's list() keeps every list in memory.
        """
        path = self.folder / "work" / f"{name}.lists.parquet"
        reader = arrow_batches(self.connection, query)
        key, value = (reader.schema.field(column).type for column in ("key", "value"))
        schema = pa.schema([("key", key), ("value", pa.list_(value))])
        with pq.ParquetWriter(path, schema) as writer:
            for table in lists_by_key(reader):
                writer.write_table(table.cast(schema))
        return f"read_parquet({literal(str(path))})"

    def write_vocabulary(self, table: str, name: str) -> None:
        """Write vocab/<name>.parquet: row, id, count."""
        (self.folder / "vocab").mkdir(exist_ok=True)
        self.write_parquet(
            f"SELECT row, id, count FROM {table} ORDER BY row",
            self.folder / "vocab" / f"{name}.parquet",
        )

    def write_parquet(
        self, query: str, path: Path, names: list[str] | None = None, count: int | None = None
    ) -> int:
        """Stream a query into one parquet file; return its rows."""
        reader = arrow_batches(self.connection, query)
        schema = reader.schema
        if names:
            schema = pa.schema([pa.field(n, f.type) for n, f in zip(names, schema, strict=True)])
        num_rows = 0
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for group in row_groups(reader):
                writer.write_table(pa.table(group.columns, schema=schema))
                num_rows += group.num_rows
        assert count is None or num_rows == count, f"{path} has {num_rows} rows, not {count}"
        return num_rows

    def one(self, query: str) -> tuple:
        """Return the only row of an aggregate."""
        return self.connection.execute(query).fetchall()[0]

    def count(self, table: str) -> int:
        """Return the rows of a table."""
        return self.one(f"SELECT count(*) FROM {table}")[0]


def arrow_batches(connection: duckdb.DuckDBPyConnection, query: str) -> pa.RecordBatchReader:
    """Stream a query's result in record batches of about one row group."""
    relation = connection.sql(query)
    assert relation is not None, "a SELECT has a result"
    return relation.to_arrow_reader(ROW_GROUP_ROWS)


def row_groups(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Cut a stream into tables of ROW_GROUP_ROWS rows; the last is shorter, or empty.

    The database cuts its batches as its threads come along; files must not depend on that.
    """
    held = reader.schema.empty_table()
    for batch in reader:
        held = pa.concat_tables([held, pa.Table.from_batches([batch])])
        while held.num_rows > ROW_GROUP_ROWS:
            yield held.slice(0, ROW_GROUP_ROWS).combine_chunks()
            held = held.slice(ROW_GROUP_ROWS)
    yield held.combine_chunks()


def lists_by_key(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Turn batches of (key, value) in the order of keys into tables of (key, list of values)."""
    held: pa.Table | None = None
    for batch in batches:
        table = pa.Table.from_batches([batch])
        table = pa.concat_tables([held, table] if held else [table]).combine_chunks()
        if table.num_rows:
            keys = table.column("key").to_numpy()
            last = int(np.searchsorted(keys, keys[-1]))  # of this key more may follow
            yield _listed(table.slice(0, last))
            held = table.slice(last)
    if held:
        yield _listed(held.combine_chunks())


def _listed(table: pa.Table) -> pa.Table:
    keys, starts = np.unique(table.column("key").to_numpy(), return_index=True)
    offsets = pa.array(np.append(starts, table.num_rows), pa.int32())
    values = table.column("value").combine_chunks()
    return pa.table({"key": keys, "value": pa.ListArray.from_arrays(offsets, values)})


def _feature_columns(
    key: str, features: dict[str, FeatureRecipe]
) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """Return the columns by config key of features of one id a row, and of those of several."""
    plain: dict[str, str | None] = {}
    lists: dict[str, str | None] = {}
    for name, feature in features.items():
        of_kind = lists if feature.kind == "id_list" else plain
        of_kind[f"{key}.{name}"] = feature.column or name
    return plain, lists


def _id_conditions(
    source: Source, features: dict[str, FeatureRecipe]
) -> list[tuple[str, str, str]]:
    """A feature's id must be one that its column can hold."""
    return [
        merged_ids(source, feature.column or name)
        for name, feature in features.items()
        if feature.kind == "id" and not feature.extract
    ]


def _number_conditions(features: dict[str, FeatureRecipe]) -> list[tuple[str, str, str]]:
    """A numeric feature's text must be a number where there is one."""
    return [
        (
            feature.column or name,
            f"{value_sql(feature, name)} IS NOT NULL AND "
            f"try_cast({value_sql(feature, name)} AS DOUBLE) IS NULL",
            "not a number",
        )
        for name, feature in features.items()
        if feature.kind == "numeric"
    ]


def _values_sql(side: str, key: str, value: str) -> str:
    """SQL of (key, value): a value of the users or items by the row it belongs to."""
    # A query of its own for the file's columns: they may be called like ours.
    return (
        f"SELECT v.row AS key, s.value FROM (SELECT {quoted(key)} AS id, {value} AS value "
        f"FROM {side}s_source) s JOIN {side}_vocab v ON s.id = v.id"
    )


def _examples(ids: tuple[str, ...]) -> str:
    return ", ".join(repr(i) for i in ids) or "none"


def _text(column: str | None) -> str:
    return quoted(column) if column else "CAST(NULL AS VARCHAR)"


def _pattern_columns(image: str | None) -> list[str]:
    """Return the columns of a picture path: "{a}/{b}.jpg" -> a, b; "image" -> image."""
    if not image:
        return []
    return re.findall(r"\{([^{}]*)\}", image) if "{" in image else [image]


def _image_sql(image: str) -> str:
    """SQL of a picture path: a column, or "posters/{movieId}.jpg" with its columns filled in.

    Backslashes part folders, as where the file was written on Windows.
    """
    if "{" not in image:
        return f"nullif(replace({quoted(image)}, '\\', '/'), '')"
    pieces = image.replace("}", "{").split("{")
    path = " || ".join(
        quoted(piece) if index % 2 else literal(piece) for index, piece in enumerate(pieces)
    )
    return f"replace({path}, '\\', '/')"
