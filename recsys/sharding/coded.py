"""Frozen tables of codes: looked up by decoding the rows that a batch reads, and then pooled.

In: feature tables whose rows are codes (embedding/features/codes.py). Out: modules in the place of
FBGEMM's kernels, for tables that every rank holds whole and for shards of TorchRec. A row decodes to the
columns [turned vector (Z), mask, zeros] of ModalityTables, whose `bases` turn vectors back after pooling.
FBGEMM's quantised kernels are row-wise, and lose more at twice the bytes (LOG.md).
Shapes: K rows asked for, V ids of all lists, B rows, P parts of a piece of columns, W words, D of a part.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchrec.distributed.embedding_kernel import BaseEmbedding
from torchrec.distributed.embedding_lookup import GroupedPooledEmbeddingsLookup
from torchrec.distributed.embedding_types import EmbeddingComputeKernel, GroupedEmbeddingConfig
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import get_embedding_names_by_table
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from embedding.features.codes import CODEWORDS, Codebooks
from embedding.features.store import FeatureTable
from recsys.model.modality import TABLE_PREFIX

_FILL_ROWS = 65_536


def codebooks_of(vectors: Mapping[str, Any]) -> dict[str, Codebooks]:
    """Return the codebooks of feature tables by modality; none unless all can be looked up as codes.

    Tables of a width that their parts do not divide, and tables of codes beside fp16 ones, are decoded
    when a training begins.
    """
    found = {}
    for name, table in vectors.items():
        books = table.form.codebooks if isinstance(table, FeatureTable) else None
        if books is None or books.basis_EZ.shape[0] != books.basis_EZ.shape[1]:
            return {}
        found[name] = books
    return found


def bases_of(books: Mapping[str, Codebooks], device: torch.device) -> dict[str, torch.Tensor]:
    """Return the bases [E, E] of the stored vectors by modality; books: by name of the table."""
    return {
        table.removeprefix(TABLE_PREFIX): torch.from_numpy(found.basis_EZ).to(device)
        for table, found in books.items()
    }


def coded_rows(collection: nn.Module) -> Iterator["CodedRows"]:
    """Yield this rank's pieces of tables of codes, sharded or held whole."""
    if isinstance(collection, CodedTables):
        yield from map(collection.rows_of, [c.name for c in collection.embedding_bag_configs()])
        return
    lookups: Any = collection
    for lookup in lookups._lookups:
        for kernel in lookup._emb_modules:
            yield from kernel.shards


