"""Recommendation lists of many users, in Parquet parts, by any number of ranks; restartable.

    lists/<version>/
      lists.json                what the lists are made of: bundle, users, settings; written first
      parts/part-00000.parquet  lists of `users_per_part` users: user, rank, item, score, weights, reason
      files.json                sha256 of every file; written last: without it lists are not finished

Readers of Parquet data sets are given parts/.

A part appears whole or not at all, and a start finds those that are there. Called by launch/recommend.py.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from recsys.bundle.bundle import Bundle
from recsys.errors import UserError
from recsys.files import new_file, read_json, reading, remove_leftovers, sha256_of, write_json
from recsys.listing import write_listing
from recsys.progress import progress_bar
from recsys.runtime.env import Env
from recsys.schema import local_path
from recsys.serving.requests import Recommendations, RecommendRequest

LISTS_AGAIN = "delete the folder and run launch/recommend.py again"
_ROWS_OF_GROUP = 100_000
"""Rows that are held before they are written: some ten MiB."""


@dataclass(frozen=True, kw_only=True)
class ListsConfig:
    """Whose lists are made, how long they are, and where they are written."""

    bundle: str
    """Folder of a bundle, or `W/bundles/current`, which is followed once, at the start."""
    users: str = "all"
    """`all`: every user of the bundle. Else a file of ids: one a line, or Parquet."""
    user_column: str = "user_id"
    """Column of the ids, where `users` is a Parquet file."""
    k: Annotated[int, Field(ge=1, le=500)] = 50
    """Items of a list."""
    candidates: Annotated[int, Field(ge=1, le=5000)] = 500
    """Items that are scored for a list; at least `k`."""
    diversity: Annotated[float, Field(ge=0, le=1)] | None = None
    """Weight of variety against score; null: as the server does for each user."""
    exclude_seen: bool = True
    """Leave out every item that a user liked in the log."""
    explain: bool = False
    """Write a reason for every item, as one sentence; it takes longer."""
    out: str | None = None
    """Folder of the lists; null: W/lists/<version>/ in the workspace of the bundle."""
    users_per_part: Annotated[int, Field(ge=1)] = 10_000
    """Users of a Parquet file: what a killed job repeats at most, on every rank."""
    users_per_batch: Annotated[int, Field(ge=1, le=4096)] = 64
    """Users that are scored together."""
    threads: int | None = None
    """Threads of every rank; null: OMP_NUM_THREADS, else the cores over the ranks of this host."""


class Recommends(Protocol):
    """A recommender, as far as lists need it."""

    def recommend_many(self, requests: Sequence[RecommendRequest]) -> Sequence[Recommendations]:
        """Answer several requests in one batch."""


class Users(Protocol):
    """Ids of users, by place."""

    def __len__(self) -> int: ...

    def ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of places start to stop; fewer where the bundle lacks some."""

    def fingerprint(self) -> str:
        """Return what differs where the ids do."""


@dataclass(frozen=True)
class BundleUsers:
    """Every user of a bundle, by row."""

    bundle: Bundle

    def __len__(self) -> int:
        return self.bundle.vocabularies["user_id"].num_rows - 1

    def ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of rows start + 1 to stop; a row that no id has is left out."""
        vocabulary = self.bundle.vocabularies["user_id"]
        return [text for row in range(start + 1, stop + 1) if (text := vocabulary.id_of(row))]

    def fingerprint(self) -> str:
        """Return "all": the bundle's version says the rest."""
        return "all"


@dataclass(frozen=True)
class FileUsers:
    """Users listed in a file."""

    column: pa.ChunkedArray
    sha256: str

    def __len__(self) -> int:
        return len(self.column)

    def ids(self, start: int, stop: int) -> list[str]:
        """Return the ids of lines start to stop."""
        return list(self.column.slice(start, stop - start).to_pylist())

    def fingerprint(self) -> str:
        """Return the sha256 of the file."""
        return self.sha256


def open_users(config: ListsConfig, bundle: Bundle) -> Users:
    """Return the users whose lists are asked for.

    Raises:
        UserError: the bundle knows no users, the file has none, or a Parquet file lacks the column.
    """
    if config.users == "all":
        if "user_id" not in bundle.vocabularies:
            raise UserError(
                f"users=all: {bundle.version} knows no users; name a file of ids, users=<file>"
            )
        return BundleUsers(bundle)
    path = local_path(config.users, "users")
    if not path.is_file():
        raise UserError(f"users={config.users}: no such file; expected `all` or a file of ids")
    column = _read_parquet(path, config) if path.suffix == ".parquet" else _read_lines(path)
    if not len(column):
        raise UserError(f"users={config.users}: no user in it")
    return FileUsers(column, sha256_of(path))


def _read_parquet(path: Path, config: ListsConfig) -> pa.ChunkedArray:
    with reading(path, "expected a Parquet file"):
        names = pq.read_schema(path).names
        if config.user_column not in names:
            raise UserError(
                f"no column {config.user_column!r}; it has {', '.join(names)}; set user_column="
            )
        column = pq.read_table(path, columns=[config.user_column]).column(0)
        return column.cast(pa.string()).drop_null()


def _read_lines(path: Path) -> pa.ChunkedArray:
    with reading(path, "expected a text file in UTF-8, one id a line"):
        with path.open(encoding="utf-8") as lines:
            return pa.chunked_array([
                pa.array([text for s in lines if (text := s.strip())], pa.string())
            ])


