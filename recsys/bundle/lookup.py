"""Lookup of feature rows in exported tables: what RankerInputs does with sharded ones.

A column is a feature of B rows: its ids end to end, and how many each row has; or a number for each row.
Shapes: B rows, V ids, X width of the features side by side, K dense features.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from recsys.bundle.spec import BundleSpec
from recsys.bundle.tables import QuantisedTable

Column = tuple[torch.Tensor, torch.Tensor | None]
"""Rows of a feature [V], int64, and the lengths of its lists [B]; None where every row has one id. Of a
dense feature: scaled numbers [B], float32, and None."""


def column_of(rows: Sequence[NDArray], is_list: bool) -> Column:
    """Return the column of one array of ids, or of one number, for each row [B].

    Args:
        is_list: False: each array has one id.
    """
    values = np.concatenate(rows) if len(rows) else np.zeros(0, np.int64)
    kind = np.float32 if values.dtype.kind == "f" else np.int64
    values_V = torch.from_numpy(values.astype(kind, copy=False))
    if not is_list:
        return values_V, None
    return values_V, torch.tensor([len(ids) for ids in rows], dtype=torch.int64)


def kept(column: Column, is_kept_V: torch.Tensor) -> Column:
    """Return a column of lists without some of its ids; is_kept_V: bool [V]."""
    values_V, lengths_B = column
    assert lengths_B is not None, "only lists lose ids"
    row_V = torch.repeat_interleave(lengths_B)[is_kept_V]
    return values_V[is_kept_V], torch.bincount(row_V, minlength=lengths_B.shape[0])


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

        A list is the mean of its ids; an empty one is zero. Rows that the table lacks, those of items
        added at run time, are unknown: row 0, and left out of a list.
        """
        parts, first_order_B = [], torch.zeros(num_rows)
        for name, table in zip(self.names, self._tables, strict=True):
            values_V, lengths_B = columns[name]
            is_known_V = values_V < table.num_rows
            if lengths_B is None:
                values_V = values_V * is_known_V
            elif not is_known_V.all():
                values_V, lengths_B = kept((values_V, lengths_B), is_known_V)
            vectors_BD, first_B = table.pool(values_V, lengths_B)
            parts.append(vectors_BD)
            first_order_B = first_order_B + first_B
        for name in self.dense:
            number_B, _ = columns[name]
            parts.append(torch.stack([number_B.nan_to_num(nan=0.0), number_B.isnan().float()], 1))
        if not parts:
            return torch.zeros(num_rows, 0), first_order_B
        return torch.cat(parts, dim=1), first_order_B
