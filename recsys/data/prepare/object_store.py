"""Object stores, by fsspec: download of a data set's raw files, and copies of folders in both directions.

In: a URL such as s3://bucket/folder, gs://..., file:///..., memory://... Out: local files. A workspace
is always a local folder: tables are memory-mapped and files renamed into place, which an object store
cannot do. Called by launch/prepare.py and launch/sync.py.
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from recsys.data.recipe import Recipe, named_files
from recsys.errors import UserError
from recsys.files import new_file
from recsys.locks import is_unfinished
from recsys.schema import check_inside, local_path

_LAST = ("manifest.json", "index.json", "best.json", "bundle.json", "delta.json")
"""Files that declare the other files of their folder complete; they are copied last."""


def is_url(place: str) -> bool:
    """Return whether a place is a URL and not a folder of this machine."""
    return "://" in place


def open_store(url: str, key: str) -> tuple[Any, str]:
    """Return the file system of a URL or local path, and the path in it.

    Args:
        key: config key of the URL, for messages.

    Raises:
        UserError: the URL holds credentials, its kind is unknown, or its package is not installed.
    """
    if is_url(url):
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None or parts.query:
            raise UserError(
                f"{key}={parts.scheme}://...: holds a user, a password or a signature; credentials "
                f"belong into the store's own files or variables (AWS_PROFILE, gcloud auth, ...), "
                f"since configurations are logged and stored"
            )
    try:
        return fsspec.core.url_to_fs(url if is_url(url) else str(local_path(url, key)))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{key}={url}: no file system for it ({error}); expected s3://, gs://, file:// or another "
            f"of fsspec's, with its package (s3fs, gcsfs, ...) installed"
        ) from error


@contextmanager
def fetched(recipe: Recipe, folder: Path) -> Iterator[Recipe]:
    """Yield the recipe with a local source; files of a URL are in `folder` until the block ends.

    Files of a file:// URL are read where they are.

    Raises:
        UserError: the recipe has pictures, which are not downloaded; a file is missing. Errors raised
            in the block name the URL, not the copy.
    """
    if not is_url(recipe.source):
        yield recipe
        return
    store, root = open_store(recipe.source, "data.source")
    if isinstance(store, LocalFileSystem):
        yield dataclasses.replace(recipe, source=root)
        return
    if recipe.items and recipe.items.image:
        raise UserError(
            f"data.source={recipe.source}: pictures (items.image) are read from a folder; copy it with "
            f"launch/sync.py source={recipe.source} target=FOLDER and give data.source=FOLDER"
        )
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # All at once: prepare reads every file several times.
        for path in (path for name in named_files(recipe) for path in _found(store, root, name)):
            below = path.removeprefix(root).lstrip("/")
            check_inside(below)
            target = folder / below
            target.parent.mkdir(parents=True, exist_ok=True)
            store.get_file(path, str(target))
        yield dataclasses.replace(recipe, source=str(folder))
    except UserError as error:
        raise UserError(str(error).replace(str(folder), recipe.source.rstrip("/"))) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _found(store: Any, root: str, name: str) -> list[str]:
    """Return the files of a store that a recipe names: a file, a folder's, or a pattern's.

    Empty where nothing is there: prepare says that it is missing.
    """
    place = f"{root}/{name}"
    if store.isfile(place):
        return [place]
    if store.isdir(place):
        return list(store.find(place))
    if not re.search(r"[*?\[]", name):
        return []
    matched = sorted(store.glob(place))
    return [path for match in matched for path in store.find(match)]


def sync(source: str, target: str) -> tuple[int, int]:
    """Copy the files of a folder that the other lacks, or has older or of another size.

    Nothing is deleted. Each file appears complete; files that declare others complete come last.

    Returns:
        (files copied, files that were there).

    Raises:
        UserError: there is no file at `source`; a name leads out of the folder.
    """
    source_store, source_root = open_store(source, "source")
    target_store, target_root = open_store(target, "target")
    if not (found := source_store.find(source_root, detail=True)):
        raise UserError(f"source={source}: no files there")
    names = {path.removeprefix(source_root).lstrip("/"): path for path in found}
    names = {name: path for name, path in names.items() if not is_unfinished(name)}
    num_copied = 0
    for name in sorted(names, key=lambda name: (name.rsplit("/", 1)[-1] in _LAST, name)):
        try:
            check_inside(name)
        except UserError as error:
            raise UserError(f"source={source}: {error}") from error
        there = f"{target_root.rstrip('/')}/{name}"
        if not _is_current(source_store, names[name], target_store, there):
            _copy(source_store, names[name], target_store, there)
            num_copied += 1
    return num_copied, len(names) - num_copied


def _is_current(source_store: Any, path: str, target_store: Any, there: str) -> bool:
    """Return whether the target has a file of the same size that is not older."""
    if not target_store.isfile(there) or source_store.size(path) != target_store.size(there):
        return False
    try:
        return target_store.modified(there) >= source_store.modified(path)
    except (NotImplementedError, TypeError, KeyError):  # a store that knows no times, or no zone
        return False


def _copy(source_store: Any, path: str, target_store: Any, there: str) -> None:
    """Copy one file; it appears complete: object stores do so anyway, a local file is renamed."""
    with ExitStack() as stack:
        beside = there
        if isinstance(target_store, LocalFileSystem):
            os.makedirs(os.path.dirname(there), exist_ok=True)
            beside = str(stack.enter_context(new_file(there, source_store.size(path))))
        with source_store.open(path, "rb") as reader, target_store.open(beside, "wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
