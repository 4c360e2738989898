"""Id maps of a model's tables: batches looked up through them, and their exchange between ranks.

In: batches with rows of the vocabulary. Out: the same batches with rows of the tables beside them, for
every feature that reads a table of fixed capacity (`tables.<name>.ids`); between two windows of steps,
the maps that all ranks agree on. Held by ShardedRanker, called by the training loop and by
recsys/evaluation/predict.py; checkpoints keep what `state` returns.

    steps 1 .. n        every rank notes the ids of the batches that it trained on
    before step n + 1   all ranks exchange the notes, apply one rule (recsys/data/id_map.py), and
                        begin anew the rows, in their own shards, of ids that came or went

Nothing is in flight at an exchange: a batch is looked up, trained and noted under one map.
Shapes: V ids of a feature, B rows of a batch.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.batch import Batch
from recsys.data.id_map import IdMap, Seen, merged
from recsys.runtime.collectives import gather, sharing_errors
from recsys.schema import Manifest
from recsys.sharding.shards import TableShard, reset_rows
from recsys.sharding.tables import TableSettings

_PENDING = ("rows", "counts", "last", "lookups")


@dataclass
class _MappedTable:
    """One table of fixed capacity on this rank."""

    ids: IdMap
    features: tuple[str, ...]
    """Features that look it up."""
    noted: tuple[str, ...]
    """Those whose ids are occurrences: all but histories, whose items have occurred before."""
    pending: list[Seen] = field(default_factory=list)
    """Ids of the batches trained since the last exchange."""


class IdMaps:
    """Maps of all tables of fixed capacity; without such a table, batches stay as they are."""

    def __init__(
        self,
        tables: Mapping[str, TableSettings],
        manifest: Manifest,
        *,
        exchange_every_steps: int,
        bound: float,
        seed: int,
    ):
        """Begin with maps without ids.

        Args:
            tables: of the model, those without `ids` included.
            exchange_every_steps: length of a window.
            bound: half-width of the uniform initial values of a row.
            seed: of these values.
        """
        sources = {feature.name: feature.source for feature in manifest.features}
        self._tables: dict[str, _MappedTable] = {}
        for name, settings in tables.items():
            if settings.ids is not None:
                own = tuple(f for f in settings.features if sources[f] != "history")
                self._tables[name] = _MappedTable(
                    ids=IdMap(name, settings.ids, manifest.table(name).num_rows),
                    features=settings.features,
                    noted=own or settings.features,
                )
        self._every = exchange_every_steps
        self._bound = bound
        self._seed = seed
        self._ahead: deque[dict[str, Seen]] = deque()
        """Ids of batches that the pipeline has taken and not trained on yet, by table."""

    def __bool__(self) -> bool:
        """Whether there is any map."""
        return bool(self._tables)

    def rows_by_table(self) -> dict[str, NDArray[np.int32]]:
        """Return the table row of every vocabulary row [N], by table; the maps themselves."""
        return {name: table.ids.table_row_N for name, table in self._tables.items()}

    def mapped(self, batch: Batch) -> Batch:
        """Return a batch of the host with the rows of the tables beside those of the vocabulary."""
        if not self:
            return batch
        sparse = batch.features.sparse
        rows_V = sparse.values().numpy().copy()
        maps = {key: t.ids.table_row_N for t in self._tables.values() for key in t.features}
        for key, ids_V, _ in _by_key(sparse, rows_V):
            if key in maps:
                ids_V[:] = maps[key][ids_V]
        # The same keys and lengths; key 0: row 0, row 1, ...; key 1: row 0, row 1, ...
        mapped = KeyedJaggedTensor(
            keys=sparse.keys(),
            values=torch.from_numpy(rows_V),
            lengths=sparse.lengths(),
            weights=sparse.weights_or_none(),
            stride=sparse.stride(),
            length_per_key=sparse.length_per_key(),
            offset_per_key=sparse.offset_per_key(),
        )
        if sparse.values().is_pinned():
            mapped = mapped.pin_memory()
        return dataclasses.replace(
            batch, features=dataclasses.replace(batch.features, mapped=mapped)
        )

    def watched(self, batches: Iterable[Batch], *, is_first_pass: bool) -> Iterator[Batch]:
        """Yield training batches, mapped, and note their ids; `stepped` says that one is trained.

        Args:
            is_first_pass: its rows are counted; those of later passes are the same again.
        """
        for batch in batches:
            if self:
                self._ahead.append(self._seen(batch, is_first_pass))
            yield self.mapped(batch)

    def stepped(self) -> None:
        """Take the ids of the oldest batch that was not trained on for seen."""
        if self:
            for name, seen in self._ahead.popleft().items():
                self._tables[name].pending.append(seen)

    def steps_to_exchange(self, step: int) -> int | None:
        """Return the steps from `step` to the end of its window; None without any map."""
        return self._every - step % self._every if self else None

    def is_due(self, step: int) -> bool:
        """Return whether `step` updates end a window, so that the next begins with an exchange."""
        return bool(self) and step > 0 and step % self._every == 0

    def exchange(self) -> tuple[dict[str, NDArray[np.int64]], dict[str, float]]:
        """End a window: exchange ids and update the maps; all ranks call this.

        Returns the rows that must begin anew, by table, if there are any, and what the log says.

        Raises:
            UserError: a window has more ids with a right to a row than its table has rows; on every
                rank.
        """
        assert not self._ahead, "no batch is in flight between two windows"
        windows = self._gathered()
        freed: dict[str, NDArray[np.int64]] = {}
        metrics: dict[str, float] = {}
        with sharing_errors():
            for name, table in self._tables.items():
                rows_K = table.ids.update(windows[name])
                table.pending.clear()
                freed |= {name: rows_K} if len(rows_K) else {}
                metrics |= _metrics(name, table.ids, windows[name])
        return freed, metrics

    def reset(self, shards: Iterable[TableShard], freed: Mapping[str, NDArray[np.int64]]) -> None:
        """Let the freed rows of this rank's shards begin anew; rows [K] by table."""
        for shard in shards:
            if shard.table in freed:
                window = self._tables[shard.table].ids.totals.windows
                key = xxhash.xxh64_intdigest(f"{self._seed}/{shard.table}/{window}".encode())
                reset_rows(shard, freed[shard.table], self._bound, key)

    def summary(self) -> list[str]:
        """Return a sentence on every map; all ranks call this."""
        since = self._gathered()
        sentences = []
        for name, table in self._tables.items():
            totals, capacity = table.ids.totals, table.ids.config.capacity
            lookups = totals.lookups + since[name].num_lookups
            unknown = totals.unknown + since[name].num_unknown
            sentences.append(
                f"ids of {name}: {table.ids.num_used:,} of {capacity:,} rows in use, "
                f"{totals.admitted:,} admitted, {totals.forgotten:,} forgotten, "
                f"{unknown / max(lookups, 1):.1%} of {lookups:,} lookups on row 0"
            )
        return sentences

    def state(self) -> dict[str, torch.Tensor]:
        """Return the maps and the ids seen since the last exchange by any rank; all ranks call this."""
        windows = self._gathered()
        found: dict[str, torch.Tensor] = {}
        for name, table in self._tables.items():
            seen = windows[name]
            lookups = np.array([seen.num_lookups, seen.num_unknown], np.int64)
            pending = (seen.rows_K, seen.counts_K, seen.last_K, lookups)
            arrays = table.ids.arrays()
            arrays |= {f"pending_{n}": v for n, v in zip(_PENDING, pending, strict=True)}
            found |= {f"{name}/{n}": torch.from_numpy(v) for n, v in arrays.items()}
        return found

    def load_state(self, state: Mapping[str, torch.Tensor], *, is_first_rank: bool) -> None:
        """Set what `state` returned, on any number of ranks; the first one takes the seen ids.

        Raises:
            UserError: the maps are of other tables, data or capacities.
        """
        for name, table in self._tables.items():
            arrays = {
                key.removeprefix(f"{name}/"): values.numpy()
                for key, values in state.items()
                if key.startswith(f"{name}/")
            }
            table.ids.load(arrays)
            rows_K, counts_K, last_K, lookups = (arrays[f"pending_{n}"] for n in _PENDING)
            seen = Seen(
                rows_K=rows_K,
                counts_K=counts_K,
                last_K=last_K,
                num_lookups=int(lookups[0]),
                num_unknown=int(lookups[1]),
            )
            table.pending = [seen] if is_first_rank else []

    def _gathered(self) -> dict[str, Seen]:
        """Return what all ranks have seen since the last exchange, by table."""
        if not self:
            return {}
        parts = gather(lambda: {n: merged(t.pending) for n, t in self._tables.items()})
        return {name: merged([part[name] for part in parts]) for name in self._tables}

    def _seen(self, batch: Batch, is_counted: bool) -> dict[str, Seen]:
        """Return the ids of a batch before it is mapped, by table."""
        sparse = batch.features.sparse
        columns = {
            key: (ids_V, n_B) for key, ids_V, n_B in _by_key(sparse, sparse.values().numpy())
        }
        found = {}
        for name, table in self._tables.items():
            lookups = [columns[key][0] for key in table.features]
            rows, times = [], []
            for key in table.noted:
                ids_V, lengths_B = columns[key]
                rows.append(ids_V)
                if batch.time_B is None:
                    times.append(np.full(len(ids_V), table.ids.totals.windows, np.int64))
                else:
                    times.append(np.repeat(batch.time_B.numpy(), lengths_B))
            found[name] = Seen.of(
                np.concatenate(rows),
                np.concatenate(times),
                is_counted=is_counted,
                num_lookups=sum(map(len, lookups)),
                num_unknown=sum(int((table.ids.table_row_N[ids] == 0).sum()) for ids in lookups),
            )
        return found