@dataclass(frozen=True)
class Work:
    """Lists in the making: the folder, and which parts of it are there."""

    folder: Path
    num_users: int
    users_per_part: int
    missing: list[int] = field(default_factory=list)
    """Parts that are still to be made, by number."""

    @property
    def parts(self) -> Path:
        """Folder of the Parquet files."""
        return self.folder / "parts"

    @property
    def num_parts(self) -> int:
        """Parts of the whole."""
        return -(-self.num_users // self.users_per_part)

    def path(self, part: int) -> Path:
        """Return the file of a part."""
        return self.parts / f"part-{part:05d}.parquet"

    def places(self, part: int) -> tuple[int, int]:
        """Return where the users of a part begin and end."""
        start = part * self.users_per_part
        return start, min(start + self.users_per_part, self.num_users)


def open_work(config: ListsConfig, bundle: Bundle, users: Users) -> Work:
    """Return what is to be made; called by rank 0. Parts of an earlier start with equal settings count.

    Raises:
        UserError: the folder holds lists of another bundle, of other users or settings; says which.
    """
    folder = _folder(config, bundle)
    asked = {
        "bundle": bundle.version,
        "users": users.fingerprint(),
        "num_users": len(users),
        **{name: getattr(config, name) for name in _DECIDING},
    }
    stamp = folder / "lists.json"
    if stamp.is_file():
        made = read_json(stamp, LISTS_AGAIN)
        differs = [name for name, value in asked.items() if made.get(name) != value]
        if differs:
            name = differs[0]
            raise UserError(
                f"{folder} holds lists made with {name}={made.get(name)}, now it is {asked[name]}; name "
                f"another folder (out=), or delete this one"
            )
        remove_leftovers(folder / "parts")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files; name an empty folder (out=)")
    else:
        (folder / "parts").mkdir(parents=True)
        write_json(stamp, asked)
    work = Work(folder, len(users), config.users_per_part)
    missing = [part for part in range(work.num_parts) if not work.path(part).is_file()]
    return dataclasses.replace(work, missing=missing)


_DECIDING = ("k", "candidates", "diversity", "exclude_seen", "explain", "users_per_part")
"""Settings that decide what is in the parts."""


def _folder(config: ListsConfig, bundle: Bundle) -> Path:
    if config.out is not None:
        return local_path(config.out, "out")
    return bundle.folder.parents[1] / "lists" / bundle.version


def write_parts(
    work: Work,
    users: Users,
    recommender: Recommends,
    config: ListsConfig,
    env: Env,
) -> int:
    """Write this rank's share of the missing parts; return the lists that it made."""
    own = work.missing[env.rank :: env.world_size]
    total = sum(stop - start for start, stop in map(work.places, own))
    what = "lists" if env.world_size == 1 else f"lists of the first of {env.world_size} ranks"
    num_lists = 0
    bar = progress_bar(desc=what, unit="user", total=total, is_shown=env.rank == 0)
    for part in own:
        with new_file(work.path(part)) as beside, pq.ParquetWriter(beside, _SCHEMA) as writer:
            rows: list[dict[str, Any]] = []
            for batch in _batches(users, work.places(part), config.users_per_batch):
                for user, answer in zip(batch, recommend(recommender, batch, config), strict=True):
                    rows += _rows_of(user, answer)
                if len(rows) >= _ROWS_OF_GROUP:
                    writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                    rows = []
                num_lists += len(batch)
                bar.update(len(batch))
            writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
    bar.close()
    return num_lists


def recommend(
    recommender: Recommends, users: Sequence[str], config: ListsConfig
) -> Sequence[Recommendations]:
    """Return the lists of some users, in their order."""
    return recommender.recommend_many([
        RecommendRequest(
            user=user,
            k=config.k,
            candidates=max(config.candidates, config.k),
            diversity=config.diversity,
            exclude_seen=config.exclude_seen,
            explain=config.explain,
        )
        for user in users
    ])


def finish(work: Work) -> int:
    """Write files.json, which says that the lists are whole; return their rows. Called by rank 0.

    Raises:
        DamagedFileError: a part is missing or cannot be read.
    """
    num_rows = 0
    for part in range(work.num_parts):
        with reading(work.path(part), "run launch/recommend.py again"):
            num_rows += pq.read_metadata(work.path(part)).num_rows
    write_listing(work.folder)
    return num_rows


_SCHEMA = pa.schema([
    ("user", pa.string()),
    ("rank", pa.int32()),
    ("item", pa.string()),
    ("score", pa.float32()),
    ("weights", pa.map_(pa.string(), pa.float32())),
    ("reason", pa.string()),
])


def _rows_of(user: str, answer: Recommendations) -> Iterator[dict[str, Any]]:
    for item in answer.items:
        yield {
            "user": user,
            "rank": item.rank,
            "item": item.id,
            "score": item.score,
            "weights": list(item.weights.items()),
            "reason": None if item.reason is None else item.reason.text,
        }


def _batches(users: Users, places: tuple[int, int], size: int) -> Iterator[list[str]]:
    start, stop = places
    for place in range(start, stop, size):
        yield users.ids(place, min(place + size, stop))
