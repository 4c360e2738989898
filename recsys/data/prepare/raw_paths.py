"""Paths of raw files: of this machine, or of an object store that fsspec knows.

In: data.source. Out: paths that open, list and name files alike. The database reads files of a store
through the same client, registered with its connection, so nothing is copied first.
"""

import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.files import sha256_of

_BLOCK_BYTES = 4 << 20
"""Bytes that a client reads ahead."""


@dataclass(frozen=True)
class StorePath:
    """A file or folder of an object store, with those methods of pathlib.Path that readers use."""

    store: Any = field(compare=False, repr=False)
    """Client of the store: a file system of fsspec."""
    path: str
    """In the store."""
    root: str = field(compare=False)
    """The path of data.source in the store."""
    url: str = field(compare=False)
    """data.source."""

    def __truediv__(self, name: str) -> "StorePath":
        return self._at(f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.url + self.path.removeprefix(self.root)

    def _at(self, path: str) -> "StorePath":
        return StorePath(self.store, path, self.root, self.url)

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self.path)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self._pure.name

    @property
    def suffix(self) -> str:
        """Ending of the name, with its dot."""
        return self._pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """Endings of the name, each with its dot."""
        return self._pure.suffixes

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the path in the store."""
        return self._pure.parts

    @property
    def parent(self) -> "StorePath":
        """Folder of the path."""
        return self._at(str(self._pure.parent))

    def is_file(self) -> bool:
        """Return whether the store has this file."""
        return bool(self.store.isfile(self.path))

    def is_dir(self) -> bool:
        """Return whether the store has files below this folder."""
        return bool(self.store.isdir(self.path))

    def rglob(self, pattern: str) -> Iterator["StorePath"]:
        """Yield all files below the folder; `pattern` is "*"."""
        assert pattern == "*", "nothing else is asked for"
        return map(self._at, self.store.find(self.path))

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """Yield the files and folders that match a pattern below the folder."""
        return map(self._at, self.store.glob(f"{self.path}/{pattern}"))

    def open(self, mode: str) -> Any:
        """Open the file for reading bytes; `mode` is "rb"."""
        return self.store.open(self.path, mode)

    def copy_to(self, target: Path) -> None:
        """Write the file's content to a file of this machine."""
        self.store.get_file(self.path, str(target))


RawPath = Path | StorePath
"""Path of a raw file or folder."""


def below(path: RawPath, root: RawPath) -> PurePath:
    """Return the path of a file below a folder."""
    return PurePosixPath(path.path if isinstance(path, StorePath) else path.as_posix()).relative_to(
        root.path if isinstance(root, StorePath) else root.as_posix()
    )


def num_bytes_of(path: RawPath) -> int:
    """Return the size of a file."""
    return path.store.size(path.path) if isinstance(path, StorePath) else path.stat().st_size


def content_of(path: RawPath) -> str:
    """Return the hex sha256 of a file's content."""
    if isinstance(path, Path):
        return sha256_of(path)
    # A store's own checksum (ETag) depends on how a file was uploaded and encrypted, too.
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def opened_text(path: RawPath, compression: str) -> Iterator[Any]:
    """Open a text file for reading bytes, decompressed, within a block.

    Args:
        compression: `gzip`, `zstd` or `none`.
    """
    with path.open("rb") as stream:
        if compression == "gzip":
            with gzip.open(stream) as text:
                yield text
        elif compression == "zstd":
            raw = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
            with io.BufferedReader(raw) as text:
                yield text
        else:
            yield stream


@contextmanager
def parquet_file(path: RawPath) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file within a block; its footer is read."""
    with path.open("rb") as stream, pq.ParquetFile(stream) as file:
        yield file


def connected(path: RawPath) -> duckdb.DuckDBPyConnection:
    """Return a database in memory that can read a file."""
    connection = duckdb.connect()
    register(connection, path)
    return connection


def register(connection: duckdb.DuckDBPyConnection, path: RawPath) -> None:
    """Let a connection read the store of a path, if it is one's, in short blocks."""
    if isinstance(path, StorePath):
        # S3's client reads 50 MB ahead, of whatever column; a copy sent to Ray does again.
        if hasattr(path.store, "default_block_size"):
            path.store.default_block_size = _BLOCK_BYTES
        connection.register_filesystem(path.store)