def rows_by_table(state: Mapping[str, torch.Tensor]) -> dict[str, NDArray[np.int32]]:
    """Return the table row of every vocabulary row [N], by table, of what `IdMaps.state` returned."""
    return {
        name.removesuffix("/table_row"): rows.numpy()
        for name, rows in state.items()
        if name.endswith("/table_row")
    }


def _by_key(
    sparse: KeyedJaggedTensor, values_V: NDArray
) -> Iterator[tuple[str, NDArray, NDArray[np.int64]]]:
    """Yield (key, its part of `values_V`, its lengths [B]) of every key."""
    lengths_FB = sparse.lengths().numpy().reshape(len(sparse.keys()), -1)
    ends = np.cumsum(lengths_FB.sum(axis=1))
    for key, lengths_B, stop in zip(sparse.keys(), lengths_FB, ends.tolist(), strict=True):
        yield key, values_V[stop - int(lengths_B.sum()) : stop], lengths_B


def _metrics(name: str, ids: IdMap, window: Seen) -> dict[str, float]:
    """Return what the log says of a map after an exchange."""
    return {
        f"ids/{name}/rows_used": float(ids.num_used),
        f"ids/{name}/admitted": float(ids.totals.admitted),
        f"ids/{name}/forgotten": float(ids.totals.forgotten),
        f"ids/{name}/turned_away": float(ids.totals.turned_away),
        f"ids/{name}/unknown_share": window.num_unknown / max(window.num_lookups, 1),
    }
