"""Pictures of the items: their paths in SQL, and a check that the files exist.

A recipe names a column that holds a path, or a pattern such as "posters/{movieId}.jpg".
"""

import itertools
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from recsys.data.prepare.checks import Problems, rows_of
from recsys.data.prepare.engine import Engine
from recsys.data.prepare.sources import Source
from recsys.data.recipe import ItemsRecipe
from recsys.data.sql import literal, quoted


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


@dataclass
class Pictures:
    """Missing and forbidden picture files of the items."""

    num_missing: int = 0
    """Items without a picture path, or without a file there."""
    num_outside: int = 0
    """Items whose picture is outside of the image root, through a symbolic link."""
    first_outside: tuple[int, str] | None = None
    """Row and path of the first of them; None if there is none."""


def num_missing_of(items_file: Path, first_row: int, root: Path) -> int:
    """Return how many items of items.parquet, from a row on, have no picture file below `root`."""
    table = pq.read_table(
        items_file, columns=["item_row", "image"], filters=[("item_row", ">=", first_row)]
    )
    rows = zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True)
    return look_for_pictures(rows, root).num_missing


def look_for_pictures(rows: Iterable[tuple[int, str | None]], root: Path) -> Pictures:
    """Look once at every picture file; `rows`: row and path relative to `root`, without `..`."""
    root = root.resolve()
    pictures = Pictures()
    is_inside: dict[str, bool] = {}
    for row, image in rows:
        if image is None:
            pictures.num_missing += 1
            continue
        path = os.path.join(root, image)
        folder = os.path.dirname(path)
        if folder not in is_inside:
            is_inside[folder] = Path(os.path.realpath(folder)).is_relative_to(root)
        if not is_inside[folder] or (
            os.path.islink(path) and not Path(os.path.realpath(path)).is_relative_to(root)
        ):
            pictures.num_outside += 1
            pictures.first_outside = min(pictures.first_outside or (row, image), (row, image))
        elif not os.path.isfile(path):
            pictures.num_missing += 1
    return pictures
