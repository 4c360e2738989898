"""Extraction pipeline of one rank: read, decode or tokenise, encode and write shards, all overlapping.

One thread reads a shard's items and finds the vectors that are there already, some threads decode or
tokenise the next batches, the main thread runs the network on the current one, and one thread writes.
Between them are queues of a few entries, so that memory does not grow with the number of items.
Called by embedding/features/extraction.py. Shapes: N rows of a shard, D widths.
"""

import dataclasses
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedding.features.catalogue import Catalogue
from embedding.features.codes import RowForm
from embedding.features.extractor import Extractor
from embedding.features.replacement import Basis, next_name
from embedding.features.reuse import EarlierTables, same_rows, stored_rows
from embedding.features.store import MASK_CODES, entry_file, finished_shard, write_shard
from recsys.files import EMBED_AGAIN, new_file, read_array, write_json


@dataclass(kw_only=True)
class Shard:
    """A shard in the making."""

    index: int
    start_row: int
    num_rows: int
    rows: np.ndarray
    """ROW [num_rows]."""
    is_kept: bool = False
    """There already, whole and made of the same; the fields below are empty."""
    values: list[str] = dataclasses.field(default_factory=list)
    """Values of the rows to encode."""
    positions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Positions of the rows to encode, within the shard."""
    batches: list[np.ndarray] = dataclasses.field(default_factory=list)
    """Positions in `values`."""
    vectors: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """By table: stored rows [num_rows, C]."""
    rows_before: np.ndarray | None = None
    """dtype ROW of the shard that is there, of the same items; None where there is none."""
    vectors_before: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Its stored rows, which may be fp16 where this shard's are codes."""


