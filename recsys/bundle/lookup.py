"""Lookup of feature rows in exported tables: what RankerInputs does with sharded ones.

A column is a feature of B rows: its ids end to end, and how many each row has; or a number for each row.
Shapes: B rows, V ids, X width of the features side by side, K dense features.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.spec import BundleSpec
from recsys.bundle.tables import QuantisedTable


class Column(NamedTuple):
    """A feature of B rows."""

    values_V: torch.Tensor
    """Rows of its table [V], int64; of a dense feature, scaled numbers [B], float32."""
    lengths_B: torch.Tensor | None = None
    """Ids of each list; None where every row has one value."""
    weights_V: torch.Tensor | None = None
    """Weights of the ids, float32; None where all count alike."""


def column_of(
    rows: Sequence[NDArray], is_list: bool, weights: Sequence[NDArray] | None = None
) -> Column:
    """Return the column of one array of ids, or of one number, for each row [B].

    Args:
        is_list: False: each array has one id.
        weights: of the ids, an array for each row; None: all count alike.
    """
    values = np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)
    kind = np.float32 if values.dtype.kind == "f" else np.int64
    values_V = torch.from_numpy(values.astype(kind, copy=False))
    if not is_list:
        return Column(values_V)
    lengths_B = torch.tensor([len(ids) for ids in rows], dtype=torch.int64)
    if weights is None:
        return Column(values_V, lengths_B)
    joined = np.concatenate(weights) if len(weights) else np.zeros(0)
    return Column(values_V, lengths_B, torch.from_numpy(joined.astype(np.float32, copy=False)))


def kept(column: Column, is_kept_V: torch.Tensor) -> Column:
    """Return a column of lists without some of its ids; is_kept_V: bool [V]."""
    values_V, lengths_B, weights_V = column
    assert lengths_B is not None, "only lists lose ids"
    row_V = torch.repeat_interleave(lengths_B)[is_kept_V]
    kept_lengths_B = torch.bincount(row_V, minlength=lengths_B.shape[0])
    kept_weights_V = None if weights_V is None else weights_V[is_kept_V]
    return Column(values_V[is_kept_V], kept_lengths_B, kept_weights_V)


class Lookup:
    """Features of one side, looked up and put side by side in the model's order."""

    def __init__(
        self,
        spec: BundleSpec,
        names: Sequence[str],
        dense: Sequence[str],
        tables: Mapping[str, QuantisedTable],
    ):
        """Args: names, dense: features of ids and of numbers of one side of the specification."""
        self.names = list(names)
        self.dense = list(dense)
        self._tables = [tables[spec.feature(name).table] for name in names]

    def __call__(
        self, columns: Mapping[str, Column], num_rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (vectors, then value and flag of every number [B, X]; sum of first-order weights [B]).

        A list is the mean of its ids, weighted where they have weights; an empty one is zero. Rows that
        the table lacks, those of items added at run time, are unknown: row 0, and left out of a list.
        """
        parts, first_order_B = [], torch.zeros(num_rows)
        for name, table in zip(self.names, self._tables, strict=True):
            values_V, lengths_B, weights_V = columns[name]
            is_known_V = values_V < table.num_rows
            if lengths_B is None:
                values_V = values_V * is_known_V
            elif not is_known_V.all():
                values_V, lengths_B, weights_V = kept(columns[name], is_known_V)
            vectors_BD, first_B = table.pool(values_V, lengths_B, weights_V)
            parts.append(vectors_BD)
            first_order_B = first_order_B + first_B
        for name in self.dense:
            number_B = columns[name].values_V
            parts.append(torch.stack([number_B.nan_to_num(nan=0.0), number_B.isnan().float()], 1))
        if not parts:
            return torch.zeros(num_rows, 0), first_order_B
        return torch.cat(parts, dim=1), first_order_B
