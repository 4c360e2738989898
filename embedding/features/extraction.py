"""Extraction: every item's vectors, in shards, over any number of ranks, restartable.

What enters: prepared/items.parquet and an encoder. What leaves: features/<name>/. Called by
launch/embed.py. A rank works on its shards in three overlapping stages: one thread reads a shard's
items and finds what is there already, some threads decode or tokenise the next batches, and the
network encodes the current one; a fourth writes. Between them are queues of a few entries, so memory
does not grow with the number of items.

A vector is made once: what it was made of is hashed, and a row of the same hash and the same encoder
takes the vector that is there, from its own shard or from any shard of an earlier table.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from embedding.features.catalogue import Catalogue, drawn
from embedding.features.reuse import EarlierTables, row_hashes, same_rows, stored_rows
from embedding.features.store import (
    STORE_VERSION,
    FeatureManifest,
    ShardEntry,
    entry_file,
    finished_shard,
    read_feature_manifest,
    spec_of,
    write_feature_manifest,
    write_shard,
)
from embedding.image.pictures import REASONS, load_pictures, write_unusable
from recsys.errors import UserError
from recsys.files import EMBED_AGAIN, read_array, read_json, remove_leftovers, sha256_of, write_json
from recsys.schema import Manifest

_CODES = {reason: 1 + place for place, reason in enumerate(REASONS)}
assert _CODES["none"] == 1, "every larger code is a picture that is named"
"""How ROW says why a row is masked."""

_LOOKED_AT = 2048
"""Most items whose pictures are looked for before anything is done."""
UNUSABLE_FILE = "unusable_pictures.csv"
"""Below features/: item_id, file and reason of every picture that is named and cannot be used."""


class Extractor(Protocol):
    """Turns the values of one item column into vectors of one or more feature tables."""

    column: str
    """Of items.parquet."""
    dims: dict[str, int]
    """Width of each feature table, by name."""
    row_hash: str
    """What `hashes` are of; in other words, the vectors are made anew."""
    num_threads: int
    """That call `load`."""

    def hashes(self, values: list[str | None]) -> np.ndarray:
        """Return dtype ROW [N]: what each vector is made of; 0 where there is nothing to encode."""
        ...

    def batches(self, values: list[str]) -> list[np.ndarray]:
        """Return the batches of a forward pass, each as positions in `values`."""
        ...

    def load(self, values: list[str]) -> tuple[Any, list[str | None]]:
        """Return (inputs of those values that can be used, a reason for each that cannot or None)."""
        ...

    def encode(self, inputs: Any) -> dict[str, np.ndarray]:
        """Return {name: float [N, dim]} of the inputs that `load` gave; N > 0."""
        ...


class ImageExtractor:
    """Semantic and style vectors of pictures, in one pass."""

    column = "image"
    row_hash = "XXH3-128 of the picture's name, size and time of change"

    def __init__(
        self, encoder: Any, *, image_root: Path, size: int, batch_size: int, num_threads: int
    ):
        """Args: encoder: an ImageEncoder; num_threads: that decode pictures."""
        self.encoder = encoder
        self.image_root = image_root.resolve()
        self.size = size
        self.batch_size = batch_size
        self.num_threads = num_threads
        blank = encoder.encode(np.zeros((1, size, size, 3), dtype=np.uint8))
        self.dims = {name: blank[name].shape[1] for name in ("semantic", "style")}

    def hashes(self, values: list[str | None]) -> np.ndarray:
        """Hash name, size and time of change.

        Not the content: reading every picture to find that nothing changed would cost as much as
        decoding does. A picture that is copied without its time is encoded again.
        """
        pieces = [values[start : start + 256] for start in range(0, len(values), 256)]
        with ThreadPoolExecutor(self.num_threads) as pool:
            found = pool.map(lambda names: [self._state(name) for name in names], pieces)
            return row_hashes(state for states in found for state in states)

    def _state(self, name: str | None) -> bytes | None:
        if name is None:
            return None
        try:
            stat = os.stat(os.path.join(self.image_root, name))
        except (OSError, ValueError):
            return f"{name}\0absent".encode()
        return f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()

    def batches(self, values: list[str]) -> list[np.ndarray]:
        """Cut into `batch_size`, in order."""
        return list(batched(np.arange(len(values)), self.batch_size))

    def load(self, values: list[str]) -> tuple[np.ndarray, list[str | None]]:
        """Decode; pictures that cannot be used are left out."""
        pixels, reasons = load_pictures(None, self.image_root, values, self.size)
        good = [index for index, reason in enumerate(reasons) if reason is None]
        return (pixels if len(good) == len(reasons) else pixels[good]), reasons

    def encode(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Encode uint8 [N, S, S, 3]."""
        return {name: vectors.numpy() for name, vectors in self.encoder.encode(inputs).items()}


