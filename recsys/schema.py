"""The data manifest: what `prepare` writes and every later job reads first.

One JSON file, `prepared/manifest.json`, says which tables, features and splits exist. With files.py
it is the only part of `recsys/` that `embedding/` imports. Shapes: N rows of a data set.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recsys.chain import RawFile, are_read, in_time_order, is_window, resolve_split
from recsys.errors import UserError
from recsys.feature_specs import DenseSpec, FeatureSpec, TableSpec
from recsys.files import PREPARE_AGAIN, put_back, reading, write_json
from recsys.record_types import misfits

MANIFEST_VERSION = 2
READABLE_VERSIONS = (1, MANIFEST_VERSION)
"""Version 1 lacks the rules that encode raw values; every other job reads it as before."""
UNKNOWN_ROW = 0
"""Row 0 of every table stands for an id that is not in the vocabulary."""
NOT_READ_BY_RANKERS = ("items.parquet", "pairs.parquet")
"""Files of prepared/ that only encoders and reports read."""
WAITING = "waiting"
"""Folder of prepared/ with the ids that are too rare for a row: only the next append reads it."""


def identity_of(checksums: Mapping[str, str]) -> str:
    """Return Manifest.identity of the checksums of the files below `prepared/`."""
    read = sorted(
        f"{name} {checksum}\n"
        for name, checksum in checksums.items()
        if name not in NOT_READ_BY_RANKERS and not name.startswith(f"{WAITING}/")
    )
    return hashlib.sha256("".join(read).encode()).hexdigest()[:16]


def weights_column(feature: str) -> str:
    """Return the column of the interactions that holds the weights of a weighted list's ids."""
    return f"{feature}:weights"  # no feature is called so


HISTORIES = {"history": 1, "history_negative": 0}
"""Stored sequences of users' items by name, with the label of the rows that they are of."""


def history_of(feature: str) -> str:
    """Return the stored sequence that a feature of source `history` reads."""
    return feature if feature in HISTORIES else "history"


def latest_folder(sequence: str) -> str:
    """Return the folder below `prepared/` of the last items of every user of data with windows."""
    return f"{sequence}/latest"


def end_column(sequence: str) -> str:
    """Return the column of the interactions: how many leading items of a sequence a row may see."""
    return f"{sequence}_end"


def is_known(rows: NDArray) -> NDArray[np.bool_]:
    """Return which rows of a table are of one id [N]; those of the unknown row 0 are not."""
    return rows != UNKNOWN_ROW


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """One split of the interactions."""

    num_rows: int
    num_positives: int
    files: tuple[str, ...]
    """Parquet shards relative to `prepared/`, in reading order."""
    file_rows: tuple[int, ...]
    """Rows of each shard."""
    timestamp_min: int | None = None
    timestamp_max: int | None = None

    @property
    def lacking_class(self) -> str | None:
        """The class without rows, `positives` or `negatives`; None if both classes have rows."""
        if self.num_positives == 0:
            return "positives"
        return "negatives" if self.num_positives == self.num_rows else None