class Pipeline:
    """One rank's way through its shards."""

    def __init__(
        self,
        extractor: Extractor,
        catalogue: Catalogue,
        features: Path,
        earlier: EarlierTables,
        basis: Basis,
        forms: Mapping[str, RowForm],
        forget_missing: bool,
    ):
        """Args: forms: of the stored rows, by table."""
        self.extractor = extractor
        self.forget_missing = forget_missing
        self.catalogue = catalogue
        self.features = features
        self.names = list(extractor.dims)
        self.forms = forms
        self.next_names = [next_name(name) for name in self.names]
        self.has_same_rows = basis.has_same_rows
        self.earlier = earlier
        earlier.has_finished = basis.has_other_rows
        self.generations = earlier.generations()[::-1]
        self.has_index = earlier.open_index()
        self.shard_rows = int(basis.stamp["shard_rows"])
        self.num_shards = -(-catalogue.num_rows // self.shard_rows)

    def rows_of(self, index: int) -> range:
        """Return the item rows of a shard."""
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.catalogue.num_rows))

    def run(self, indices: Iterable[int], advance: Callable[[int], Any]) -> dict[str, int]:
        """Make the shards; return num_kept, num_reused, num_encoded and num_lost.

        Args:
            advance: told how many rows are done, again and again.
        """
        counts = dict.fromkeys(("num_kept", "num_reused", "num_encoded", "num_lost"), 0)
        num_threads = self.extractor.num_threads
        with ExitStack() as stack:
            planner, loaders, writer = (
                stack.enter_context(Threads(count)) for count in (1, num_threads, 1)
            )
            planned = lookahead(planner, self.plan, indices, depth=2)
            loaded = lookahead(loaders, self.load, self.pieces(planned), depth=num_threads + 1)
            written: Future[None] | None = None
            for shard, batch, inputs, reasons in loaded:
                if batch is not None:
                    counts["num_encoded"] += self.encode(shard, batch, inputs, reasons)
                    advance(len(batch))
                    continue
                advance(shard.num_rows - len(shard.values))
                if shard.is_kept:
                    counts["num_kept"] += shard.num_rows
                    continue
                num_nothing = int((shard.rows["masked"] == MASK_CODES["none"]).sum())
                counts["num_reused"] += shard.num_rows - len(shard.values) - num_nothing
                counts["num_lost"] += self.keep_lost(shard)
                # One shard waits to be written while the next is made.
                if written is not None:
                    written.result()
                written = writer.submit(self.write, shard)
            if written is not None:
                written.result()
        return counts

    def plan(self, index: int) -> Shard:
        """Read a shard's items and take the vectors that are there already."""
        start, stop = self.rows_of(index).start, self.rows_of(index).stop
        column = self.catalogue.read(start, stop, [self.extractor.column]).column(0)
        values = column.to_pylist()
        rows = self.extractor.hashes(values)
        shard = Shard(index=index, start_row=start, num_rows=stop - start, rows=rows)
        made, names = stored_rows(self.features, self.next_names, index), self.next_names
        if (made is not None and _made_of(made, rows)) or self.take_whole(shard):
            shard.is_kept = True
            return shard
        if made is None and self.has_same_rows:
            made, names = stored_rows(self.features, self.names, index), self.names
        has_content = (rows["high"] != 0) | (rows["low"] != 0)
        rows["masked"] = MASK_CODES["none"]
        shard.vectors = {name: form.zeros(len(rows)) for name, form in self.forms.items()}
        if made is not None and len(made) == len(rows):
            self.take_unchanged(shard, made, names)
        if self.has_index:
            self.take_found(shard, np.flatnonzero((rows["masked"] != 0) & has_content))
        shard.positions = np.flatnonzero((rows["masked"] != 0) & has_content)
        shard.values = [values[position] for position in shard.positions]
        shard.batches = self.extractor.batches(shard.values) if shard.values else []
        return shard

    def take_whole(self, shard: Shard) -> bool:
        """Link the shard of a table that is there and is made of the same; False without one."""
        finished = [self.features] if self.has_same_rows else []
        for root in [*finished, *self.generations]:
            before = stored_rows(root, self.names, shard.index)
            if before is not None and _made_of(before, shard.rows) and self.link(root, shard):
                return True
        return False

    def take_unchanged(self, shard: Shard, there: np.ndarray, folders: list[str]) -> None:
        """Copy vectors from the shard that is there, ROW [N], of the same items.

        In the other rows a picture was replaced, or one that could not be read is tried again.

        Args:
            folders: below features/ that the shard is in, by table.
        """
        same = same_rows(there, shard.rows) & (there["masked"] == 0)
        shard.rows_before = there
        for name, folder in zip(self.names, folders, strict=True):
            file = self.features / folder / f"shard-{shard.index:05d}.npy"
            before = read_array(file, f"delete it and {EMBED_AGAIN}", mmap=True)
            shard.vectors_before[name] = before
            shard.vectors[name][same] = self.forms[name].taken_from(before[same])
        shard.rows["masked"][same] = 0

    def take_found(self, shard: Shard, asked: np.ndarray) -> None:
        """Copy the vectors that earlier tables have for positions `asked` int [Q] of the shard."""
        places = self.earlier.find(shard.rows[asked])
        found = asked[places >= 0]
        if len(found):
            for name in self.names:
                stored = self.earlier.read(name, places[places >= 0], self.forms[name])
                shard.vectors[name][found] = stored
            shard.rows["masked"][found] = 0

    def keep_lost(self, shard: Shard) -> int:
        """Let rows whose picture is gone or broken keep the vector they had; return their number.

        They keep what it was made of, too, so that the next extraction looks for the picture again.
        """
        before = shard.rows_before
        if before is None:
            return 0
        lost = np.flatnonzero((before["masked"] == 0) & (shard.rows["masked"] > MASK_CODES["none"]))
        if len(lost) and not self.forget_missing:
            for name, vectors in shard.vectors_before.items():
                shard.vectors[name][lost] = self.forms[name].taken_from(vectors[lost])
            shard.rows[lost] = before[lost]
        return len(lost)

    def link(self, generation: Path, shard: Shard) -> bool:
        """Take a shard of an earlier table over as it is; False if it begins at another row, or is
        stored in another form."""
        index = shard.index
        entries = {name: finished_shard(generation / name, index) for name in self.names}
        if any(entry is None or entry.start_row != shard.start_row for entry in entries.values()):
            return False
        for name, form in self.forms.items():
            stored = generation / name / f"shard-{index:05d}.npy"
            if read_array(stored, f"delete it and {EMBED_AGAIN}", mmap=True).dtype != form.dtype:
                return False
        for name, entry in entries.items():
            assert entry is not None, "checked above"
            source, target = generation / name, self.features / next_name(name)
            # Without its entry a shard is not finished: nothing half of it is ever read.
            entry_file(target, index).unlink(missing_ok=True)
            for file in (entry.file, entry.rows_file):
                (target / file).unlink(missing_ok=True)
                try:
                    os.link(source / file, target / file)
                except OSError:  # a file system without hard links
                    with new_file(target / file, (source / file).stat().st_size) as beside:
                        shutil.copy2(source / file, beside)
            write_json(entry_file(target, index), dataclasses.asdict(entry))
        return True

    def pieces(self, shards: Iterable[Shard]) -> Iterator[tuple[Shard, np.ndarray | None]]:
        """Yield each batch of each shard, int [B] positions in `values`; (shard, None) after the last."""
        for shard in shards:
            for batch in shard.batches:
                yield shard, batch
            yield shard, None

    def load(self, piece: tuple[Shard, np.ndarray | None]) -> tuple[Shard, Any, Any, Any]:
        """Return (shard, int [B] positions, inputs, reasons) of a batch; None after a shard's last."""
        shard, batch = piece
        if batch is None:
            return shard, None, None, None
        inputs, reasons = self.extractor.load([shard.values[position] for position in batch])
        return shard, batch, inputs, reasons

    def encode(
        self, shard: Shard, batch: np.ndarray, inputs: Any, reasons: list[str | None]
    ) -> int:
        """Run the network on a batch, int [B] positions in `values`; return how many it encoded.

        Args:
            reasons: for each of the batch, why it is masked, or None; `inputs` are of the others.
        """
        codes = [0 if reason is None else MASK_CODES[reason] for reason in reasons]
        shard.rows["masked"][shard.positions[batch]] = codes
        good = batch[np.equal(codes, 0)]
        if len(good):
            for name, vectors in self.extractor.encode(inputs).items():
                shard.vectors[name][shard.positions[good]] = self.forms[name].encode(vectors)
        return len(good)

    def write(self, shard: Shard) -> None:
        """Write a shard of every table."""
        for name in self.names:
            write_shard(
                self.features / next_name(name),
                shard.index,
                shard.start_row,
                shard.vectors[name],
                shard.rows,
                self.forms[name],
            )


def _made_of(there: np.ndarray, rows: np.ndarray) -> bool:
    """Return whether a shard that is there, ROW [N], is made of the same as rows [N], row by row."""
    return len(there) == len(rows) and bool(same_rows(there, rows).all())


class Threads(ThreadPoolExecutor):
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