class TextExtractor:
    """Text vectors of items."""

    column = "text"
    row_hash = "XXH3-128 of the text"
    num_threads = 1
    """A tokenizer is for one thread at a time."""

    def __init__(self, encoder: Any):
        """Args: encoder: a TextEncoder."""
        self.encoder = encoder
        self.dims = {"text": len(encoder.mean)}

    def hashes(self, values: list[str | None]) -> np.ndarray:
        """Hash texts; an empty one is none."""
        return row_hashes(text.encode() if text else None for text in values)

    def batches(self, values: list[str]) -> list[np.ndarray]:
        """Batch texts of like length in tokens."""
        return self.encoder.batches(values)

    def load(self, values: list[str]) -> tuple[Any, list[str | None]]:
        """Tokenise."""
        return self.encoder.tokens(values), [None] * len(values)

    def encode(self, inputs: Any) -> dict[str, np.ndarray]:
        """Encode tokens."""
        return {"text": self.encoder.scaled(self.encoder.vectors(inputs))}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What an extraction left, and how it came by it."""

    tables: dict[str, FeatureManifest]
    """On rank 0, elsewhere {}."""
    num_kept: int
    """Rows of shards that stay as they are, over all ranks."""
    num_reused: int
    """Rows that took a vector which was there, over all ranks."""
    num_encoded: int
    """Rows that passed through the network, over all ranks."""
    num_lost: int = 0
    """Rows with a vector whose picture is gone or cannot be read any more, over all ranks: kept, or
    with `forget_missing` masked."""


def check_pictures(workspace: Path, manifest: Manifest) -> None:
    """Refuse a picture folder that is not there as it was: a share that is not mounted looks empty.

    A sample of the items is looked at, against what prepare and an earlier extraction found.

    Raises:
        UserError: the folder is missing or empty, or fewer than a tenth of the pictures that were
            there are left.
    """
    root = Path(str(manifest.image_root))
    remedy = (
        "is a share not mounted? Vectors that are there would be lost; mount it, or give "
        "forget_missing=true where the pictures are gone for good"
    )
    if not (root.is_dir() and any(root.iterdir())):
        state = "empty" if root.is_dir() else "missing"
        raise UserError(f"{root}: the picture folder is {state}; {remedy}")
    catalogue = Catalogue(workspace / "prepared")
    rows = sample_rows(catalogue.num_rows, _LOOKED_AT, seed=0)
    names = [name for name in catalogue.column("image", rows) if name is not None]
    if not names:
        return
    share_named = len(names) / len(rows)
    num_items = catalogue.num_rows - 1
    were_there = [1 - manifest.missing_images / num_items]
    folder = workspace / "features" / "semantic"
    if (folder / "manifest.json").is_file():
        table = read_feature_manifest(folder)
        were_there.append((table.count - table.num_masked) / max(table.count - 1, 1))
    expected = min(max(were_there) / share_named, 1)
    found = sum(os.path.isfile(os.path.join(root, name)) for name in names)
    if found < expected * len(names) / 10:
        raise UserError(
            f"{root}: of {len(names):,} pictures looked for, {found:,} are there, where earlier "
            f"about {expected * len(names):,.0f} were; {remedy}"
        )


def extract_features(
    extractor: Extractor,
    *,
    workspace: Path,
    manifest: Manifest,
    encoder_name: str,
    revision: str,
    scaling: str,
    shard_rows: int | None,
    forget_missing: bool = False,
    rank: int,
    world_size: int,
    gather: Callable[[Any], list[Any]],
    first_rank_work: Callable[[], AbstractContextManager[bool]],
) -> Extraction:
    """Write the extractor's tables below `<workspace>/features/`; all ranks call this.

    Shards go round robin over ranks, so that what is new spreads over them wherever it lies.

    Args:
        revision: fingerprint of the encoder; vectors of another one are made anew.
        forget_missing: mask rows whose picture is gone or cannot be read any more; False: they keep
            the vector they have.
        shard_rows: rows of a shard; None: those of the table that is there, or `fitting_shard_rows`.
        gather: returns the argument of every rank, by rank.
        first_rank_work: a block for rank 0 whose failure every rank shares; yields True there.

    Raises:
        UserError: items.parquet is missing or does not have the manifest's rows, or shard_rows is
            not positive.
    """
    catalogue = Catalogue(workspace / "prepared")
    if catalogue.num_rows != manifest.num_item_rows:
        raise UserError(
            f"{catalogue.path}: has {catalogue.num_rows:,} rows, the manifest says "
            f"{manifest.num_item_rows:,}; run launch/prepare.py again"
        )
    if shard_rows is not None and shard_rows < 1:
        raise UserError(f"shard_rows={shard_rows}: expected 1 or more, or null")
    features, names = workspace / "features", list(extractor.dims)
    earlier = EarlierTables(features / f".{'+'.join(names)}.earlier", names)
    stamp = {
        "version": STORE_VERSION,
        "revision": revision,
        "row_hash": extractor.row_hash,
        # Which row is which item: in another order, vectors are looked for by hash.
        "items": manifest.checksums["items.parquet"],
        "shard_rows": shard_rows or _shard_rows_of(features / names[0], catalogue.num_rows),
    }
    stamp = gather(stamp)[0]
    with first_rank_work() as is_first:
        if is_first:
            _open_tables(features, names, stamp, earlier)
    pipeline = _Pipeline(
        extractor, catalogue, features, earlier, int(stamp["shard_rows"]), forget_missing
    )
    mine = range(rank, pipeline.num_shards, world_size)
    bar = tqdm(
        total=sum(len(pipeline.rows_of(index)) for index in mine),
        desc="+".join(names) + (f" (rank 0 of {world_size})" if world_size > 1 else ""),
        unit="item",
        disable=None if rank == 0 else True,
    )
    with bar:
        counts = gather(pipeline.run(mine, bar.update))
    manifests: dict[str, FeatureManifest] = {}
    with first_rank_work() as is_first:
        if is_first:
            for name in names:
                manifests[name] = _manifest_of(
                    [finished_shard(features / name, i) for i in range(pipeline.num_shards)],
                    name=name,
                    encoder=encoder_name,
                    revision=revision,
                    count=catalogue.num_rows,
                    items_checksum=manifest.items_checksum,
                    made_of=manifest.column_checksums.get(extractor.column, ""),
                    scaling=scaling,
                    row_hash=extractor.row_hash,
                )
                write_feature_manifest(features / name, manifests[name])
            if extractor.column == "image":
                pictures = _unusable_pictures(catalogue, features / names[0])
                write_unusable(features / UNUSABLE_FILE, pictures)
            earlier.remove()
    return Extraction(
        tables=manifests,
        **{key: sum(c[key] for c in counts) for key in counts[0]},
    )


def _unusable_pictures(catalogue: Catalogue, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield item_id, file and reason of every picture of a finished table that is named and masked."""
    reasons = ["", *REASONS]
    for shard in read_feature_manifest(folder).shards:
        masked = read_array(folder / shard.rows_file, EMBED_AGAIN)["masked"]
        listed = np.flatnonzero(masked > _CODES["none"])
        if len(listed):
            # Only shards with such pictures are looked up in the catalogue.
            table = catalogue.read(shard.start_row, shard.end_row, ["item_id", "image"])
            for place, row in zip(listed, table.take(listed).to_pylist(), strict=True):
                yield row["item_id"], row["image"], reasons[masked[place]]


