"""Raw files of a recipe's section: one file, a folder of part files, or a pattern; their order and kind.

In: a folder and a name below it. Out: the files in row order, and the columns that their folders name
(Hive partitions: date=2026-11-26/part-0.parquet). Called by sources.py.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from recsys.data.prepare.raw_paths import RawPath, below
from recsys.errors import UserError

Compression = Literal["none", "gzip", "zstd"]
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
_KINDS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "csv"}
_KINDS |= {".jsonl": "json", ".ndjson": "json", ".json": "json"}
ATOMIC = (".inter", ".item", ".user")
"""Endings of RecBole's atomic files: tab-separated, with `name:type` in the header."""
_KINDS |= dict.fromkeys(ATOMIC, "csv")
ENDINGS = (
    "a .parquet, .csv, .tsv, .txt, .jsonl, .inter, .item or .user file (text also as .gz or .zst)"
)
_WILDCARDS = r"[*?\[]"


@dataclass(frozen=True, kw_only=True)
class RawFiles:
    """Files of one kind, whose rows follow each other."""

    place: RawPath
    """File, folder or pattern, for messages."""
    paths: tuple[RawPath, ...]
    """Files in row order: by path, folder by folder and letter by letter."""
    kind: str
    """`parquet`, `csv` or `json`."""
    compression: Compression
    partitions: tuple[str, ...] = ()
    """Columns that folders called column=value name."""
    foreign_partitions: tuple[str, ...] = ()
    """Columns that folders above the data set's would name, and that are none of it."""

    @property
    def are_partitioned(self) -> bool:
        """Whether the database is to read columns from the folders' names."""
        return bool(self.partitions)


def find_files(root: RawPath, name: str, key: str) -> RawFiles:
    """Return the files that a section of a recipe names.

    A name that is a file is taken literally, wildcards and `column=value` folders too. In folders and
    patterns hidden files and folders, called .x or _x, are passed over.

    Args:
        root: the folder `data.source`.
        name: file, folder, or pattern with `*`, `?`, `[...]` and `**`, below it.
        key: config key of the section, for messages.

    Raises:
        UserError: nothing is there, files of several kinds, or partitions that do not agree.
    """
    place = root / name
    paths = find_paths(root, name, key)
    if paths == [place]:
        kind, compression = _kind_of(place)
        return RawFiles(place=place, paths=(place,), kind=kind, compression=compression)
    kind, compression = _kinds_of(place, paths, key)
    columns = _partitions(place, paths, root)
    # The database reads columns from the whole path.
    foreign = tuple(dict.fromkeys(_columns_of(root.parts)))
    if {c.lower() for c in foreign} & {c.lower() for c in columns}:
        raise UserError(
            f"{paths[0]}: folders above and below data.source name the same column; rename one above"
        )
    return RawFiles(
        place=place,
        paths=tuple(paths),
        kind=kind,
        compression=compression,
        partitions=columns,
        foreign_partitions=foreign if columns else (),
    )


def find_paths(root: RawPath, name: str, key: str) -> list[RawPath]:
    """Return the files of any kind that a section of a recipe names, in row order.

    Args:
        root, name, key: as those of `find_files`.

    Raises:
        UserError: nothing is there.
    """
    place = root / name
    if place.is_file():
        return [place]
    paths = _below(place, root) if place.is_dir() else _matching(root, name)
    if not paths:
        raise UserError(_nothing(place, key))
    return paths


def is_pattern(name: str) -> bool:
    """Return whether a name has wildcards."""
    return re.search(_WILDCARDS, name) is not None


def _matching(root: RawPath, name: str) -> list[RawPath]:
    """Return the files that a pattern matches, and those below the folders that it matches."""
    if not is_pattern(name):
        return []
    found: set[RawPath] = set()
    for path in root.glob(name):
        found |= set(_below(path, root)) if path.is_dir() else {path}
    return _in_order(found, root)


def _below(folder: RawPath, root: RawPath) -> list[RawPath]:
    return _in_order((p for p in folder.rglob("*") if p.is_file()), root)


def _in_order(paths: Iterable[RawPath], root: RawPath) -> list[RawPath]:
    """Return paths by their parts below `root`, without hidden ones."""
    by_parts = {below(path, root).parts: path for path in paths}
    return [path for parts, path in sorted(by_parts.items()) if not any(map(_is_hidden, parts))]


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or (part.startswith("_") and "=" not in part)


def _nothing(place: RawPath, key: str) -> str:
    if place.is_dir():
        return f"{place}: a folder without files; {key} expects part files in it"
    if re.search(_WILDCARDS, str(place.name)):
        return f"{place}: no file matches this pattern; check data.source and the recipe ({key})"
    return f"{place}: no such file; check data.source and the recipe's file names ({key})"


def _kind_of(path: RawPath) -> tuple[str, Compression]:
    """Return what a file's name says of its content.

    Raises:
        UserError: nothing.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    compression: Compression = "none"
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        compression = _COMPRESSIONS[suffixes.pop()]
        kind = _KINDS.get(suffixes[-1] if suffixes else "", "csv")
    else:
        kind = _KINDS.get(suffixes[-1] if suffixes else "", "")
    if not kind or (kind == "parquet" and compression != "none"):
        raise UserError(f"{path}: expected {ENDINGS}")
    return kind, compression


def _kinds_of(place: RawPath, paths: list[RawPath], key: str) -> tuple[str, Compression]:
    """Return the one kind and compression of all files.

    Raises:
        UserError: there are several, or one that nobody reads.
    """
    kinds = {_kind_of(path) for path in paths if _is_readable(path)}
    if len(kinds) == 1 and all(map(_is_readable, paths)):
        return kinds.pop()
    counts = Counter(path.suffix.lower() or path.name for path in paths)
    held = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items()))
    raise UserError(
        f"{place}: files of several kinds ({held}); {key} expects files of one, each {ENDINGS}: name "
        f"them by a pattern, such as folder/*.parquet"
    )


def _is_readable(path: RawPath) -> bool:
    try:
        _kind_of(path)
    except UserError:
        return False
    return True


def _columns_of(parts: tuple[str, ...]) -> list[str]:
    """Return the columns of the folders called column=value among the parts of a path."""
    return [part.partition("=")[0] for part in parts if re.fullmatch(r"[^=]+=.*", part)]


def _partitions(place: RawPath, paths: list[RawPath], root: RawPath) -> tuple[str, ...]:
    """Return the columns that the folders of every file name.

    Raises:
        UserError: a file's folders name others than the first one's, or one of them twice.
    """
    found = {path: _columns_of(below(path, root).parts[:-1]) for path in paths}
    first = found[paths[0]]
    for path, columns in found.items():
        if columns != first:
            raise UserError(
                f"{path}: its folders name {_listed(columns)}, those of {paths[0]} "
                f"{_listed(first)}; expected the same column=value folders for every file of {place}"
            )
    if len({column.lower() for column in first}) < len(first):
        raise UserError(f"{paths[0]}: its folders name a column twice; rename one")
    return tuple(first)


def _listed(columns: list[str]) -> str:
    return ", ".join(columns) or "no column"