@dataclass(frozen=True, kw_only=True)
class HistorySpec:
    """The users' earlier items, stored once per user in {values,offsets}.npy of a folder."""

    max_length: int
    """Most recent positives a row may see (feature `history`)."""
    recent_length: int
    """Most recent positives of the short-term interest (feature `history_recent`)."""
    scope: str
    """`train`: training positives only; `past`: those of the row's split and earlier ones too."""
    is_by_split: bool = False
    """Whether each split reads sequences of its own: `past` where splits do not follow in time."""
    negative_length: int = 0
    """Most recent items of rows of label 0 that a row may see (feature `history_negative`); 0: none is
    stored."""

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the stored sequences, those of HISTORIES or the first alone."""
        return tuple(HISTORIES)[: 2 if self.negative_length else 1]

    @property
    def lengths(self) -> dict[str, int]:
        """Most items of a row by feature; 0: there is no such feature."""
        return {
            "history": self.max_length,
            "history_recent": self.recent_length,
            "history_negative": self.negative_length,
        }

    def folder(self, split: str, sequence: str = "history") -> str:
        """Return the folder below `prepared/` of the sequences that rows of a split read.

        A window has its own: of its users alone, their last earlier items and those of the window.
        """
        return f"{sequence}/{split}" if self.is_by_split or is_window(split) else sequence


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """Prepared data that rows were appended to: its ids have the same rows in today's tables."""

    identity: str
    """Manifest.identity of that data."""
    table_rows: dict[str, int]
    """Rows of every table then, unknown row included; today's may have more."""
    splits: tuple[str, ...]
    """Splits that it had."""
    files: tuple[RawFile, ...] = ()
    """Raw files that it read and no ancestor of its own did."""
    rows_in: int = 0
    rows_drawn: int = 0
    """Rows of the log read, and negatives drawn, up to it."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a reader of `prepared/` needs to know."""

    name: str
    tables: tuple[TableSpec, ...]
    features: tuple[FeatureSpec, ...]
    splits: dict[str, SplitSpec]
    num_user_rows: int
    """Rows of users.parquet and of the history, unknown row included; 0 where users are absent."""
    num_item_rows: int
    """Rows of items.parquet, unknown row included; 0 where items are absent."""
    history: HistorySpec | None = None
    dense: tuple[DenseSpec, ...] = ()
    """Dense features; `features` are those of ids."""
    has_images: bool = False
    has_texts: bool = False
    has_tags: bool = False
    has_artists: bool = False
    has_pairs: bool = False
    has_weights: bool = False
    """Whether the rows of the splits have sample weights (column `sample_weight`)."""
    image_root: str | None = None
    """Absolute folder the image paths are relative to."""
    missing_images: int = 0
    """Items without a picture file when `prepare` ran (not an error: they are masked)."""
    items_checksum: str = ""
    """sha256 over the item ids in row order: features made for other items do not match it."""
    column_checksums: dict[str, str] = field(default_factory=dict)
    """sha256 over the columns `image` and `text` of items.parquet in row order: vectors made of other
    pictures or texts do not match it."""
    vectors: dict[str, str] = field(default_factory=dict)
    """Checksum of the item vectors that the recipe brings along, by modality."""
    rows_in: int = 0
    rows_dropped: dict[str, int] = field(default_factory=dict)
    """Interactions left out, by reason; rows_in = rows of splits - rows_drawn + rows dropped."""
    rows_drawn: int = 0
    """Negatives drawn (they are no input rows). Their row ids begin at rows_in: is_interaction."""
    rows_unknown: dict[str, int] = field(default_factory=dict)
    """Rows kept whose `user_id` or `item_id` has the unknown row 0."""
    pairs_in: int = 0
    """Text pairs as they stand in the files; pairs_in = pairs_kept + pairs dropped."""
    pairs_kept: int = 0
    """Rows of pairs.parquet."""
    pairs_dropped: dict[str, int] = field(default_factory=dict)
    """Text pairs left out, by reason: `blank`, `identical`, `repeated`."""
    pairs_cleaned: int = 0
    """Text pairs in which HTML markup was taken out or replaced."""
    checksums: dict[str, str] = field(default_factory=dict)
    """sha256 of every file below `prepared/`, by relative path."""
    recipe: dict[str, Any] = field(default_factory=dict)
    chain: tuple[Ancestor, ...] = ()
    """Data that this was grown from by appending, oldest first; empty: prepared at once."""
    files: tuple[RawFile, ...] = ()
    """Raw files read that no ancestor has read; empty: prepared by a version that kept no list."""
    raw_columns: dict[str, dict[str, str]] = field(default_factory=dict)
    """Types of the raw columns, by section of the recipe and name."""
    version: int = MANIFEST_VERSION

    def is_interaction(self, row_id_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows are interactions of the log [N]; the others are drawn negatives.

        The one place that says so: prepare, and then each append, numbers the rows of its files
        first and the negatives drawn for them after. If nothing was drawn, every row is an interaction.
        """
        rows = np.asarray(row_id_N)
        if not self.rows_drawn:
            return np.ones(rows.shape, dtype=bool)
        states = [*((a.rows_in, a.rows_drawn) for a in self.chain), (self.rows_in, self.rows_drawn)]
        return are_read(rows, states)

    def last_histories(self, sequence: str = "history") -> str:
        """Return the folder below `prepared/` of what is known last of every user, as for serving.

        With windows it holds as many items of every user as a row may see, and some more of the
        last second; before, the sequences of the split that saw most.
        """
        assert self.history is not None, "asked for only where there is a history"
        return latest_folder(sequence) if self.chain else self.history.folder("test", sequence)

    @property
    def identity(self) -> str:
        """Hash of every file that a ranker reads: equal, a run's tables mean the same ids and rows.

        Texts and pictures are not among them; feature tables say what they were made of.
        """
        return identity_of(self.checksums)

    def ancestor(self, identity: str) -> Ancestor | None:
        """Return the data of this identity that today's was grown from; None: it is no ancestor."""
        return next((known for known in self.chain if known.identity == identity), None)

    @property
    def splits_in_time(self) -> list[str]:
        """Names of the splits: train, valid, test, then the appended windows, oldest first."""
        return in_time_order(self.splits)

    def split_named(self, asked: str) -> str:
        """Return the name of the split that a job is asked for (`split=`); `next` is the newest window.

        Raises:
            UserError: there is none of that name, or `next` where nothing was appended.
        """
        return resolve_split(asked, self.splits_in_time)

    @property
    def all_features(self) -> list[FeatureSpec | DenseSpec]:
        """Features of ids, then dense ones."""
        return [*self.features, *self.dense]

    def has_modality(self, name: str) -> bool:
        """Return whether the data has what a modality is made of: vectors, texts, or pictures."""
        if name in self.vectors:
            return True
        return self.has_texts if name == "text" else self.has_images

    def table(self, name: str) -> TableSpec:
        """Return the table called `name`.

        Raises:
            UserError: no such table; the message lists the ones there are.
        """
        for table in self.tables:
            if table.name == name:
                return table
        names = ", ".join(t.name for t in self.tables)
        raise UserError(f"table {name!r} is not in the manifest of {self.name!r}; it has {names}")


def write_manifest(prepared: str | Path, manifest: Manifest) -> None:
    """Write `prepared/manifest.json`."""
    write_json(Path(prepared) / "manifest.json", dataclasses.asdict(manifest))


def read_manifest(workspace: str | Path) -> Manifest:
    """Read `<workspace>/prepared/manifest.json`.

    Raises:
        UserError: the file is missing (says to run prepare), is not JSON, or has another version.
    """
    path = Path(workspace) / "prepared" / "manifest.json"
    put_back(path.parent)
    if not path.is_file():
        raise UserError(
            f"{path}: no prepared data here; expected the manifest written by launch/prepare.py "
            f"(run it with the same data= and workspace=)"
        )
    with reading(path, PREPARE_AGAIN):
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] not in READABLE_VERSIONS:
            known = " or ".join(str(version) for version in READABLE_VERSIONS)
            raise UserError(f"manifest version {raw['version']!r}, expected {known}")
        manifest = manifest_of(raw)
        if problems := misfits(manifest):
            raise UserError("; ".join(problems)[:400])
        for spec in manifest.splits.values():
            for file in spec.files:
                check_inside(file)
        for table in manifest.tables:
            if table.vocabulary is not None:
                check_inside(table.vocabulary)
    return manifest


