"""Object stores, by fsspec: raw files read where they are, and copies of folders in both directions.

In: a URL such as s3://bucket/folder, gs://..., file:///..., memory://... Out: paths, or copies. A
workspace is always a local folder: tables are memory-mapped and files renamed into place, which an object
store cannot do. Called by launch/prepare.py and launch/sync.py.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from recsys.data.prepare.raw_files import is_pattern
from recsys.data.prepare.raw_paths import RawPath, StorePath
from recsys.data.recipe import Recipe
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


def in_place(recipe: Recipe) -> Recipe:
    """Return a recipe whose source is a folder, or a URL whose files are read where they are.

    A file:// URL is the folder that it names.

    Raises:
        UserError: the recipe has pictures, which are read from a folder alone; the store does not answer.
    """
    if not is_url(recipe.source):
        return recipe
    store, root = open_store(recipe.source, "data.source")
    if isinstance(store, LocalFileSystem):
        return dataclasses.replace(recipe, source=root)
    if recipe.items and recipe.items.image:
        raise UserError(
            f"data.source={recipe.source}: pictures (items.image) are read from a folder; copy it with "
            f"launch/sync.py source={recipe.source} target=FOLDER and give data.source=FOLDER"
        )
    store.invalidate_cache()  # listings that the client keeps may be older than the files
    log = recipe.interactions
    name = next(iter(log.files.values()), None) or log.file
    # Not `exists`, which says False of a bucket whose store does not answer.
    with _asking(recipe.source, "data.source"), suppress(FileNotFoundError):
        store.info(root if name is None or is_pattern(name) else f"{root.rstrip('/')}/{name}")
    return recipe


@contextmanager
def _asking(url: str, key: str) -> Iterator[None]:
    """Turn an error of a store's client within the block, whose kinds are its own, into a sentence.

    Raises:
        UserError: the client failed: no address, no credentials, no right, no such bucket.
    """
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{key}={url}: the store refuses it or does not answer ({type(error).__name__}: {error}); "
            f"check the bucket, and address and credentials in the store's own files or variables"
        ) from error


def source_root(recipe: Recipe) -> RawPath:
    """Return the folder of a recipe's raw files, of this machine or of an object store."""
    if not is_url(recipe.source):
        return Path(recipe.source)
    store, root = open_store(recipe.source, "data.source")
    root = root.rstrip("/")
    return StorePath(store, root, root, recipe.source.rstrip("/"))


def sync(source: str, target: str) -> tuple[int, int]:
    """Copy the files of a folder that the other lacks, or has older or of another size.

    Nothing is deleted. Each file appears complete; files that declare others complete come last.

    Returns:
        (files copied, files that were there).

    Raises:
        UserError: there is no file at `source`, or its store does not answer; a name leads out of the
            folder.
    """
    source_store, source_root = open_store(source, "source")
    target_store, target_root = open_store(target, "target")
    with _asking(source, "source"):
        found = source_store.find(source_root, detail=True)
    if not found:
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