class CodedRows(nn.Module):
    """A piece of a table of codes: some rows, and the parts that some columns need."""

    def __init__(
        self,
        *,
        table: str,
        rows: tuple[int, int],
        columns: tuple[int, int],
        bits: int,
        dim: int,
        device: torch.device | None,
    ):
        """Build the piece without codes.

        Args:
            table: its name.
            rows: first and last + 1 of the table.
            columns: first and last + 1 as stored.
            bits: of a number.
            dim: width Z of a turned vector, after which the mask's column follows.
        """
        super().__init__()
        self.table, self.rows, self.columns, self.dim = table, rows, columns, dim
        part_dim = 8 // bits
        first = min(columns[0] // part_dim, dim // part_dim - 1)
        last = max(first + 1, -(-min(columns[1], dim) // part_dim))
        self.parts, self.first_column = slice(first, last), first * part_dim
        num_parts = last - first
        # No buffers, which DistributedDataParallel would send to all ranks.
        self.codes_NP = torch.zeros(rows[1] - rows[0], num_parts, dtype=torch.uint8, device=device)
        self.words_WD = torch.zeros(num_parts * CODEWORDS, part_dim, device=device)
        self.start_P = CODEWORDS * torch.arange(num_parts, dtype=torch.int32, device=device)

    @property
    def device(self) -> torch.device:
        """Device of the codes."""
        return self.codes_NP.device

    def fill(self, vectors: FeatureTable) -> None:
        """Copy codes and codewords from a feature table."""
        books = vectors.form.codebooks
        assert books is not None, "codebooks_of has looked"
        words = np.ascontiguousarray(books.codewords_SKD[self.parts])
        self.words_WD.copy_(torch.from_numpy(words).flatten(0, 1))
        for start in range(*self.rows, _FILL_ROWS):
            stop = min(self.rows[1], start + _FILL_ROWS)
            block = np.array(vectors.stored(start, stop)[:, self.parts])
            own = slice(start - self.rows[0], stop - self.rows[0])
            self.codes_NP[own].copy_(torch.from_numpy(block))

    def forward(self, row_K: torch.Tensor) -> torch.Tensor:
        """Return rows of the piece decoded, fp32 [K, columns]; row_K: int [K], within the piece."""
        codes_KP = self.codes_NP.index_select(0, row_K).int()
        part_KPD = F.embedding(codes_KP + self.start_P, self.words_WD)
        turned = part_KPD.flatten(1)[:, self.columns[0] - self.first_column :]
        missing = self.columns[1] - max(self.dim, self.columns[0])
        if missing <= 0:
            return turned[:, : self.columns[1] - self.columns[0]]
        behind_KX = turned.new_zeros(len(turned), missing)
        if self.columns[0] <= self.dim:
            behind_KX[:, 0] = codes_KP[:, -1] > 0
        return torch.cat([turned, behind_KX], dim=1)

    def __getitem__(self, row_K: torch.Tensor) -> torch.Tensor:
        return self(row_K)

    def pooled(self, row_V: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Return the sums of lists of rows, fp32 [B, columns]; offsets: [B + 1] into row_V."""
        row_U, place_V = torch.unique(row_V, return_inverse=True)
        if not len(row_U):
            width = self.columns[1] - self.columns[0]
            return self.words_WD.new_zeros(len(offsets) - 1, width)
        return F.embedding_bag(
            place_V, self(row_U), offsets.to(place_V.dtype), mode="sum", include_last_offset=True
        )


class CodedTables(nn.Module):
    """Tables of codes held whole by a rank, with the interface of an EmbeddingBagCollection."""

    def __init__(
        self,
        configs: Sequence[EmbeddingBagConfig],
        books: Mapping[str, Codebooks],
        device: torch.device,
    ):
        """Args: books: by name of the table."""
        super().__init__()
        self._configs = list(configs)
        by_table = get_embedding_names_by_table(self._configs)
        self._names = [name for names in by_table for name in names]
        self._widths = [c.embedding_dim for c in self._configs for _ in c.feature_names]
        self.embedding_bags = nn.ModuleDict()
        for config in self._configs:
            bag = nn.Module()
            bag.weight = CodedRows(
                table=config.name,
                rows=(0, config.num_embeddings),
                columns=(0, config.embedding_dim),
                bits=books[config.name].bits,
                dim=books[config.name].basis_EZ.shape[1],
                device=device,
            )
            self.embedding_bags[config.name] = bag

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """Return the tables' configurations, in their order."""
        return self._configs

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return the pooled rows [B, sum of widths] in fp32."""
        by_feature = features.to_dict()
        looked_up = [
            self.rows_of(config.name).pooled(by_feature[name].values(), by_feature[name].offsets())
            for config in self._configs
            for name in config.feature_names
        ]
        return KeyedTensor(
            keys=self._names, length_per_key=self._widths, values=torch.cat(looked_up, dim=1)
        )

    def rows_of(self, table: str) -> CodedRows:
        """Return a table's rows."""
        rows: Any = self.embedding_bags[table].weight
        return rows


class CodedEmbeddingBag(BaseEmbedding):
    """A rank's shards of tables of codes, in the place of TorchRec's BatchedFusedEmbeddingBag."""

    def __init__(
        self,
        config: GroupedEmbeddingConfig,
        books: Mapping[str, Codebooks],
        device: torch.device | None,
    ):
        """Args: config: tables of the group with their pieces; books: by name of the table."""
        super().__init__()
        self._config = config
        self.shards: list[CodedRows] = []
        for table in config.embedding_tables:
            row, column = table.local_metadata.shard_offsets if table.local_metadata else (0, 0)
            self.shards.append(
                CodedRows(
                    table=table.name,
                    rows=(row, row + table.local_rows),
                    columns=(column, column + table.local_cols),
                    bits=books[table.name].bits,
                    dim=books[table.name].basis_EZ.shape[1],
                    device=device,
                )
            )

    @property
    def config(self) -> GroupedEmbeddingConfig:
        """The group's tables."""
        return self._config

    @property
    def emb_module(self) -> nn.Module:
        """The kernel, which is this module."""
        return self

    def forward(self, features: KeyedJaggedTensor) -> torch.Tensor:
        """Return the pooled rows [B, sum of local columns of every feature]; B may be 0."""
        values, stride = features.values(), features.stride()
        offsets = features.offsets()
        looked_up, feature = [], 0
        for table, shard in zip(self._config.embedding_tables, self.shards, strict=True):
            for _ in range(table.num_features()):
                of_list = offsets[feature * stride : (feature + 1) * stride + 1]
                start, stop = int(of_list[0]), int(of_list[-1])
                looked_up.append(shard.pooled(values[start:stop], of_list - start))
                feature += 1
        return torch.cat(looked_up, dim=1)

    def named_parameters_by_table(self) -> Iterator[tuple[str, Any]]:
        """Yield nothing: codes are no parameters."""
        yield from ()

    def state_dict(self, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Return nothing: codes are filled from the feature store, not from checkpoints."""
        return {} if destination is None else destination

    def flush(self) -> None:
        """Do nothing: there is no cache."""

    def purge(self) -> None:
        """Do nothing: there is no cache."""


@contextmanager
def coded_kernels(books: Mapping[str, Codebooks]) -> Iterator[None]:
    """Let TorchRec build CodedEmbeddingBag for tables of a customized kernel, within the block.

    torchrec 1.8 knows the kernel's name in plans, and leaves its lookup to code that it has no hook for.

    Args:
        books: by name of the table.
    """
    lookup: Any = GroupedPooledEmbeddingsLookup
    collection: Any = ShardedEmbeddingBagCollection
    their_create, their_reset = lookup._create_embedding_kernel, collection.reset_parameters
    customized = EmbeddingComputeKernel.CUSTOMIZED_KERNEL

    def create(self: Any, config: Any, device: Any, *others: Any) -> Any:
        if config.compute_kernel == customized:
            return CodedEmbeddingBag(config, books, device)
        return their_create(self, config, device, *others)

    def reset(self: Any) -> None:
        # There are no weights to initialise.
        kernels = {sharding.compute_kernel for sharding in self.module_sharding_plan.values()}
        if kernels != {customized.value}:
            their_reset(self)

    lookup._create_embedding_kernel, collection.reset_parameters = create, reset
    try:
        yield
    finally:
        lookup._create_embedding_kernel = their_create
        collection.reset_parameters = their_reset