def manifest_of(raw: Mapping[str, Any]) -> Manifest:
    """Return the record of a manifest's JSON object."""
    known = {f.name for f in dataclasses.fields(Manifest)}
    raw = {k: v for k, v in raw.items() if k in known}
    splits = {
        name: SplitSpec(**{**s, "files": tuple(s["files"]), "file_rows": tuple(s["file_rows"])})
        for name, s in raw["splits"].items()
    }
    return Manifest(**{
        **raw,
        "tables": tuple(
            TableSpec(**{**table, "cuts": tuple(table.get("cuts", ()))}) for table in raw["tables"]
        ),
        "features": tuple(FeatureSpec(**f) for f in raw["features"]),
        "dense": tuple(DenseSpec(**f) for f in raw.get("dense", ())),
        "splits": splits,
        "history": HistorySpec(**raw["history"]) if raw.get("history") else None,
        "chain": tuple(
            Ancestor(**{
                **known,
                "splits": tuple(known["splits"]),
                "files": tuple(RawFile(**file) for file in known.get("files", ())),
            })
            for known in raw.get("chain", ())
        ),
        "files": tuple(RawFile(**file) for file in raw.get("files", ())),
    })


def local_path(given: object, key: str) -> Path:
    """Return a path of this machine that a config names: absolute, `~` expanded; the rule for every key.

    Args:
        key: config key, for messages.

    Raises:
        UserError: nothing is given, a URL, or the home of a user whom this machine does not know.
    """
    text = str(given)
    if not text.strip() or "\0" in text:
        raise UserError(f"{key}={text!r}: expected a path")
    if "://" in text:
        raise UserError(
            f"{key}={text}: expected a path of this machine, since tables are memory-mapped and files "
            f"renamed into place; mount the store, or copy with launch/sync.py"
        )
    try:
        return Path(text).expanduser().resolve()
    except RuntimeError as error:
        raise UserError(f"{key}={text}: {error}; write the path in full") from error


def leaves_folder(name: str) -> bool:
    """Return whether a path is not a relative one below its folder, parted by either kind of slash."""
    parts = re.split(r"[/\\]", name)
    is_absolute = not parts[0] and len(parts) > 1
    return is_absolute or re.match(r"[A-Za-z]:[/\\]", name) is not None or ".." in parts


def name_problems(key: str, name: str) -> list[str]:
    """Return a sentence where a name that becomes a folder's is no plain folder name.

    Args:
        key: config key, for messages.
    """
    if Path(name).parts == (name,) and not leaves_folder(name) and name[0] != ".":
        return []
    return [f"{key}={name!r}: expected a plain folder name"]


def check_inside(name: str) -> None:
    """Raise UserError where a relative path that a manifest names would leave its folder.

    Raises:
        UserError: it is absolute, has `..` in it, or names nothing.
    """
    if leaves_folder(name) or not Path(name).parts:
        raise UserError(f"{name!r} leaves the folder of the manifest")
