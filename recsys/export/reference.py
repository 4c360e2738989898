"""Reference scores of a sample: the run's own ranker on its checkpoint, without sharding or whole tables.

In: a run's configuration, prepared data, feature tables and stored weights. Out: the logits that
`evaluate` gives. Only rows of tables that the sample looks up are read, and ids are numbered anew among
them, so that memory does not grow with the tables.
Shapes: B rows of a batch, V ids, K distinct rows of a table, D table width, E modality width.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recsys.batch import Batch, Features
from recsys.bundle.lookup import Column
from recsys.checkpoint.read import StoredTables
from recsys.data.dataset import Dataset
from recsys.data.loader import Loader
from recsys.model.build import batch_features
from recsys.model.modality import TABLE_PREFIX
from recsys.model.ranker import Ranker
from recsys.schema import Manifest
from recsys.sharding.shards import Vectors

_BATCH_ROWS = 512
_READ_ROWS = 4096


def sample_batches(
    prepared: Path, manifest: Manifest, ranker: Ranker, *, split: str, num_rows: int
) -> Iterator[Batch]:
    """Yield the first rows of a split, in its seeded random order, as the loader gives them."""
    features = batch_features(ranker)
    dataset = Dataset(prepared, manifest, split=split, features=features)
    loader = Loader(
        dataset,
        global_batch_size=_BATCH_ROWS,
        rank=0,
        world_size=1,
        num_lanes=1,
        shuffle=False,
        seed=0,
    )
    left = num_rows
    for batch in loader.batches(epoch=0):
        if left <= 0:
            return
        yield batch
        left -= batch.num_real


def columns_of(batch: Batch, manifest: Manifest, dense: Sequence[str]) -> dict[str, Column]:
    """Return the real rows of a batch as columns, by feature [B].

    Args:
        dense: names of the batch's dense features, in its order.
    """
    is_list = {feature.name: feature.is_list for feature in manifest.features}
    columns: dict[str, Column] = {}
    is_weighted = {feature.name: feature.is_weighted for feature in manifest.features}
    for name, values_V, lengths_B, weights_V in _features(batch.features.sparse, batch.num_real):
        lengths = lengths_B if is_list[name] else None
        columns[name] = Column(values_V, lengths, weights_V if is_weighted[name] else None)
    for place, name in enumerate(dense):
        assert batch.features.dense_BK is not None, "the batch was made for a ranker with numbers"
        columns[name] = Column(batch.features.dense_BK[: batch.num_real, place])
    return columns


def _features(
    sparse: KeyedJaggedTensor, num_real: int
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Yield (name, ids [V], lengths [B], weights [V]) of every feature, of rows before the padding."""
    keys = sparse.keys()
    lengths_FB = sparse.lengths().long().reshape(len(keys), -1)
    ends = np.cumsum([0, *lengths_FB.sum(dim=1).tolist()])
    # Padding has no ids: all of a feature's are of real rows.
    for (start, stop), name, lengths_B in zip(pairwise(ends), keys, lengths_FB, strict=True):
        weights = sparse.weights_or_none()
        weights_V = None if weights is None else weights[start:stop]
        yield name, sparse.values()[start:stop].long(), lengths_B[:num_real], weights_V