def fitting_shard_rows(num_rows: int) -> int:
    """Return the rows of a shard: 1,024, more from 4 million items on, 32,768 at most.

    A shard is what a killed rank loses, and two files of every table; a hundred million items make
    6,104 shards of 16,384.
    """
    return min(max(1024, 1 << max(0, (num_rows // 4096).bit_length() - 1)), 32_768)


def _shard_rows_of(folder: Path, num_rows: int) -> int:
    """Return the rows of a shard in the table that is there, else those that fit."""
    stamp = _stamp_of(folder)
    return int(stamp["shard_rows"]) if stamp else fitting_shard_rows(num_rows)


def _stamp_of(folder: Path) -> dict[str, Any] | None:
    """Return what the shards in a folder belong to; None where nothing is."""
    file = folder / ".stamp.json"
    return read_json(file, f"delete {folder} and {EMBED_AGAIN}") if file.is_file() else None


def _open_tables(
    features: Path, names: list[str], stamp: dict[str, Any], earlier: EarlierTables
) -> None:
    """Leave a folder for every table with the stamp, what fits of earlier ones set aside.

    Shards of the same items stay where they are. Those of other items are set aside and looked
    through; those of another encoder are deleted.
    """

    def usable(folder: Path) -> bool:
        there = _stamp_of(folder) or {}
        return all(there.get(key) == stamp[key] for key in ("version", "revision", "row_hash"))

    if not all(
        usable(g / name) for g in earlier.generations() for name in names if (g / name).exists()
    ):
        earlier.remove()
    for name in names:
        folder = features / name
        if folder.is_dir() and _stamp_of(folder) != stamp:
            if usable(folder):
                earlier.set_aside(folder)
            else:
                shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Complete again only when the last shard is there.
        (folder / "manifest.json").unlink(missing_ok=True)
        remove_leftovers(folder)
        write_json(folder / ".stamp.json", stamp)
    if earlier.generations():
        earlier.build_index()


def _manifest_of(entries: list[ShardEntry | None], **known: Any) -> FeatureManifest:
    masked: Counter[str] = Counter()
    shards, dim = [], 0
    for index, entry in enumerate(entries):
        if entry is None:
            raise UserError(
                f"features/{known['name']}: shard {index} was removed while it was made; run embed again"
            )
        masked.update(entry.masked)
        shards.append(spec_of(entry))
        dim = entry.dim
    return FeatureManifest(
        dim=dim,
        num_masked=sum(masked.values()),
        masked=dict(sorted(masked.items())),
        shards=tuple(shards),
        **known,
    )


@dataclass(kw_only=True)
class _Shard:
    """A shard in the making."""

    index: int
    start_row: int
    num_rows: int
    is_kept: bool = False
    """There already, whole and of the same contents; the fields below are empty."""
    values: list[str] = dataclasses.field(default_factory=list)
    """Of the rows to encode."""
    positions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Of the rows to encode, within the shard."""
    batches: list[np.ndarray] = dataclasses.field(default_factory=list)
    """Positions in `values`."""
    rows: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    """dtype ROW."""
    vectors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """{name: float16 [num_rows, dim]}."""
    rows_before: np.ndarray | None = None
    """dtype ROW of the shard that is there, of the same items; None where there is none."""
    vectors_before: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Its vectors."""


class _Pipeline:
    """One rank's way through its shards."""

    def __init__(
        self,
        extractor: Extractor,
        catalogue: Catalogue,
        features: Path,
        earlier: EarlierTables,
        shard_rows: int,
        forget_missing: bool,
    ):
        self.extractor = extractor
        self.forget_missing = forget_missing
        self.catalogue = catalogue
        self.features = features
        self.names = list(extractor.dims)
        self.earlier = earlier
        self.generations = earlier.generations()[::-1]
        self.has_index = earlier.open_index()
        self.shard_rows = shard_rows
        self.num_shards = -(-catalogue.num_rows // shard_rows)

    def rows_of(self, index: int) -> range:
        """Return the item rows of a shard."""
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.catalogue.num_rows))

    def run(self, indices: Iterable[int], advance: Callable[[int], Any]) -> dict[str, int]:
        """Make the shards; return num_kept, num_reused, num_encoded and num_lost.

        Args:
            advance: told how many rows are done, again and again.
        """
        num_kept = num_reused = num_encoded = num_lost = 0
        num_threads = self.extractor.num_threads
        with ExitStack() as stack:
            planner, loaders, writer = (
                stack.enter_context(_Threads(count)) for count in (1, num_threads, 1)
            )
            planned = lookahead(planner, self.plan, indices, depth=2)
            loaded = lookahead(loaders, self.load, self.pieces(planned), depth=num_threads + 1)
            written: Future[None] | None = None
            for shard, batch, inputs, reasons in loaded:
                if batch is not None:
                    codes = [0 if reason is None else _CODES[reason] for reason in reasons]
                    shard.rows["masked"][shard.positions[batch]] = codes
                    good = batch[np.equal(codes, 0)]
                    if len(good):
                        self.encode(shard, good, inputs)
                    num_encoded += len(good)
                    advance(len(batch))
                    continue
                advance(shard.num_rows - len(shard.values))
                if shard.is_kept:
                    num_kept += shard.num_rows
                    continue
                num_nothing = int((shard.rows["masked"] == _CODES["none"]).sum())
                num_reused += shard.num_rows - len(shard.values) - num_nothing
                num_lost += self.keep_lost(shard)
                # One shard waits to be written while the next is made.
                if written is not None:
                    written.result()
                written = writer.submit(self.write, shard)
            if written is not None:
                written.result()
        return {
            "num_kept": num_kept,
            "num_reused": num_reused,
            "num_encoded": num_encoded,
            "num_lost": num_lost,
        }

    def plan(self, index: int) -> _Shard:
        """Read a shard's items and take the vectors that are there already."""
        start, stop = self.rows_of(index).start, self.rows_of(index).stop
        column = self.catalogue.read(start, stop, [self.extractor.column]).column(0)
        values = column.to_pylist()
        rows = self.extractor.hashes(values)
        shard = _Shard(index=index, start_row=start, num_rows=stop - start)
        there = stored_rows(self.features, self.names, index)
        if there is not None and len(there) == len(rows) and same_rows(there, rows).all():
            shard.is_kept = True
            return shard
        for generation in self.generations:
            before = stored_rows(generation, self.names, index)
            if before is not None and len(before) == len(rows) and same_rows(before, rows).all():
                if self.link(generation, index, start):
                    shard.is_kept = True
                    return shard
        has_content = (rows["high"] != 0) | (rows["low"] != 0)
        rows["masked"] = _CODES["none"]
        vectors = {
            name: np.zeros((len(rows), dim), dtype=np.float16)
            for name, dim in self.extractor.dims.items()
        }
        if there is not None and len(there) == len(rows):
            # Of the same items: a picture was replaced, or one that could not be read is tried again.
            same = same_rows(there, rows) & (there["masked"] == 0)
            shard.rows_before = there
            for name in self.names:
                file = self.features / name / f"shard-{index:05d}.npy"
                shard.vectors_before[name] = read_array(
                    file, f"delete it and {EMBED_AGAIN}", mmap=True
                )
                vectors[name][same] = shard.vectors_before[name][same]
            rows["masked"][same] = 0
        if self.has_index:
            asked = np.flatnonzero((rows["masked"] != 0) & has_content)
            places = self.earlier.find(rows[asked])
            found = asked[places >= 0]
            if len(found):
                for name in self.names:
                    vectors[name][found] = self.earlier.read(name, places[places >= 0])
                rows["masked"][found] = 0
        shard.positions = np.flatnonzero((rows["masked"] != 0) & has_content)
        shard.values = [values[position] for position in shard.positions]
        shard.batches = self.extractor.batches(shard.values) if shard.values else []
        shard.rows, shard.vectors = rows, vectors
        return shard

    def keep_lost(self, shard: _Shard) -> int:
        """Let rows whose picture is gone or broken keep the vector they had; return their number.

        They keep what it was made of, too, so that the next extraction looks for the picture again.
        """
        before = shard.rows_before
        if before is None:
            return 0
        lost = np.flatnonzero((before["masked"] == 0) & (shard.rows["masked"] > _CODES["none"]))
        if len(lost) and not self.forget_missing:
            for name, vectors in shard.vectors_before.items():
                shard.vectors[name][lost] = vectors[lost]
            shard.rows[lost] = before[lost]
        return len(lost)

    def link(self, generation: Path, index: int, start_row: int) -> bool:
        """Take a shard of an earlier table over as it is; False if it lies at other rows."""
        entries = {name: finished_shard(generation / name, index) for name in self.names}
        if any(entry is None or entry.start_row != start_row for entry in entries.values()):
            return False
        for name, entry in entries.items():
            assert entry is not None, "checked above"
            source, target = generation / name, self.features / name
            entry_file(target, index).unlink(missing_ok=True)
            for file in (entry.file, entry.rows_file):
                (target / file).unlink(missing_ok=True)
                try:
                    os.link(source / file, target / file)
                except OSError:  # a file system without hard links
                    shutil.copy2(source / file, target / file)
            write_json(entry_file(target, index), dataclasses.asdict(entry))
        return True

    def pieces(self, shards: Iterable[_Shard]) -> Iterator[tuple[_Shard, np.ndarray | None]]:
        """Yield every batch of every shard, and (shard, None) after its last."""
        for shard in shards:
            for batch in shard.batches:
                yield shard, batch
            yield shard, None

    def load(self, piece: tuple[_Shard, np.ndarray | None]) -> tuple[_Shard, Any, Any, Any]:
        """Decode or tokenise a batch."""
        shard, batch = piece
        if batch is None:
            return shard, None, None, None
        inputs, reasons = self.extractor.load([shard.values[position] for position in batch])
        return shard, batch, inputs, reasons

    def encode(self, shard: _Shard, good: np.ndarray, inputs: Any) -> None:
        """Send a batch through the network; `good`: positions in `values` of its inputs."""
        positions = shard.positions[good]
        for name, vectors in self.extractor.encode(inputs).items():
            shard.vectors[name][positions] = vectors

    def write(self, shard: _Shard) -> None:
        """Write a shard of every table."""
        for name in self.names:
            write_shard(
                self.features / name,
                shard.index,
                shard.start_row,
                shard.vectors[name],
                shard.rows,
            )


class _Threads(ThreadPoolExecutor):
    """Threads that drop what they have not begun when the block ends by an error."""

    def __exit__(self, *error: Any) -> None:
        self.shutdown(cancel_futures=True)


def lookahead(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], *, depth: int
) -> Iterator[Any]:
    """Yield `work(item)` in order, worked on by `pool` for up to `depth` items ahead."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def fingerprint(*parts: Any) -> str:
    """Return a short hash over settings and files (paths are hashed by content)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
            for file in files:
                digest.update(f"{os.path.relpath(file, part)}:{sha256_of(file)};".encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def sample_rows(num_rows: int, count: int, seed: int) -> list[int]:
    """Return up to `count` item rows (never row 0), seeded, ascending."""
    return [row + 1 for row in drawn(num_rows - 1, count, seed).tolist()]


def batched(values: np.ndarray, size: int) -> Iterable[np.ndarray]:
    """Yield consecutive slices of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]
