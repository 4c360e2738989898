"""Pictures of the items: their paths in SQL, and a check that the files exist.

A recipe names a column that holds a path, or a pattern such as "posters/{movieId}.jpg".
"""

import itertools
import os
import re
import stat
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as ds

from recsys.data.prepare.checks import Problems, rows_of
from recsys.data.prepare.engine import Engine
from recsys.data.prepare.sources import Source
from recsys.data.recipe import ItemsRecipe
from recsys.data.sql import literal, quoted

THREADS = 8
"""Threads that look for picture files: a network file system answers after milliseconds, many at once."""
_BLOCK_ITEMS = 1_000


def pattern_columns(image: str | None) -> list[str]:
    """Return the columns of a picture path: "{a}/{b}.jpg" -> a, b; "image" -> image."""
    if not image:
        return []
    return re.findall(r"\{([^{}]*)\}", image) if "{" in image else [image]


def image_sql(image: str) -> str:
    """SQL of a picture path: a column, or "posters/{movieId}.jpg" with its columns filled in.

    Backslashes separate folders too, as in files written on Windows.
    """
    if "{" not in image:
        return f"nullif(replace({quoted(image)}, '\\', '/'), '')"
    pieces = image.replace("}", "{").split("{")
    path = " || ".join(
        quoted(piece) if index % 2 else literal(piece) for index, piece in enumerate(pieces)
    )
    return f"replace({path}, '\\', '/')"


def leaves_root(path: str) -> str:
    """SQL: the path, with slashes, is absolute or climbs out of its root (`leaves_folder`)."""
    return (
        f"({path} IS NOT NULL AND (regexp_matches({path}, '^(/|[A-Za-z]:/)') OR "
        f"list_contains(string_split({path}, '/'), '..')))"
    )


def check_pictures(
    engine: Engine, items: ItemsRecipe, source: Source, root: Path, problems: Problems
) -> int:
    """Note pictures that links lead out of the image root; return how many are missing.

    Args:
        root: the folder `items.image_root`.
    """
    assert items.image, "asked for only where items have pictures"
    if not root.is_dir():
        problems.found.append(f"{root}: no such folder; check items.image_root")
        return 0
    query = f"SELECT source_row, {image_sql(items.image)} FROM {source.view}"
    cursor = engine.connection.execute(query)
    rows = itertools.chain.from_iterable(iter(lambda: cursor.fetchmany(10_000), []))
    pictures = look_for_pictures(rows, root)
    if pictures.first_outside:
        row, image = pictures.first_outside
        count = pictures.num_outside
        place, row = source.located(row)
        problems.found.append(
            f"{place}: column {pattern_columns(items.image)[0]!r}: picture path leaves "
            f"items.image_root={items.image_root!r} through a symbolic link: "
            f"{rows_of(count, source)}, first at data row {row:,} ({image!r})"
        )
    return pictures.num_missing


@dataclass(frozen=True)
class Pictures:
    """Missing and forbidden picture files of the items."""

    num_missing: int = 0
    """Items without a picture path, or without a file there."""
    num_outside: int = 0
    """Items whose picture is outside of the image root, through a symbolic link."""
    first_outside: tuple[int, str] | None = None
    """Row and path of the first of them; None if there is none."""

    def __add__(self, other: "Pictures") -> "Pictures":
        firsts = [first for first in (self.first_outside, other.first_outside) if first]
        return Pictures(
            num_missing=self.num_missing + other.num_missing,
            num_outside=self.num_outside + other.num_outside,
            first_outside=min(firsts, default=None),
        )


def num_missing_of(items_file: Path, first_row: int, root: Path) -> int:
    """Return how many items of items.parquet, from a row on, have no picture file below `root`."""
    scanned = ds.dataset(items_file).to_batches(
        columns=["item_row", "image"], filter=ds.field("item_row") >= first_row
    )
    rows = (
        row
        for batch in scanned
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    )
    return look_for_pictures(rows, root).num_missing


def look_for_pictures(rows: Iterable[tuple[int, str | None]], root: Path) -> Pictures:
    """Look once at every picture file, by several threads.

    Args:
        rows: row and path relative to `root`, without `..`.
    """
    source, turn = iter(rows), threading.Lock()

    def blocks() -> Iterator[list[tuple[int, str | None]]]:
        while True:
            with turn:  # one thread at a time asks for rows
                block = list(itertools.islice(source, _BLOCK_ITEMS))
            if not block:
                return
            yield block

    look = _Look(root.resolve())
    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(look.at, blocks()) for _ in range(THREADS)]
        return sum((thread.result() for thread in running), Pictures())


class _Look:
    """A look at picture files below a folder."""

    def __init__(self, root: Path):
        """Args: root: without links."""
        self._root = root
        self._is_inside: dict[str, bool] = {}
        """Whether the links of a folder stay below the root, by its path; threads may both find out."""

    def at(self, blocks: Iterable[list[tuple[int, str | None]]]) -> Pictures:
        """Return what is missing or forbidden among rows and paths."""
        num_missing = num_outside = 0
        first_outside: tuple[int, str] | None = None
        for row, image in itertools.chain.from_iterable(blocks):
            if image is None:
                num_missing += 1
                continue
            is_outside, is_there = self._found(image)
            if is_outside:
                num_outside += 1
                first_outside = min(first_outside or (row, image), (row, image))
            elif not is_there:
                num_missing += 1
        return Pictures(num_missing, num_outside, first_outside)

    def _found(self, image: str) -> tuple[bool, bool]:
        """Return whether a path leads out of the root, and whether a file is there.

        A system call a picture, but for links: most of the time is waiting for a file system.
        """
        path = os.path.join(self._root, image)
        folder = os.path.dirname(path)
        if folder not in self._is_inside:
            self._is_inside[folder] = self._leads_inside(folder)
        if not self._is_inside[folder]:
            return True, False
        try:
            mode = os.lstat(path).st_mode
        except (OSError, ValueError):  # no such file, or a name that none can have
            return False, False
        if stat.S_ISLNK(mode):
            return not self._leads_inside(path), os.path.isfile(path)
        return False, stat.S_ISREG(mode)

    def _leads_inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)