class Reference:
    """A run's ranker, whose tables hold the rows of one batch at a time."""

    def __init__(
        self,
        ranker: Ranker,
        manifest: Manifest,
        stored: StoredTables,
        vectors: Mapping[str, Vectors],
        *,
        half_tables: Sequence[str] = (),
    ):
        """Load the dense half.

        Args:
            ranker: tables on the meta device; they get rows here.
            vectors: feature tables by modality, of those that the model reads.
        """
        self._ranker = ranker
        self._stored = stored
        self._vectors = vectors
        self._half_tables = half_tables
        self._table_of = {feature.name: feature.table for feature in manifest.features}
        ranker.dense.load_state_dict(stored.read_dense())
        ranker.eval()

    @property
    def dense_names(self) -> list[str]:
        """Dense features in the order of a batch's columns."""
        return self._ranker.inputs.dense_names

    @property
    def is_bf16(self) -> bool:
        """Whether the run was trained with matrix products in bf16."""
        return self._ranker.scorer.use_bf16

    @torch.no_grad()
    def logits(self, batch: Batch, *, own_precision: bool = False) -> torch.Tensor:
        """Return the logits of a batch's real rows [B].

        Args:
            own_precision: of the matrix products, the one that the run was trained in; False: fp32.
        """
        sparse = self._numbered_anew(batch.features.sparse)
        scorer = self._ranker.scorer
        trained_in_bf16 = scorer.use_bf16
        scorer.use_bf16 = trained_in_bf16 and own_precision
        logits_B, _ = scorer(Features(sparse, dense_BK=batch.features.dense_BK))
        scorer.use_bf16 = trained_in_bf16
        return logits_B[: batch.num_real]

    def _numbered_anew(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Fill the tables with the rows that the batch reads; return its ids as places among them."""
        keys = sparse.keys()
        lengths_FB = sparse.lengths().reshape(len(keys), -1)
        parts = list(sparse.values().split(lengths_FB.sum(dim=1).tolist()))
        for table in {self._table_of[key] for key in keys}:
            places = [i for i, key in enumerate(keys) if self._table_of[key] == table]
            ids = torch.cat([parts[i] for i in places]).numpy()
            rows_K, numbers_V = np.unique(ids, return_inverse=True)
            self._fill(table, rows_K)
            numbers = torch.from_numpy(numbers_V.reshape(-1)).split([len(parts[i]) for i in places])
            for place, values_V in zip(places, numbers, strict=True):
                parts[place] = values_V
        # Keys and lengths stay; key 0: row 0, row 1, ...; key 1: row 0, row 1, ...
        return KeyedJaggedTensor(
            keys=keys,
            values=torch.cat(parts),
            lengths=sparse.lengths(),
            weights=sparse.weights_or_none(),
        )

    def _fill(self, table: str, rows_K: NDArray[np.int64]) -> None:
        bags = self._ranker.inputs.embeddings.embedding_bags
        if table in bags:
            values_KD = self._rows(table, rows_K)
            if table in self._half_tables:  # its own rounding; the CPU looks up no fp16
                values_KD = values_KD.half().float()
            bags[table].weight = nn.Parameter(values_KD)
        modality = self._ranker.inputs.modality
        if table == "item_id" and modality is not None:
            for name, bag in modality.tables.embedding_bags.items():
                vectors = self._vectors[name.removeprefix(TABLE_PREFIX)]
                stored_KD = torch.zeros(len(rows_K), bag.weight.shape[1])
                for place, row in enumerate(rows_K.tolist()):
                    vector_E = torch.from_numpy(np.array(vectors.read(row, row + 1)[0])).float()
                    stored_KD[place, : vectors.dim] = vector_E
                    stored_KD[place, vectors.dim] = float(vector_E.any())
                bag.weight = nn.Parameter(stored_KD, requires_grad=False)

    def _rows(self, table: str, rows_K: NDArray[np.int64]) -> torch.Tensor:
        """Return the stored values of ascending rows of a vocabulary [K, D]."""
        id_map_N = self._stored.id_map(table)
        if id_map_N is not None:
            own_U, numbers_K = np.unique(id_map_N[rows_K].astype(np.int64), return_inverse=True)
            return self._own_rows(table, own_U)[torch.from_numpy(numbers_K)]
        return self._own_rows(table, rows_K)

    def _own_rows(self, table: str, rows_K: NDArray[np.int64]) -> torch.Tensor:
        """Return ascending rows of a stored table [K, D]."""
        num_rows, num_columns = self._stored.shape(table)
        found_KD = torch.empty(len(rows_K), num_columns)
        for block in np.unique(rows_K // _READ_ROWS).tolist():
            start, stop = block * _READ_ROWS, min(num_rows, (block + 1) * _READ_ROWS)
            first, last = np.searchsorted(rows_K, [start, stop])
            wanted = torch.from_numpy(rows_K[first:last] - start)
            found_KD[first:last] = self._stored.read(table, start, stop)[wanted]
        return found_KD
